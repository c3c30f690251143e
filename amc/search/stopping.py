"""When a search ends: episodes, effort, patience or time; and what a search without success says."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amc.config.search import SearchConfig
from amc.problem.prepare import Prepared
from amc.scoring.racing import bar
from amc.search.episode import Episode, Failure, Line
from amc.search.result import Stopped
from amc.search.state import Progress, Snapshot
from envs.reward import Evaluation

CONFIRMING = 2.0
"""Time of an image-forward of confirmation (fp32, full repair) over that of an episode, about."""
MAX_FAILURES = 8
"""A search whose first so many evaluations all fail ends there."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of search, over all processes and in this one.

    Attributes:
        began: When this process began.
        before: Seconds in earlier processes.
    """

    began: float
    before: float

    @classmethod
    def started(cls, snapshot: Snapshot | None) -> Clock:
        """A clock that goes on where an earlier process stopped."""
        return cls(time.perf_counter(), snapshot.elapsed if snapshot else 0.0)

    def elapsed(self) -> float:
        """Seconds over all processes."""
        return self.before + self.here()

    def here(self) -> float:
        """Seconds in this process."""
        return time.perf_counter() - self.began

    def left(self, config: SearchConfig) -> float:
        """Seconds until the search should end, infinite without a limit."""
        return math.inf if config.max_minutes is None else 60 * config.max_minutes - self.here()


def reason_to_stop(prepared: Prepared, played: Progress, clock: Clock) -> Stopped | None:
    """Why no other round begins."""
    config = prepared.config
    episodes = len(played.lines)
    if episodes >= config.planned_episodes:
        return "episodes"
    savings = config.savings
    if savings.patience is not None and _idle(played.lines) >= savings.patience * config.round_size:
        return "patience"
    if config.effort is not None:
        # Remembered policies are free, but a search that proposes nothing new any more must end as well.
        at_least = episodes * (savings.images or len(prepared.measurement.images))
        if max(prepared.ledger.image_forwards + prepared.confirmation_forwards(), at_least) >= config.effort:
            return "effort"
    # The clock is the one exception to "time decides nothing"; a resumed run gets its minutes again.
    if episodes and _confirming(prepared, played) >= clock.left(config):
        return "time"
    return None


def bar_to_pass(prepared: Prepared, lines: Sequence[Line]) -> Evaluation | None:
    """Which evaluation a policy must beat to be confirmed, where images are saved."""
    if prepared.config.savings.images is None:
        return None
    distinct = {line.key: (line.reward, line.evaluation) for line in reversed(lines) if isinstance(line, Episode)}
    return bar(list(distinct.values()), prepared.config.confirm, len(prepared.measurement.images))


def check_success(lines: Sequence[Line], planned: int) -> None:
    """Stops a search none of whose evaluations succeeds.

    Raises:
        ValueError: With the reason of the last one.
    """
    if len(lines) >= min(planned, MAX_FAILURES) and all(isinstance(line, Failure) for line in lines):
        raise _all_failed(lines)


def successful(prepared: Prepared, lines: Sequence[Line]) -> list[Episode]:
    """The episodes that did not fail.

    Raises:
        ValueError: If there is none.
    """
    episodes = [line for line in lines if isinstance(line, Episode)]
    if not lines:
        raise ValueError(
            f"an effort must leave room for an episode, but of {prepared.config.effort:,} image-forwards preparation "
            f"took {prepared.ledger.image_forwards:,} and confirmation may take {prepared.confirmation_forwards():,}: "
            "raise it, or lower compression.images or knapsack.images"
        )
    if not episodes:
        raise _all_failed(lines)
    return episodes


def _confirming(prepared: Prepared, played: Progress) -> float:
    """Seconds that confirmation will presumably take, by what the episodes took."""
    known = [
        (line.evaluation.image_forwards, timing.seconds)
        for line, timing in zip(played.lines, played.timings, strict=True)
        if isinstance(line, Episode) and line.evaluation.image_forwards
    ]
    if not known:
        return 0.0
    forwards, seconds = (sum(column) for column in zip(*known, strict=True))
    return float(CONFIRMING * prepared.confirmation_forwards() * seconds / forwards)


def _idle(lines: Sequence[Line]) -> int:
    """Episodes since the best one."""
    rewards = [line.reward if isinstance(line, Episode) else -math.inf for line in lines]
    return len(rewards) - 1 - int(np.argmax(rewards)) if rewards else 0


def _all_failed(lines: Sequence[Line]) -> ValueError:
    reason = lines[-1].reason if isinstance(lines[-1], Failure) else ""
    return ValueError(f"some evaluation must succeed, but all {len(lines)} failed, the last because: {reason}")
