"""What of a network can be pruned: its graph, its verified units, its layouts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.network.recount import confirm_macs, independent_macs
from envs.parallel import single_threaded
from envs.units.attention.decided import Decision
from envs.units.attention.explicit import Form
from envs.units.attention.reading import read_attention
from envs.units.branches.trial import VerifiedBranch, read_branches
from envs.units.fates import left_over
from envs.units.gates import gated_units
from envs.units.layout import LayoutFamily, measure_family
from envs.units.units import Fixed, Unit, propose_units, weighted_outputs
from envs.units.verification.together import verify_together
from envs.units.verification.trial import Removal
from envs.units.verification.verify import verify_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What of a network can be pruned.

    Attributes:
        network: The network that all else is about: the given one, with attention made explicit where its own classes
            would not run with other widths.
        forms: What was made explicit.
        graph: Its operator graph.
        family: Its layouts as a function of unit widths.
        units: Verified units in execution order.
        fixed: Layers that stay, each once, and why.
        uncounted: Operators of torch that plausibly multiply, but for which no formula is known.
        branches: Residual branches that can go, in the order of their additions; none unless they are looked for.
        whole: Residual branches that stay, and why.
    """

    network: nn.Module
    graph: Graph
    family: LayoutFamily
    units: tuple[Unit, ...]
    fixed: tuple[Fixed, ...]
    forms: tuple[Form, ...] = ()
    uncounted: tuple[str, ...] = ()
    branches: tuple[VerifiedBranch, ...] = ()
    whole: tuple[Fixed, ...] = ()


def dissect(
    network: nn.Module,
    example_input: Inputs,
    samples: Inputs | None = None,
    attention: Decision = "heads",
    *,
    branches: bool = False,
) -> Anatomy:
    """Traces a network, finds its units, verifies them, and has its multiply-accumulates counted independently.

    Args:
        network: The network; it is not changed.
        example_input: Input of batch 1.
        samples: A few real inputs on which units are verified; None for random ones.
        attention: What is decided about attention with several heads.
        branches: Whether to look for residual branches, too.

    Raises:
        CountMismatch: If the layouts count other multiply-accumulates than the network's own forward runs.
    """
    single_threaded()
    read = read_attention(network, example_input, samples, attention)
    network, graph = read.network, read.graph
    gates, gate_removals = _verified_gates(network, example_input, graph, read.layers, samples)
    gated = {member.module for unit in gates for member in unit.members if member.role != "consumer"}
    proposed, fixed = propose_units(network, example_input, graph, {*read.layers, *gated})
    verified, rejected, removals = verify_units(network, example_input, graph, proposed, samples=samples)
    verified = _in_order([*read.units, *gates, *verified], graph)
    removals = [*read.removals, *gate_removals, *removals]
    fixed += read.fixed
    family, refused = measure_family(network, graph, example_input, verified, removals)
    units = [unit for unit in verified if unit.name not in refused]
    alone = [
        Fixed(name, refused[unit.name])
        for unit in verified
        if unit.name in refused
        for name in weighted_outputs(unit, network)
    ]
    units, clashing = verify_together(network, example_input, graph, units, family, samples=samples)
    family = family.only([unit.name for unit in units])
    recount = independent_macs(network, example_input)
    confirm_macs(family.dense, graph, recount)
    reasons = _one_each([*fixed, *rejected, *alone, *clashing])
    found, whole = read_branches(network, graph, example_input, family.dense, samples) if branches else ([], [])
    return Anatomy(
        network=network,
        forms=read.forms,
        graph=graph,
        family=family,
        units=tuple(units),
        uncounted=recount.uncounted,
        branches=tuple(found),
        whole=tuple(whole),
        fixed=(*reasons, *(Fixed(*pair) for pair in left_over(network, graph, _known(reasons, units)))),
    )


def _verified_gates(
    network: nn.Module, example_input: Inputs, graph: Graph, taken: Collection[str], samples: Inputs | None
) -> tuple[list[Unit], list[Removal]]:
    """Units of layers that write a gate and what it is multiplied with, and the recorded removals."""
    units: list[Unit] = []
    removals: list[Removal] = []
    for proposed in gated_units(network, graph, taken):
        left = [unit for unit in proposed if unit.name not in {known.name for known in units}]
        if left:
            verified, _, recorded = verify_units(network, example_input, graph, left, samples=samples)
            units, removals = [*units, *verified], [*removals, *recorded]
    return units, removals


def _in_order(units: Sequence[Unit], graph: Graph) -> list[Unit]:
    """Units by the first call of the layers that they are named by."""
    order = graph.order()
    return sorted(units, key=lambda unit: order.get(unit.name, len(order)))


def _one_each(fixed: Sequence[Fixed]) -> list[Fixed]:
    """The first reason of each layer."""
    first: dict[str, Fixed] = {}
    for entry in fixed:
        first.setdefault(entry.name, entry)
    return list(first.values())


def _known(fixed: Sequence[Fixed], units: Sequence[Unit]) -> set[str]:
    """Layers that are in a unit or have a reason."""
    written = {member.module for unit in units for member in unit.members if member.role != "consumer"}
    return written | {entry.name for entry in fixed}
