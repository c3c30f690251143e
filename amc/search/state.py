"""Where a search stands: the episodes so far while it runs, and the snapshot after a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.searcher import Searcher, SearcherState
from amc.pool.pool import Timing
from amc.problem.prepare import Prepared
from amc.search.episode import Episode, Line
from envs.space.assignment import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A search between two rounds.

    Attributes:
        origin: Fingerprint of everything that determines the episodes (`Prepared.origin`).
        starts: Label -> assignment of the solutions that the searcher started from.
        lines: All episodes so far, failed ones too.
        timings: What each took.
        searcher: What the searcher has learned.
        image_forwards: Paid so far, damage curves and statistics included.
        evaluations: Policies compressed and scored so far.
        elapsed: Seconds of search so far, over all processes.
    """

    origin: str
    starts: Mapping[str, Key]
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

    def checked(self, prepared: Prepared) -> Snapshot:
        """This snapshot, if it is of the same search.

        Raises:
            ValueError: If configuration, weights, images, metric, reward or objects are others than then.
        """
        if self.origin != prepared.origin:
            raise ValueError(
                "a run can only be resumed with the configuration, weights, data, metric, reward and objects that it "
                "began with, but one of them has changed: put it back, or start a new run"
            )
        return self

    @property
    def best(self) -> Episode:
        """The episode of the highest reward, the first one on a tie."""
        return max(self.episodes, key=lambda episode: episode.reward)


@dataclass(slots=True)
class Progress:
    """Episodes played so far, and what each took."""

    lines: list[Line] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    @classmethod
    def restored(cls, snapshot: Snapshot | None, prepared: Prepared, searcher: Searcher) -> Progress:
        """Puts searcher and ledger where an earlier process had them; nothing played without a snapshot."""
        if snapshot is None:
            return cls()
        searcher.load(snapshot.searcher)
        known: dict[Key, Episode] = {}
        for episode in snapshot.episodes:
            known.setdefault(episode.key, episode)
        evaluations = {key: episode.evaluation for key, episode in known.items()}
        prepared.ledger.restore(snapshot.image_forwards, snapshot.evaluations, evaluations)
        return cls(list(snapshot.lines), list(snapshot.timings))

    def add(self, line: Line, timing: Timing) -> None:
        """One more episode."""
        self.lines.append(line)
        self.timings.append(timing)

    def snapshot(
        self, prepared: Prepared, starts: Mapping[str, Key], searcher: SearcherState, elapsed: float
    ) -> Snapshot:
        """Where the search stands now."""
        return Snapshot(
            origin=prepared.origin,
            starts=starts,
            lines=tuple(self.lines),
            timings=tuple(self.timings),
            searcher=searcher,
            image_forwards=prepared.ledger.image_forwards,
            evaluations=prepared.ledger.evaluations,
            elapsed=elapsed,
        )
