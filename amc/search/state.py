"""Where a search stands after a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agents.searcher import SearcherState
from amc.rollouts.episode import Episode, Line, Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A search between two rounds.

    Attributes:
        origin: Fingerprint of everything that determines the episodes (`Problem.origin`).
        starts: Label -> [S] kept channels of the solutions that the searcher started from.
        lines: All episodes so far, failed ones too.
        timings: What each took.
        searcher: What the searcher has learned.
        image_forwards: Paid so far, sensitivities and statistics included.
        evaluations: Policies compressed and scored so far.
        elapsed: Seconds of search so far, over all processes.
    """

    origin: str
    starts: Mapping[str, tuple[int, ...]]
    lines: tuple[Line, ...]
    timings: tuple[Timing, ...]
    searcher: SearcherState
    image_forwards: int
    evaluations: int
    elapsed: float

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """Those that did not fail."""
        return tuple(line for line in self.lines if isinstance(line, Episode))

    @property
    def best(self) -> Episode:
        """The episode of the highest reward, the first one on a tie."""
        return max(self.episodes, key=lambda episode: episode.reward)
