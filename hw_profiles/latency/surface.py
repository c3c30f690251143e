"""Times of one kernel over channels in and out: measured on a grid, interpolated between, with a standard error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hw_profiles.latency.kernels import Kernel
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]


NEGLIGIBLE_MS = 5e-4
"""Errors of kernels shorter than this are judged as if they took so long: half a microsecond is noise."""


class MissingProfileEntry(ValueError):
    """A time is asked for that lies outside what was measured."""


@dataclass(frozen=True)
class Surface:
    """Milliseconds of one kernel over a rectangular grid of widths.

    Between measured widths it is linear along each axis; nothing is forced to grow with the width, because the
    cliffs of a runtime's tiles are real.

    Attributes:
        kernel: The kernel.
        inputs: [I] measured input channels, ascending (one value for a square kernel).
        outputs: [O] measured output channels, ascending.
        times: [I, O] milliseconds.
        errors: [I, O] standard errors of the measurement, milliseconds.
    """

    kernel: Kernel
    inputs: IntArray
    outputs: IntArray
    times: FloatArray
    errors: FloatArray

    @classmethod
    def of(cls, kernel: Kernel, entries: Iterable[tuple[int, int, float, float]]) -> Surface:
        """From (inputs, outputs, milliseconds, standard error).

        Raises:
            ValueError: If the entries are not a full grid, each once.
        """
        rows = {(1 if kernel.square else i, o): (ms, error) for i, o, ms, error in entries}
        inputs, outputs = (np.unique([key[axis] for key in rows]).astype(np.int64) for axis in (0, 1))
        if len(rows) != len(inputs) * len(outputs):
            raise ValueError(
                f"the entries of a kernel must form a full grid, but {kernel.label!r} has {len(rows)} entries for "
                f"{len(inputs)} x {len(outputs)} widths: measure it again, or go on with the interrupted measurement"
            )
        values = np.asarray([[rows[int(i), int(o)] for o in outputs] for i in inputs], dtype=np.float64)
        return cls(kernel, inputs, outputs, values[..., 0], values[..., 1])

    def at(self, inputs: IntArray, outputs: IntArray) -> FloatArray:
        """[K] milliseconds at [K] widths.

        Raises:
            MissingProfileEntry: If a width lies outside the measured range.
        """
        inputs = np.ones_like(inputs) if self.kernel.square else inputs
        self._check("inputs", self.inputs, inputs)
        self._check("outputs", self.outputs, outputs)
        return np.asarray(self._dense[inputs - self.inputs[0], outputs - self.outputs[0]])

    def error_at(self, inputs: int, outputs: int) -> float:
        """Standard error in milliseconds: of the measurement, and between measured widths of interpolation too."""
        inputs = 1 if self.kernel.square else inputs
        row = int(np.abs(self.inputs - inputs).argmin())
        column = int(np.abs(self.outputs - outputs).argmin())
        measured = float(self.errors[row, column])
        if self.inputs[row] == inputs and self.outputs[column] == outputs:
            return measured
        time = float(self.at(np.asarray([inputs]), np.asarray([outputs]))[0])
        return float(np.hypot(measured, self.interpolation_error * time))

    @cached_property
    def interpolation_error(self) -> float:
        """Relative error of interpolation: root mean square over measured widths, each predicted by its neighbours."""
        left_out = [relative for _, _, relative in self.left_out()]
        return float(np.sqrt(np.mean(np.square(left_out)))) if left_out else 0.0

    def left_out(self) -> list[tuple[int, int, float]]:
        """(axis, index, relative error) of each inner line of the grid when predicted by the lines beside it."""
        found: list[tuple[int, int, float]] = []
        for axis, knots in enumerate((self.inputs, self.outputs)):
            lines = np.moveaxis(self.times, axis, 0)
            for k in range(1, len(knots) - 1):
                share = (knots[k] - knots[k - 1]) / (knots[k + 1] - knots[k - 1])
                guess = lines[k - 1] + share * (lines[k + 1] - lines[k - 1])
                scale = np.maximum(lines[k], NEGLIGIBLE_MS)
                found.append((axis, k, float(np.sqrt(np.mean(((guess - lines[k]) / scale) ** 2)))))
        return found

    @cached_property
    def _dense(self) -> FloatArray:
        """Times at every integer width of the range: look-ups are what a search does all day."""
        wide = _stretch(self.times, self.inputs, axis=0)
        return _stretch(wide, self.outputs, axis=1)

    def _check(self, side: str, knots: IntArray, asked: IntArray) -> None:
        if len(asked) and (asked.min() < knots[0] or asked.max() > knots[-1]):
            wrong = int(asked.min()) if asked.min() < knots[0] else int(asked.max())
            raise MissingProfileEntry(
                f"a profile answers only inside its measured range, but {self.kernel.label!r} is asked for "
                f"{side}={wrong}, measured are {knots[0]} to {knots[-1]}: add what is missing with "
                "`amc profile measure --task TASK --out PROFILE`, with --attention as in the search"
            )


def _stretch(values: FloatArray, knots: IntArray, axis: int) -> FloatArray:
    """Linear interpolation along one axis to every integer between the first and the last knot."""
    every = np.arange(knots[0], knots[-1] + 1)
    upper = np.clip(np.searchsorted(knots, every), 1, max(1, len(knots) - 1))
    if len(knots) == 1:
        return values
    share = (every - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
    low, high = np.take(values, upper - 1, axis=axis), np.take(values, upper, axis=axis)
    return np.asarray(low + np.expand_dims(share, 1 - axis) * (high - low))
