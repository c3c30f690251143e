"""How well a profile predicts whole networks: random pruned ones, timed alternating with the dense one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from amc.export.onnx import onnx_bytes
from amc.profiling.bench import Setting
from amc.profiling.timing import Timing
from envs.units.anatomy import Anatomy
from envs.units.slicing import slice_network
from hw_profiles.bench.device_script import Graph, block_seconds, median_known, now, others_ready, standard_error
from hw_profiles.latency.profile import Correction, Disturbance, Profile
from hw_profiles.latency.table import LatencyTable, network_digest
from hw_profiles.layers import IntArray
from hw_profiles.passes import AGAIN, AGAIN_MINUTES, FIRST, Journal, Law, Record, check_trust, in_passes

FloatArray = NDArray[np.float64]

POOL = 4000
"""Random networks among which those at evenly spread latencies are picked."""
FEWEST = 8
FEWEST_ROUNDS, MOST_ROUNDS, PRECISION = 21, 101, 0.004
FEWEST_RUNS, BLOCK_SECONDS = 2, 2e-3
SCATTER = 0.02
"""Standard error of a network's time over it from which on it is timed again."""
STEPS = {FIRST: "timing networks", AGAIN: "timing disturbed ones again"}

Progress = Callable[[str, int, int], None]


class Alternation(NamedTuple):
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


