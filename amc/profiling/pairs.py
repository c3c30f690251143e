"""Two networks timed in turn: how much longer one takes than the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hw_profiles.passes import Record
from hw_profiles.rounds import Timed, block_runs, interleaved, others_ready, standard_error

MIN_ROUNDS, MAX_ROUNDS = 21, 101
PRECISION = 0.004
"""Relative standard error of the ratio at which the rounds end."""
BLOCK_SECONDS, MIN_RUNS = 2e-3, 2
"""How long a block of runs of one network lasts, and how many runs it has at least."""


class PairTiming(NamedTuple):
    """Two networks timed in turn.

    Attributes:
        ratio: Median of one's time over the other's.
        other_ms: Median of the other one's, in milliseconds.
        n: Rounds.
        variance: Of the rounds' ratios.
        others: Programs beside this one that were ready to run, median over the rounds; None if unknown.
    """

    ratio: float
    other_ms: float
    n: int
    variance: float
    others: float | None

    def record(self) -> Record:
        """The same as a record of `passes`; the other network is the yardstick."""
        return {
            "n": self.n,
            "median_ms": self.ratio,
            "variance": self.variance,
            "yardstick_ms": self.other_ms,
            "others": self.others,
        }


def time_pair(
    one: Timed,
    other: Timed,
    others: Callable[[], float | None] = others_ready,
    max_rounds: int = MAX_ROUNDS,
) -> PairTiming:
    """Times two networks in turn, until the ratio of their times is known well enough.

    Args:
        one: A network.
        other: The network that it is compared with.
        others: Tells how many other programs are ready to run now.
        max_rounds: Rounds at most.
    """

    def enough(seconds: Any) -> bool:
        if len(seconds) < MIN_ROUNDS:
            return False
        ratios = seconds[:, 0] / seconds[:, 1]
        return standard_error(ratios) < PRECISION * float(np.median(ratios))

    runs = [block_runs(graph, BLOCK_SECONDS, MIN_RUNS) for graph in (one, other)]
    found = interleaved((one, other), runs, max_rounds, enough, others)
    ratios = found.seconds[:, 0] / found.seconds[:, 1]
    return PairTiming(
        ratio=float(np.median(ratios)),
        other_ms=1e3 * float(np.median(found.seconds[:, 1])),
        n=len(ratios),
        variance=float(ratios.var()),
        others=found.usual_others(),
    )
