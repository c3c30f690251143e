"""Fills a table: grids first, refined where the curve bends, each time with its parts taken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from hw_profiles.graphs import Probe, parts
from hw_profiles.kernels import Formats, Kernel
from hw_profiles.plan import Reach, first_knots, probes, refined, with_parts
from hw_profiles.surface import Surface

Raw = dict[str, Any]
"""What `device_script.measure` returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How carefully is measured.

    Attributes:
        knots: Widths per axis at first.
        tolerance: Largest relative error of a line predicted by its neighbours before more lines are measured.
        rounds: Rounds of refinement at most.
        graphs: Entries at most.
        minutes: No refinement after this long.
        confidence: Relative standard error of each entry.
        blocks: Blocks per entry at most.
    """

    knots: int = 5
    tolerance: float = 0.03
    rounds: int = 4
    graphs: int = 2000
    minutes: float = 20.0
    confidence: float = 0.005
    blocks: int = 61


COARSE = Effort(knots=4, tolerance=0.08, rounds=1, graphs=600, minutes=3.0, confidence=0.01, blocks=31)


@dataclass(slots=True)
class Survey:
    """Measured entries, and what is still to be measured.

    Attributes:
        formats: Of the runtime.
        time: Times one probe.
        done: What is known: probe -> net record, as in the profile.
        progress: Called with (entries done, entries planned).
    """

    formats: Formats
    time: Callable[[Probe], Raw]
    done: dict[Probe, Raw] = field(default_factory=dict)
    progress: Callable[[int, int], None] = lambda done, planned: None

    def cover(self, reaches: Mapping[Kernel, Reach], effort: Effort) -> None:
        """Measures what a network needs and is not yet known.

        Args:
            reaches: Kernels and widths of the network (`plan.reachable`).
            effort: How carefully.
        """
        until = monotonic() + 60 * effort.minutes
        needed = with_parts(reaches, self.formats)
        grids = {
            kernel: self._known(kernel) | Reach(*(first_knots(axis, effort.knots) for axis in (r.inputs, r.outputs)))
            for kernel, r in needed.items()
        }
        self._measure(grids, effort.graphs)
        for _ in range(effort.rounds):
            finer = {
                kernel: refined(self.surface(kernel), needed[kernel], effort.tolerance) for kernel in grids
                if kernel.op != "sink"
            }  # fmt: skip
            grids = {kernel: grids[kernel] | finer.get(kernel, grids[kernel]) for kernel in grids}
            if monotonic() > until or not self._measure(grids, effort.graphs):
                break

    def _known(self, kernel: Kernel) -> Reach:
        widths = [probe for probe in self.done if probe.kernel == kernel]
        inputs = {1} if kernel.square and widths else {probe.inputs for probe in widths}
        return Reach(tuple(sorted(inputs)), tuple(sorted({probe.outputs for probe in widths})))

    def _measure(self, grids: Mapping[Kernel, Reach], most: int) -> bool:
        """Measures the missing points of all grids; False if there are none or they would be too many."""
        missing = [p for kernel, knots in grids.items() for p in probes(kernel, knots) if p not in self.done]
        if not missing or len(self.done) + len(missing) > max(most, len(missing) if not self.done else 0):
            return False
        planned = len(self.done) + len(missing)
        for probe in missing:
            self.done[probe] = self._net(probe, self.time(probe))
            self.progress(len(self.done), planned)
        return True

    def _net(self, probe: Probe, raw: Raw) -> Raw:
        """A record with the times of the graph's other parts taken off."""
        rest = 0.0
        for part in parts(probe, self.formats):
            surface = self.surface(part.kernel)
            width = np.clip(part.outputs, surface.outputs[0], surface.outputs[-1])
            rest += float(surface.at(np.asarray([part.inputs]), np.asarray([width]))[0])
        cells = 2 if probe.kernel.op in ("copy", "concat") else 1  # such a cell moves the tensor twice
        net = {name: max(0.0, (raw[name] - rest) / cells) for name in ("median_ms", "mean_ms", "p95_ms")}
        return raw | net | {"variance": raw["variance"] / cells**2}

    def surface(self, kernel: Kernel) -> Surface:
        """What is known of a kernel."""
        entries = [(p.inputs, p.outputs, raw["median_ms"], error_of(raw)) for p, raw in self.done.items()
                   if p.kernel == kernel]  # fmt: skip
        return Surface.of(kernel, entries)


def error_of(raw: Mapping[str, Any]) -> float:
    """Standard error of an entry's median."""
    return float(1.2533 * np.sqrt(raw["variance"] / raw["n"]))
