"""What of a network can be pruned: its graph, its verified units, its layouts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from envs.graph import Graph, trace
from envs.layout import LayoutFamily, measure_family
from envs.parallel import single_threaded
from envs.units import Fixed, Unit, propose_units
from envs.verify import verify_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What of a network can be pruned.

    Attributes:
        graph: Its operator graph.
        family: Its layouts as a function of unit widths.
        units: Verified units in execution order.
        fixed: Layers that stay, and why.
    """

    graph: Graph
    family: LayoutFamily
    units: tuple[Unit, ...]
    fixed: tuple[Fixed, ...]


def dissect(network: nn.Module, example_input: Tensor) -> Anatomy:
    """Traces a network, finds its units and verifies them."""
    single_threaded()
    graph = trace(network, example_input)
    proposed, fixed = propose_units(network, example_input, graph)
    verified, rejected, removals = verify_units(network, example_input, graph, proposed)
    family, refused = measure_family(network, graph, example_input, verified, removals)
    units = tuple(unit for unit in verified if unit.name not in refused)
    reasons = [*fixed, *rejected, *(Fixed(name, reason) for name, reason in refused.items())]
    return Anatomy(graph=graph, family=family, units=units, fixed=tuple(reasons))
