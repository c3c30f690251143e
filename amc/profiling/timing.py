"""Times of networks side by side, with their spread, and what has to be said of them in words."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from amc.profiling.runtimes import make_runtime
from amc.profiling.setting import Setting
from envs.network.inputs import Inputs
from hw_profiles.rounds import Timed, interleaved, others_ready

MIN_ROUNDS = 3
FEW_ROUNDS = 7
"""Fewer rounds than this are remarked on."""
SCATTER = 0.05
"""Median absolute deviation over median from which on a time is said to scatter."""

BY_LATENCY = "a budget of measured latency (`--constraint latency=0.7 --profile FILE`)"
BY_WIDTH = "widths that the runtime's kernels take (`--round-to 8`)"
LESS = "a lower budget"
"""What may make a pruned network faster than dense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one run of a network takes, over interleaved rounds.

    Attributes:
        median_ms: Median of the rounds, in milliseconds.
        mad_ms: Median absolute deviation of the rounds from it, in milliseconds.
        rounds: Rounds timed.
        others: Programs beside this one that were ready to run, median over the rounds; None where the platform
            does not tell.
    """

    median_ms: float
    mad_ms: float
    rounds: int
    others: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float], others: Sequence[float] = ()) -> Timing:
        """From the rounds' [N] seconds per run, and how many other programs were ready to run at [M] times."""
        median = statistics.median(seconds)
        deviation = statistics.median(abs(value - median) for value in seconds)
        return cls(
            median_ms=1e3 * median,
            mad_ms=1e3 * deviation,
            rounds=len(seconds),
            others=statistics.median(others) if others else None,
        )

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ± {self.mad_ms:.3f}"

    def spread(self) -> dict[str, Any]:
        """What `result.json` holds beside the median."""
        return {name: value for name, value in asdict(self).items() if name != "median_ms"}


def side_by_side(
    graphs: Mapping[str, Timed],
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    others: Callable[[], float | None] = others_ready,
) -> dict[str, Timing]:
    """Times several networks together, so that whatever else the machine does falls on all of them alike.

    After a warm-up every round times one block of runs of each, in alternating order.

    Args:
        graphs: Name -> what is timed.
        rounds: Blocks of each at most; fewer (but 3) when the time is up.
        seconds: Time spent, roughly.
        clock: Seconds.
        others: How many other programs are ready to run now, None if unknown.

    Returns:
        Name -> median, spread and number of rounds.
    """
    single = {name: _warm_up(graph, seconds / 10 / len(graphs), clock) for name, graph in graphs.items()}
    share = {name: max(1, int(0.9 * seconds / rounds / len(graphs) / single[name])) for name in graphs}
    until = clock() + 0.9 * seconds
    names = sorted(graphs)
    found = interleaved(
        [graphs[name] for name in names],
        [share[name] for name in names],
        rounds,
        lambda blocks: len(blocks) >= MIN_ROUNDS and clock() > until,
        others,
    )
    return {name: Timing.of(found.seconds[:, names.index(name)].tolist(), found.others) for name in graphs}


def timing_remarks(
    timings: Mapping[str, Timing],
    pruned: str,
    *,
    threads: int = 1,
    cores: int | None = None,
    cures: Sequence[str] = (BY_LATENCY, BY_WIDTH),
) -> tuple[str, ...]:
    """What a reader of the times has to know, one sentence each.

    Args:
        timings: Name -> times, "dense" among them.
        pruned: The network that should be faster than "dense".
        threads: Threads that a network ran on.
        cores: Cores of the machine; None: of this one.
        cures: What to search with where it is not, at least one.
    """
    said = (
        _busy(timings.values(), threads, cores or os.cpu_count() or 1),
        _scattered(timings),
        _few(timings.values()),
        _not_faster(timings, pruned, cures),
    )
    return tuple(sentence for sentence in said if sentence)


def faster(one: Timing, other: Timing) -> bool:
    """Whether the medians differ by more than both median absolute deviations together."""
    return other.median_ms - one.median_ms > one.mad_ms + other.mad_ms


def rounds_in_words(rounds: Sequence[int]) -> str:
    """Under a table: what the figures beside ± are, and over how many rounds."""
    low, high = min(rounds), max(rounds)
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"onnxruntime, median ± median absolute deviation of {count} interleaved rounds"


def _busy(timings: Iterable[Timing], threads: int, cores: int) -> str:
    beside = max((timing.others for timing in timings if timing.others is not None), default=0.0)
    if beside + threads <= cores:
        return ""
    return (
        f"The machine was busy while networks were timed ({beside:g} other programs ready to run beside {threads} "
        f"thread{'s' * (threads > 1)} on {cores} cores): `amc apply` times them again when it is quiet."
    )


def _scattered(timings: Mapping[str, Timing]) -> str:
    wide = {name: t.mad_ms / t.median_ms for name, t in timings.items() if t.mad_ms > SCATTER * t.median_ms}
    if not wide:
        return ""
    which = ", ".join(f"{name} by {share:.0%}" for name, share in wide.items())
    return (
        f"Times scatter (median absolute deviation over median above {SCATTER:.0%}: {which}): "
        "`amc apply` times them again when the machine is quiet."
    )


def _few(timings: Iterable[Timing]) -> str:
    rounds = min((timing.rounds for timing in timings), default=FEW_ROUNDS)
    return "" if rounds >= FEW_ROUNDS else f"Only {rounds} rounds were timed, so the spread says little."


def _not_faster(timings: Mapping[str, Timing], pruned: str, cures: Iterable[str]) -> str:
    if not {"dense", pruned} <= timings.keys() or faster(timings[pruned], timings["dense"]):
        return ""
    mine, dense = timings[pruned], timings["dense"]
    verdict = "is slower than dense" if faster(dense, mine) else "is not faster than dense by more than the spread"
    return (
        f"{pruned} {verdict} ({mine} against {dense} ms; the medians must differ by more than both deviations "
        f"together): search with {' or '.join(cures)}."
    )


def _warm_up(graph: Timed, seconds: float, clock: Callable[[], float]) -> float:
    """Runs at least twice, for a while; the seconds that one run took after the first."""
    graph.seconds(1)
    began = clock()
    times = [graph.seconds(1)]
    while clock() - began < seconds:
        times.append(graph.seconds(1))
    return statistics.fmean(times)


def latency_ms(
    networks: Mapping[str, nn.Module],
    example_input: Inputs,
    *,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 40,
    seconds: float,
) -> dict[str, Timing]:
    """Latency in onnxruntime, all networks timed side by side (`timing.side_by_side`).

    Args:
        networks: Name -> network.
        example_input: Input of batch 1.
        threads: Threads within an operator.
        batch: Images per run.
        rounds: Blocks per network at most; fewer (but 3) when the time is up.
        seconds: Time spent measuring, roughly; exporting comes on top.

    Returns:
        Name -> milliseconds per run: median, median absolute deviation, number of rounds.

    Raises:
        ValueError: If a network cannot be exported.
    """
    runtime = make_runtime(Setting(threads=threads, batch=batch))
    graphs = {name: runtime.network(network, example_input) for name, network in networks.items()}
    return side_by_side(graphs, rounds=rounds, seconds=seconds)
