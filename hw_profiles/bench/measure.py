"""Fills a table: grids first, refined where the curve bends, each time with its parts taken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from hw_profiles.bench.plan import Reach, first_knots, probes, refined, with_parts
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.profile import Disturbance, Entry
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.surface import Surface
from hw_profiles.passes import AGAIN_MINUTES, TrustLimits, settle

Raw = dict[str, Any]
"""What `rounds.measure` returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How carefully is measured.

    Attributes:
        knots: Widths per axis at first.
        tolerance: Maximum relative error of a line predicted by its neighbours before more lines are measured.
        max_rounds: Rounds of refinement.
        max_entries: Entries (no refinement beyond; the first grid is always measured).
        max_minutes: No refinement after this long.
        confidence: Relative standard error of each entry.
        max_blocks: Blocks per entry.
        again_minutes: Time for timing disturbed entries again.
        keep_disturbed: Whether to store what stays too disturbed to be trusted.
    """

    knots: int = 5
    tolerance: float = 0.03
    max_rounds: int = 4
    max_entries: int = 2000
    max_minutes: float = 15.0
    confidence: float = 0.005
    max_blocks: int = 61
    again_minutes: float = AGAIN_MINUTES
    keep_disturbed: bool = False


COARSE = MeasureOptions(
    knots=4, tolerance=0.1, max_rounds=1, max_entries=400, max_minutes=2.0, confidence=0.02, max_blocks=21
)


@dataclass(slots=True)
class TableBuilder:
    """Measured entries, and the measuring of what is missing.

    Attributes:
        execution: Of the runtime.
        time: Times one probe (with its parts).
        known: Entries of a profile that is added to.
        timed: Raw records of this session.
        progress: Called with (entries done, entries planned).
        repeated: The same for disturbed entries that are timed again.
    """

    execution: Execution
    time: Callable[[Probe], Raw]
    known: Mapping[Probe, Entry] = field(default_factory=dict)
    timed: dict[Probe, Raw] = field(default_factory=dict)
    progress: Callable[[int, int], None] = lambda done, planned: None
    repeated: Callable[[int, int], None] = lambda done, planned: None
    _surfaces: dict[Kernel, Surface] = field(default_factory=dict)

    def cover(self, reaches: Mapping[Kernel, Reach], options: MeasureOptions) -> None:
        """Measures what a network needs and is not yet known.

        Args:
            reaches: Kernels and widths of the network (`plan.reachable`).
            options: How carefully.
        """
        until = monotonic() + 60 * options.max_minutes
        needed = with_parts(reaches, self.execution)
        grids = {kernel: self._grid(kernel, reach, options.knots) for kernel, reach in needed.items()}
        self.take(_missing(grids, self))
        for _ in range(options.max_rounds):
            finer = {
                kernel: refined(self.surface(kernel), needed[kernel], options.tolerance)
                for kernel in grids
                if kernel.op != "sink"
            }
            grids |= {kernel: grids[kernel] | knots for kernel, knots in finer.items()}
            wanted = _missing(grids, self)
            if not wanted or monotonic() > until or len(self.timed) + len(wanted) > options.max_entries:
                break
            self.take(wanted)

    def take(self, wanted: Sequence[Probe]) -> None:
        """Measures probes, parts before what contains them."""
        planned = len(self.timed) + len(wanted)
        for probe in wanted:
            self.timed[probe] = self.time(probe)
            self._surfaces.pop(probe.kernel, None)
            self.progress(len(self.timed), planned)

    def settle(
        self,
        again: Callable[[Probe], Raw],
        limits: TrustLimits,
        seconds: float,
        earlier: Sequence[tuple[Probe, Raw]] = (),
    ) -> Disturbance | None:
        """Times once more what was disturbed (`passes.settle`); None if nothing was timed.

        Args:
            again: Times a probe again.
            limits: When a record counts as disturbed.
            seconds: Time to spend at most.
            earlier: What an interrupted process has timed again.
        """
        if not self.timed:
            return None
        timed, records = list(self.timed), list(self.timed.values())
        index = {probe: k for k, probe in enumerate(timed)}
        known = [(index[probe], raw) for probe, raw in earlier if probe in index]
        found = settle(
            records,
            lambda k: again(timed[k]),
            limits,
            seconds=seconds,
            earlier=known,
            report=lambda what, done, planned, left: self.repeated(done, planned),
        )
        self.timed.update(zip(timed, records, strict=True))
        self._surfaces.clear()
        return Disturbance(**found)

    def entries(self, session: int) -> dict[Probe, Entry]:
        """Everything that is known, as it stands in a profile; new entries belong to `session`."""
        new = {probe: self._entry(probe, raw, session) for probe, raw in self.timed.items()}
        return dict(self.known) | new

    def surface(self, kernel: Kernel) -> Surface:
        """What is known of a kernel, parts taken off."""
        if kernel not in self._surfaces:
            rows = [(p.inputs, p.outputs, e.median_ms, 0.0) for p, e in self.known.items() if p.kernel == kernel]
            rows += [
                (p.inputs, p.outputs, max(0.0, r["median_ms"] - self._rest(p)) / _cells(p), 0.0)
                for p, r in self.timed.items()
                if p.kernel == kernel
            ]
            self._surfaces[kernel] = Surface.of(kernel, rows)
        return self._surfaces[kernel]

    def _grid(self, kernel: Kernel, reach: Reach, knots: int) -> Reach:
        """The grid that is measured first: what is known already, and evenly spaced widths that lie outside of it."""
        first = Reach(first_knots(reach.inputs, knots), first_knots(reach.outputs, knots))
        known = [p for p in self.known if p.kernel == kernel]
        if not known:
            return first
        have = Reach(
            (1,) if kernel.square else tuple(sorted({p.inputs for p in known})),
            tuple(sorted({p.outputs for p in known})),
        )
        return have | Reach(_outside(have.inputs, first.inputs), _outside(have.outputs, first.outputs))

    def _rest(self, probe: Probe) -> float:
        """Milliseconds of the other parts in each copy of a probe's graph."""
        rest = 0.0
        for part in self.execution.parts(probe):
            surface = self.surface(part.kernel)
            width = int(np.clip(part.outputs, surface.outputs[0], surface.outputs[-1]))
            rest += float(surface.at(np.asarray([part.inputs]), np.asarray([width]))[0])
        return rest

    def _entry(self, probe: Probe, raw: Raw, session: int) -> Entry:
        rest = self._rest(probe)
        cells = _cells(probe)
        times = {name: _short(max(0.0, raw[name] - rest) / cells) for name in ("median_ms", "mean_ms", "p95_ms")}
        return Entry(
            inputs=probe.inputs,
            outputs=probe.outputs,
            n=raw["n"],
            variance=_short(raw["variance"] / cells**2),
            yardstick_ms=_short(raw["yardstick_ms"]),
            session=session,
            **times,
        )


def _missing(grids: Mapping[Kernel, Reach], builder: TableBuilder) -> list[Probe]:
    every = [probe for kernel, knots in grids.items() for probe in probes(kernel, knots)]
    return [probe for probe in every if probe not in builder.known and probe not in builder.timed]


def _outside(known: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(width for width in wanted if not known or not known[0] <= width <= known[-1])


def _cells(probe: Probe) -> int:
    """Such a cell moves the tensor twice."""
    return 2 if probe.kernel.op in ("copy", "concat") else 1


def _short(value: float) -> float:
    """Six significant digits: more are noise, and files stay readable."""
    return float(f"{value:.6g}")
