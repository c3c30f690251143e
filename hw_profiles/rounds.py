"""The one timing loop: things timed in turn, round by round, so that what else the machine does falls on all alike.

It travels to devices beside `device_script`, so it needs only Python and numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

BLOCK_SECONDS = 1.5e-3  # one block of runs of one graph
MIN_BLOCKS = 7
MIN_ERROR = 5e-5  # ms: below this a better standard error says nothing about a network
MIN_SECONDS = 1e-7  # what one run is taken to last at least


class Timed(Protocol):
    """What can be timed."""

    def seconds(self, runs: int) -> float:
        """Seconds per run, over a block of runs."""
        ...


class Rounds(NamedTuple):
    """What `interleaved` found.

    Attributes:
        seconds: [N, G] float64 seconds per run of each of G things in each of N rounds.
        others: How many other programs were ready to run at each round's start, where the system tells.
    """

    seconds: Any
    others: list[float]

    def usual_others(self) -> float | None:
        """Median of `others`; None if nothing is known."""
        return float(np.median(self.others)) if self.others else None


def others_ready() -> float | None:
    """Programs beside this one that are ready to run now; None where the system does not tell.

    The load average would not do: it follows a minute late, and holds what this program itself did before.
    """
    try:
        return max(0, int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1)
    except (OSError, ValueError, IndexError):
        return None


def interleaved(
    timed: Sequence[Timed],
    runs: Sequence[int],
    max_rounds: int,
    enough: Callable[[Any], bool],
    others: Callable[[], float | None] = others_ready,
) -> Rounds:
    """Times one block of runs of each in every round, in alternating order.

    Args:
        timed: What is timed.
        runs: How many runs make a block of each.
        max_rounds: Rounds at most.
        enough: Told the [N, G] seconds so far after every round: whether to stop.
        others: Tells how many other programs are ready to run now, None if unknown.
    """
    rows: list[list[float]] = []
    known: list[float] = []
    while len(rows) < max_rounds:
        known += [count for count in [others()] if count is not None]
        row = [0.0] * len(timed)
        for index in sorted(range(len(timed)), reverse=len(rows) % 2 == 0):
            row[index] = _block_seconds(timed[index], runs[index])
        rows.append(row)
        if enough(np.asarray(rows)):
            break
    return Rounds(np.asarray(rows), known)


def _block_seconds(timed: Timed, runs: int) -> float:
    """Seconds per run over a block, after a run that does not count: it finds another graph's weights in the cache."""
    timed.seconds(1)
    return float(timed.seconds(runs))


def block_runs(timed: Timed, seconds: float = BLOCK_SECONDS, min_runs: int = 1) -> int:
    """How many runs make a block of so many seconds; warms up first."""
    timed.seconds(3)
    return max(min_runs, int(seconds / max(timed.seconds(3), MIN_SECONDS) + 0.5))


def standard_error(values: Any) -> float:
    """Standard error of a median, from the quartiles (a busy machine has outliers)."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(1.2533 * (high - low) / 1.349 / np.sqrt(len(values)))


def measure(
    one: Timed,
    many: Timed,
    copies: int,
    yardstick: Timed,
    confidence: float,
    max_blocks: int,
    others: Callable[[], float | None] = others_ready,
) -> dict[str, Any]:
    """Times one entry of a profile: the slope between a small and a large graph, with the yardstick beside them.

    Stops when the standard error of the median slope is below `confidence` of it.

    Args:
        one: The graph with one copy.
        many: The graph with `copies` copies.
        copies: Copies in the larger graph.
        yardstick: The fixed graph.
        confidence: Relative standard error to reach.
        max_blocks: Blocks of each graph at most.
        others: Tells how many other programs are ready to run now.

    Returns:
        n; median, mean, variance and p95 of the slope per copy; what a call takes beside ("overhead_ms"); the
        yardstick's median; all in milliseconds; and the median of `others`.
    """

    def enough(seconds: Any) -> bool:
        if len(seconds) < MIN_BLOCKS or len(seconds) % 2 == 0:
            return False
        slopes = _slopes_ms(seconds, copies)
        return standard_error(slopes) <= max(confidence * float(np.median(slopes)), MIN_ERROR)

    graphs = (one, many, yardstick)
    found = interleaved(graphs, [block_runs(graph) for graph in graphs], max_blocks, enough, others)
    slopes = _slopes_ms(found.seconds, copies)
    return {
        "n": len(slopes),
        "median_ms": max(0.0, float(np.median(slopes))),
        "mean_ms": float(slopes.mean()),
        "variance": float(slopes.var(ddof=1)),
        "p95_ms": float(np.quantile(slopes, 0.95)),
        "overhead_ms": max(0.0, float(np.median(1e3 * found.seconds[:, 0] - slopes))),
        "yardstick_ms": float(np.median(1e3 * found.seconds[:, 2])),
        "others": found.usual_others(),
    }


def _slopes_ms(seconds: Any, copies: int) -> Any:
    """[N] milliseconds of one copy more."""
    return 1e3 * (seconds[:, 1] - seconds[:, 0]) / (copies - 1)
