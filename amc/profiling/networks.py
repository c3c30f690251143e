"""Pruned networks to measure a device with: which widths a network can have, and the network at some of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from envs.units.anatomy import Anatomy
from envs.units.slicing import slice_network
from hw_profiles.bench.plan import Reach, reachable
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import IntArray, Widths

SWEPT_WIDTHS = 96
"""Widths of a unit that are all tried; of wider ones the ends and a random choice."""
MIXED = 1500
"""Random assignments tried, for kernels that only some combinations of widths execute."""
POOL = 4000
"""Random networks among which those at evenly spread latencies are picked."""


def sample_widths(anatomy: Anatomy, round_to: int = 1) -> Widths:
    """Many variants of the network: each unit at all its widths beside light and heavy others, and random ones.

    Args:
        anatomy: The network's units.
        round_to: Widths are multiples of this, in units whose channels are.
    """
    generator = np.random.default_rng(0)
    steps = _steps(anatomy, round_to)
    counts = anatomy.family.channels // np.maximum(steps, 1)
    rows: list[IntArray] = [counts, np.ones_like(counts)]
    for index, count in enumerate(counts.tolist()):
        for others in (counts, np.ones_like(counts)):
            block = np.repeat(others[None, :], len(swept := _swept(count, generator)), axis=0)
            block[:, index] = swept
            rows.extend(block)
    rows.extend(generator.integers(1, counts + 1, size=(MIXED, len(counts))))
    return anatomy.family.widths(np.stack(rows) * steps)


def reaches_of(anatomy: Anatomy, round_to: int, execution: Execution) -> dict[Kernel, Reach]:
    """Every kernel that some variant of the network executes, without each of its branches too, and its widths.

    Args:
        anatomy: The network's units and branches.
        round_to: As in `sample_widths`.
        execution: Of the runtime.
    """
    dense, widths = anatomy.family.dense, sample_widths(anatomy, round_to)
    reaches = reachable(dense, widths, execution)
    without = [set(one.found.rows) for one in anatomy.branches]
    for gone in [*without, set[int]().union(*without)] if without else []:
        rows = np.asarray([row for row in range(len(dense.layers)) if row not in gone])
        left = widths.part(np.arange(len(widths.outputs)), rows)
        for kernel, reach in reachable(dense.without(gone), left, execution).items():
            reaches[kernel] = reaches[kernel] | reach if kernel in reaches else reach
    return reaches


def spread_networks(table: LatencyTable, anatomy: Anatomy, count: int, seed: int) -> IntArray:
    """[count, U] random widths whose predicted latencies are spread evenly from the lightest to the dense network."""
    family = anatomy.family
    generator = np.random.default_rng([seed, count])
    steps = _steps(anatomy)
    full = family.channels // steps
    level = generator.uniform(0, 1, size=(POOL, 1))
    share = np.clip(level * generator.uniform(0.5, 1.5, size=(POOL, len(full))), 0, 1)
    pool = np.maximum(1, np.round(share * full)).astype(np.int64) * steps
    pool = np.concatenate([pool, steps[None, :], family.channels[None, :]])
    costs = table.many(family.dense, family.widths(pool))
    picks: list[int] = []
    for target in np.linspace(costs.min(), costs[-1], count):
        distance = np.abs(costs - target)
        distance[picks] = np.inf
        picks.append(int(distance.argmin()))
    shuffled = np.random.default_rng(seed).permutation(picks)  # drift of the clock must not look like size
    return np.asarray(pool[shuffled], dtype=np.int64)


def network_at(network: nn.Module, anatomy: Anatomy, widths: Mapping[str, int]) -> nn.Module:
    """The network with the first channels of each unit (which ones stay does not matter for latency).

    Args:
        network: The dense network; it is not changed.
        anatomy: Its units.
        widths: Name of each unit -> channels kept.
    """
    channels = {unit.name: sorted(unit.in_steps(unit.granules)[: widths[unit.name]]) for unit in anatomy.units}
    return slice_network(network, anatomy.units, channels)


def _steps(anatomy: Anatomy, round_to: int = 1) -> IntArray:
    """[U] channels by which the width of each unit changes."""
    units = {unit.name: unit for unit in anatomy.units}
    granules = np.asarray([units[name].granule for name in anatomy.family.units], dtype=np.int64)
    rounded = np.lcm(granules, round_to)
    return np.where(anatomy.family.channels % rounded, granules, rounded)


def _swept(count: int, generator: np.random.Generator) -> IntArray:
    if count <= SWEPT_WIDTHS:
        return np.arange(1, count + 1)
    ends = np.concatenate([np.arange(1, 41), np.arange(count - 15, count + 1)])
    return np.unique(np.concatenate([ends, generator.integers(1, count + 1, size=SWEPT_WIDTHS // 2)]))
