"""Verification of all units at once: what holds for each alone need not hold for two that meet in one product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.units.layout import LayoutFamily
from envs.units.units import Fixed, Unit, weighted_outputs
from envs.units.verification.trial import Trial
from envs.units.verification.verify import remove
from hw_profiles.cost import Params


def verify_together(
    network: nn.Module,
    example_input: Inputs,
    graph: Graph,
    units: Sequence[Unit],
    family: LayoutFamily,
    seed: int = 0,
    samples: Inputs | None = None,
) -> tuple[list[Unit], list[Fixed]]:
    """Keeps the units that can be pruned together, at the costs that the family foretells.

    Args:
        network: The network; it is not changed.
        example_input: Input of batch 1.
        graph: Its operator graph.
        units: Units, each verified alone.
        family: Layouts as a function of their widths.
        seed: Seed of the draw.
        samples: Real inputs, None for random ones.

    Returns:
        The units, and the layers of those left out with the reason.
    """
    trial = Trial.create(network, example_input, graph, seed, samples)
    dropped = {unit.name: trial.draw(unit) for unit in units}
    if not units or not _clash(trial, units, family, dropped):
        return list(units), []
    kept: list[Unit] = []
    fixed: list[Fixed] = []
    for unit in units:
        reason = _clash(trial, [*kept, unit], family, dropped)
        if reason:
            fixed += [Fixed(name, f"together with other units, {reason}") for name in weighted_outputs(unit, network)]
        else:
            kept.append(unit)
    return kept, fixed


def _clash(trial: Trial, units: Sequence[Unit], family: LayoutFamily, dropped: dict[str, list[int]]) -> str:
    """Why some units cannot all lose channels, or ''."""
    gone = {unit.name: dropped[unit.name] for unit in units}
    try:
        calls, params = remove(trial, gone, units)
    except ValueError as error:
        return str(error)
    kept = family.channels - np.asarray([len(gone.get(name, ())) for name in family.units], dtype=np.int64)
    widths = family.widths(kept)
    counted = np.asarray([call.macs for call in calls], dtype=np.int64)
    wrong = np.flatnonzero(counted != family.dense.macs(widths)[0])
    if len(wrong):
        return f"what {trial.graph.nodes[int(wrong[0])]} multiplies is not linear in its channels"
    if params != Params().many(family.dense, widths)[0]:
        return "the number of parameters is not linear in its channels"
    return ""
