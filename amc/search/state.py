"""Where a search stands: the episodes so far while it runs, and the snapshot after a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.searcher import Searcher, SearcherState
from amc.pool.pool import Timing
from amc.problem.prepare import Prepared
from amc.search.episode import Episode, Line
from envs.space.assignment import Key
from hw_profiles.documents import one_line, shown


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
        sites = prepared.setup.sites
        for key in (*self.starts.values(), *(line.key for line in self.lines)):
            if len(key) != len(sites) or not all(
                0 <= value <= site.size for site, value in zip(sites, key, strict=True)
            ):
                raise ValueError(
                    f"an episode must decide {len(sites)} sites within their sizes, but one of the run's has "
                    f"{shown(list(key))}: start a new run"
                )
        return self

    @property
    def best(self) -> Episode:
        """The episode of the highest reward, the first one on a tie."""
        return max(self.episodes, key=lambda episode: episode.reward)


def _load(searcher: Searcher, state: SearcherState) -> None:
    """Puts a searcher where an earlier process had it.

    Raises:
        ValueError: If the state is not one of this searcher.
    """
    try:
        searcher.load(state)
    except Exception as error:  # numpy and torch raise many kinds for arrays that are missing or do not fit
        raise ValueError(
            "a run goes on with what its searcher had learned, but the snapshot does not fit it "
            f"({type(error).__name__}: {one_line(error)}): start a new run"
        ) from error


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
        _load(searcher, snapshot.searcher)
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