@dataclass(frozen=True, slots=True)
class Care:
    """What is done about networks during which the machine was disturbed.

    Attributes:
        journal: File that holds every timed network until the check is stored; None: nowhere.
        again_minutes: Time for timing disturbed ones again.
        keep_disturbed: Whether to go on with what stays too disturbed to be trusted.
    """

    journal: Path | None = None
    again_minutes: float = AGAIN_MINUTES
    keep_disturbed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found.

    Attributes:
        predicted: [N] milliseconds by the table, uncorrected.
        measured: [N] milliseconds of the whole networks, drift taken out.
        held_out: [N] corrected predictions, each by the correction fitted on the other half.
        correction: Fitted on all of them, with the held-out error.
        dense: The dense network's time, a round being its median beside one network; None if not known.
    """

    predicted: FloatArray
    measured: FloatArray
    held_out: FloatArray
    correction: Correction
    dense: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        c = self.correction
        columns = zip(self.predicted.tolist(), self.held_out.tolist(), self.measured.tolist(), strict=True)
        return {
            "task": c.task,
            "networks": c.networks,
            "median_relative_error": c.median_relative_error,
            "p95_relative_error": c.p95_relative_error,
            "spearman": c.spearman,
            "intercept_ms": c.intercept_ms,
            "slope": c.slope,
            "dense_ms": c.dense_ms,
            "dense_spread": self.dense.spread() if self.dense is not None else None,
            "disturbed": c.disturbed.model_dump() if c.disturbed is not None else None,
            "points": [{"predicted_ms": p, "held_out_ms": h, "measured_ms": m} for p, h, m in columns],
        }


def check_profile(
    profile: Profile,
    title: str,
    task: str,
    network: nn.Module,
    example: Tensor,
    anatomy: Anatomy,
    count: int,
    progress: Progress = lambda what, done, total: None,
    seed: int = 0,
    care: Care = Care(),
    timer: Callable[[Any, Any], Alternation] | None = None,
) -> Checked:
    """Times random pruned networks whole and compares.

    Args:
        profile: The profile; its own corrections are not used.
        title: Its name, for messages.
        task: The task's name, stored with the correction.
        network: The dense network.
        example: [1, ...] input.
        anatomy: Its units and layouts.
        count: Networks to time.
        progress: Told what is done.
        seed: Of the random networks.
        care: What is done about disturbed ones.
        timer: Times a network and the dense one in turn; None: `alternate`.

    Raises:
        ValueError: If fewer networks are asked for than a fit on halves needs, an entry is missing, or too many
            networks stay disturbed.
    """
    if count < FEWEST:
        raise ValueError(f"--networks must be at least {FEWEST}, since a half of them fits the correction, got {count}")
    table = LatencyTable(profile.model_copy(update={"corrections": []}), title)
    kept = spread_networks(table, anatomy, count, seed)
    predicted = table.many(anatomy.family.dense, anatomy.family.widths(kept))
    setting = Setting(runtime=profile.runtime, threads=profile.threads, batch=profile.batch, dtype=profile.dtype)
    dense = whole_network(network, example, setting)

    def timed(index: int) -> Record:
        widths = dict(zip(anatomy.family.units, kept[index].tolist(), strict=True))
        small = whole_network(sliced(network, anatomy, widths), example, setting)
        return (timer or alternate)(small, dense).record()

    digest = network_digest(anatomy.family.dense)
    header = {"network": digest, "sessions": len(profile.sessions), "kept": kept.tolist()}
    law = Law(profile.sessions[0].device.cores - profile.threads, SCATTER)
    records, found = in_passes(
        timed,
        count,
        Journal(care.journal, header),
        law,
        seconds=60 * care.again_minutes,
        report=lambda what, done, total, left: progress(STEPS[what], done, total),
    )
    if not care.keep_disturbed:
        check_trust(found, "networks")
    dense_time = Timing.of([1e-3 * record["yardstick_ms"] for record in records])
    measured = dense_time.median_ms * np.asarray([record["median_ms"] for record in records])
    judged = judge(predicted, measured, dense_time.median_ms, task, digest, Disturbance(**found))
    return replace(judged, dense=dense_time)


def judge(
    predicted: FloatArray,
    measured: FloatArray,
    dense_ms: float,
    task: str,
    network: str,
    disturbed: Disturbance | None = None,
) -> Checked:
    """Fits the correction on each half and judges it on the other."""
    held_out = np.zeros(len(predicted))
    for half in (0, 1):
        fit = np.arange(len(predicted)) % 2 == half
        intercept, slope = fit_correction(predicted[fit], measured[fit])
        held_out[~fit] = intercept + slope * predicted[~fit]
    errors = np.abs(held_out / measured - 1)
    intercept, slope = fit_correction(predicted, measured)
    correction = Correction(
        network=network,
        task=task,
        intercept_ms=intercept,
        slope=slope,
        networks=len(predicted),
        median_relative_error=float(np.median(errors)),
        p95_relative_error=float(np.quantile(errors, 0.95)),
        spearman=float(spearmanr(held_out, measured).statistic),
        dense_ms=dense_ms,
        date=now(),
        disturbed=disturbed,
    )
    return Checked(predicted=predicted, measured=measured, held_out=held_out, correction=correction)


def fit_correction(predicted: FloatArray, measured: FloatArray) -> tuple[float, float]:
    """Intercept and slope of least squared *relative* error.

    Raises:
        ValueError: If longer predictions go with shorter times.
    """
    columns = np.stack([np.ones(len(predicted)), predicted], axis=1) / measured[:, None]
    intercept, slope = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)[0]
    if not slope > 0:
        raise ValueError(
            f"measured latencies must grow with predicted ones, but the fitted slope is {slope:.3g}: measure again on "
            "a quiet machine, with more --networks"
        )
    return float(intercept), float(slope)


def spread_networks(table: LatencyTable, anatomy: Anatomy, count: int, seed: int) -> IntArray:
    """[count, U] random widths whose predicted latencies are spread evenly from the lightest to the dense network."""
    family, generator = anatomy.family, np.random.default_rng([seed, count])
    granules = {unit.name: unit.granule for unit in anatomy.units}
    steps = np.asarray([granules[name] for name in family.units], dtype=np.int64)
    most = family.channels // steps
    level = generator.uniform(0, 1, size=(POOL, 1))
    share = np.clip(level * generator.uniform(0.5, 1.5, size=(POOL, len(most))), 0, 1)
    pool = np.maximum(1, np.round(share * most)).astype(np.int64) * steps
    pool = np.concatenate([pool, steps[None, :], family.channels[None, :]])
    costs = table.many(family.dense, family.widths(pool))
    picks: list[int] = []
    for target in np.linspace(costs.min(), costs[-1], count):
        distance = np.abs(costs - target)
        distance[picks] = np.inf
        picks.append(int(distance.argmin()))
    shuffled = np.random.default_rng(seed).permutation(picks)  # drift of the clock must not look like size
    return np.asarray(pool[shuffled], dtype=np.int64)


def sliced(network: nn.Module, anatomy: Anatomy, kept: Mapping[str, int]) -> nn.Module:
    """The network with the first channels of each unit (which ones stay does not matter for latency)."""
    channels = {
        unit.name: sorted(c for granule in unit.granules[: kept[unit.name] // unit.granule] for c in granule)
        for unit in anatomy.units
    }
    return slice_network(network, anatomy.units, channels)


def whole_network(network: nn.Module, example: Tensor, setting: Setting) -> Any:
    """A whole network that can be timed."""
    if setting.runtime == "torch":
        from amc.profiling.torch_bench import torch_network

        return torch_network(network, example, setting)
    if setting.dtype != "fp32":
        raise ValueError("whole networks run in onnxruntime in fp32 only: check other dtypes through torch")
    feed = example.detach().cpu().repeat(setting.batch, *[1] * (example.ndim - 1)).numpy()
    return Graph(onnx_bytes(network, example), setting.threads, {"input": feed})


def alternate(one: Any, other: Any, others: Callable[[], float | None] = others_ready) -> Alternation:
    """Times two networks in turn; `others` tells how many other programs are ready to run now."""
    graphs, rows, beside = (one, other), list[tuple[float, float]](), list[float | None]()
    for graph in graphs:
        graph.seconds(3)
    runs = [max(FEWEST_RUNS, round(BLOCK_SECONDS / max(graph.seconds(2), 1e-7))) for graph in graphs]
    while len(rows) < MOST_ROUNDS:
        row = [0.0, 0.0]
        beside.append(others())
        for k in (0, 1) if len(rows) % 2 else (1, 0):
            row[k] = block_seconds(graphs[k], runs[k])
        rows.append((row[0], row[1]))
        ratios = np.asarray([x / y for x, y in rows])
        if len(rows) >= FEWEST_ROUNDS and standard_error(ratios) < PRECISION * float(np.median(ratios)):
            break
    return Alternation(
        ratio=float(np.median(ratios)),
        other_ms=1e3 * float(np.median([y for _, y in rows])),
        n=len(rows),
        variance=float(ratios.var()),
        others=median_known(beside),
    )
