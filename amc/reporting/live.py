"""Progress on the screen: what is being done, how far, best so far, the reward curve, the time left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live as Region
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from amc.reporting.notebook import NotebookLive
from amc.search.episode import Episode
from amc.search.state import Snapshot

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 60


class Live:
    """Bars, and below them the rewards so far."""

    def __init__(self, progress: Progress, curve: Text, region: Region) -> None:
        """Takes the parts of the screen that it moves."""
        self._progress, self._curve, self._region = progress, curve, region
        self._tasks: dict[str, Any] = {}

    def step(self, what: str, done: int, total: int, note: str = "") -> None:
        """Moves one bar."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done)
        self._progress.update(self._tasks[what], completed=done, total=total, description=what + note)

    def round(self, snapshot: Snapshot, wanted: int) -> None:
        """After each round of a search."""
        played = len(snapshot.lines)
        rewards = [episode.reward for episode in snapshot.episodes]
        best = snapshot.best if rewards else None
        note = f", best {_said(best)} after quick repair, by {best.searcher}" if best else ""
        if len(rewards) < played:
            note += f", {played - len(rewards)} failed"
        self.step("searching", played, max(wanted, played), note)
        if len(rewards) > 1:
            self._curve.plain = f"rewards  {curve(rewards)}  best {max(rewards):.4f}, last {rewards[-1]:.4f}"

    def stop(self) -> None:
        """Leaves the screen to what is printed next."""
        self._region.stop()
        if self._tasks and not (self._region.console.is_terminal or self._region.console.is_jupyter):
            self._region.console.print()  # the last frame ends without a line break there


@contextmanager
def live(console: Console) -> Iterator[Live]:
    """The region of the screen, or of a notebook's cell, that shows progress while the block runs."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    text = Text(style="cyan")
    shown = Group(progress, text)
    with NotebookLive(shown, console) if console.is_jupyter else Region(shown, console=console) as region:
        screen = Live(progress, text, region)
        try:
            yield screen
        finally:
            screen.stop()  # what is said next begins a line


def _said(episode: Episode) -> str:
    found = episode.evaluation
    return f"{found.measure.name} {found.measure.text(found.metric)}"


def curve(rewards: Sequence[float], width: int = WIDTH) -> str:
    """Rewards as a line of blocks: the best of each stretch of episodes, from the worst tenth to the best."""
    values = np.asarray([part.max() for part in np.array_split(np.asarray(rewards), min(width, len(rewards)))])
    low, high = float(np.quantile(values, 0.1)), float(values.max())
    if high <= low:
        return LEVELS[-1] * len(values)
    levels = np.clip((values - low) / (high - low), 0, 1) * (len(LEVELS) - 1)
    return "".join(LEVELS[int(level)] for level in levels.round())
