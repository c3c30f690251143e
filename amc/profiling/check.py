"""How well a profile predicts whole networks: random pruned ones, timed in turn with the dense one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from amc.profiling.correction import CheckResult, judge
from amc.profiling.networks import network_at, spread_networks
from amc.profiling.pairs import PairTiming, time_pair
from amc.profiling.runtimes import make_runtime
from amc.profiling.setting import Setting
from amc.profiling.timing import Timing
from envs.network.inputs import Inputs
from envs.units.anatomy import Anatomy
from hw_profiles.latency.profile import Disturbance, Profile
from hw_profiles.latency.table import LatencyTable, network_digest
from hw_profiles.layers import IntArray
from hw_profiles.passes import AGAIN, AGAIN_MINUTES, FIRST, Journal, Record, TrustLimits, check_trust, in_passes
from hw_profiles.rounds import Timed

MIN_NETWORKS = 8
"""Networks that a fit on each half needs."""
MAX_SCATTER = 0.02
"""Standard error of a network's time over it above which it is timed again."""
STEPS = {FIRST: "timing networks", AGAIN: "timing disturbed ones again"}

Progress = Callable[[str, int, int], None]
PairTimer = Callable[[Timed, Timed], PairTiming]


@dataclass(frozen=True, slots=True)
class Subject:
    """The network that a profile is checked on.

    Attributes:
        task: The task's name, stored with the correction.
        network: The dense network; it is not changed.
        example: Input of batch 1.
        anatomy: Its units and layouts.
    """

    task: str
    network: nn.Module
    example: Inputs
    anatomy: Anatomy


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How a check is done.

    Attributes:
        networks: Pruned networks to time.
        seed: Of the random networks.
        journal: File that holds every timed network until the check is stored; None: nowhere.
        again_minutes: Time for timing disturbed ones again.
        keep_disturbed: Whether to go on with what stays too disturbed to be trusted.
    """

    networks: int = 30
    seed: int = 0
    journal: Path | None = None
    again_minutes: float = AGAIN_MINUTES
    keep_disturbed: bool = False

    def __post_init__(self) -> None:
        """Refuses too few networks."""
        if self.networks < MIN_NETWORKS:
            raise ValueError(
                f"--networks must be at least {MIN_NETWORKS}, since a half of them fits the correction, "
                f"got {self.networks}"
            )


def check_profile(
    profile: Profile,
    title: str,
    subject: Subject,
    options: CheckOptions,
    progress: Progress = lambda what, done, total: None,
    timer: PairTimer = time_pair,
) -> CheckResult:
    """Times random pruned networks whole and compares with what the profile predicts.

    Args:
        profile: The profile; its own corrections are not used.
        title: Its name, for messages.
        subject: The dense network.
        options: How many networks, and what is done about disturbed ones.
        progress: Told what is done.
        timer: Times a network and the dense one in turn.

    Raises:
        ValueError: If an entry is missing, too many networks stay disturbed, or the fitted slope is not positive.
    """
    family = subject.anatomy.family
    table = LatencyTable(profile.model_copy(update={"corrections": []}), title)
    kept = spread_networks(table, subject.anatomy, options.networks, options.seed)
    predicted = table.many(family.dense, family.widths(kept))
    records, disturbed = _timed_networks(profile, subject, kept, options, progress, timer)
    dense = Timing.of([1e-3 * record["yardstick_ms"] for record in records])
    measured = dense.median_ms * np.asarray([record["median_ms"] for record in records])
    digest = network_digest(family.dense)
    return replace(judge(predicted, measured, dense.median_ms, subject.task, digest, disturbed), dense=dense)


def _timed_networks(
    profile: Profile,
    subject: Subject,
    kept: IntArray,
    options: CheckOptions,
    progress: Progress,
    timer: PairTimer,
) -> tuple[list[Record], Disturbance]:
    """A record of each pruned network, its time over the dense one's, and how disturbed they were.

    Args:
        profile: Says under which setting they run.
        subject: The dense network.
        kept: [N, U] widths of the pruned ones.
        options: What is done about disturbed ones.
        progress: Told what is done.
        timer: Times a network and the dense one in turn.
    """
    anatomy = subject.anatomy
    runtime = make_runtime(Setting.of(profile))
    dense = runtime.network(subject.network, subject.example)

    def timed(index: int) -> Record:
        widths = dict(zip(anatomy.family.units, kept[index].tolist(), strict=True))
        small = network_at(subject.network, anatomy, widths)
        return timer(runtime.network(small, subject.example), dense).record()

    digest = network_digest(anatomy.family.dense)
    header = {"network": digest, "sessions": len(profile.sessions), "kept": kept.tolist()}
    records, found = in_passes(
        timed,
        len(kept),
        Journal(options.journal, header),
        TrustLimits(profile.sessions[0].device.cores - profile.threads, MAX_SCATTER),
        seconds=60 * options.again_minutes,
        report=lambda what, done, total, left: progress(STEPS[what], done, total),
    )
    if not options.keep_disturbed:
        check_trust(found, "networks")
    return records, Disturbance(**found)
