"""A run as it goes on, on a console: bars, the best so far, by what arithmetic networks are scored."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from amc.problem.prepare import Prepared
from amc.reporting.live import Live
from amc.reporting.words import agreeing
from amc.search.state import Snapshot


@dataclass(frozen=True, slots=True)
class ConsoleScreen:
    """Shows a run as it goes on."""

    console: Console
    region: Live

    def step(self, what: str, done: int, total: int) -> None:
        """Moves a bar."""
        self.region.step(what, done, total)

    def prepared(self, prepared: Prepared) -> None:
        """Says by what arithmetic networks are scored, if it was chosen now."""
        if (found := prepared.agreement) is None:
            return
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.seconds)
        near = agreeing(prepared.setup.task.metric.measure, found.difference)
        self.console.out(
            f"scoring in {prepared.config.backend.name}: {near} eager fp32 ({took})",
            highlight=False,
        )

    def round(self, snapshot: Snapshot, wanted: int) -> None:
        """Moves the bar of the episodes, with the best so far."""
        self.region.round(snapshot, wanted)
