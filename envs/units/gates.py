"""Units of linear layers that write a gate and what it is multiplied with (SwiGLU in one layer, as in Phi-3 or GLM).

One channel is a channel of both, and of the layers that read the product. Proposed here, verified as all units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from envs.network.graph import Graph
from envs.units.units import Member, Positions, Unit
from hw_profiles.layers import WEIGHTED


def gated_units(network: nn.Module, graph: Graph, taken: Collection[str]) -> list[list[Unit]]:
    """The unverified units of fused gates, in each order in which their channels may lie: halves, or in turns.

    Args:
        network: The network.
        graph: Its operator graph.
        taken: Layers whose output channels are in units already.
    """
    if graph.program is None:
        return []
    calls = graph.calls()
    found = {
        node.module: _readers_of_a_product(graph, calls, place)
        for place, node in enumerate(graph.nodes)
        if node.kind == "linear" and node.module is not None and node.module not in taken
    }
    pairs = [(name, readers) for name, readers in found.items() if readers and _halves(network, name, readers)]
    return [[_unit(network, name, readers, in_turns=in_turns) for name, readers in pairs] for in_turns in (False, True)]


def _readers_of_a_product(graph: Graph, calls: Mapping[str, int], start: int) -> list[str]:
    """The layers that read a layer's outputs, if these are multiplied with each other on the way; else none."""
    reached, readers, multiplied = {start}, dict[str, None](), False
    for place, node in enumerate(graph.nodes):
        sources = reached.intersection(node.inputs)
        if not sources or place == start:
            continue
        if node.kind in WEIGHTED:
            readers[str(node.module)] = None
            continue
        reached.add(place)
        multiplied = multiplied or node.function == "glu" or (node.kind == "mul" and len(node.inputs) > 1)
    once = all(calls.get(name) == 1 for name in (*readers, str(graph.nodes[start].module)))
    return list(readers) if multiplied and once else []


def _halves(network: nn.Module, name: str, readers: Collection[str]) -> bool:
    """Whether linear layers read half as many channels as a layer writes."""
    wrote = int(network.get_submodule(name).out_features)  # type: ignore[arg-type]
    layers = map(network.get_submodule, readers)
    return wrote > 2 and all(isinstance(layer, nn.Linear) and 2 * layer.in_features == wrote for layer in layers)


def _unit(network: nn.Module, name: str, readers: Collection[str], *, in_turns: bool) -> Unit:
    channels = int(network.get_submodule(name).out_features) // 2  # type: ignore[arg-type]
    places: Positions = tuple((channel,) for channel in range(channels))
    written = tuple((2 * c, 2 * c + 1) if in_turns else (c, channels + c) for c in range(channels))
    return Unit(
        name=name,
        channels=channels,
        granules=places,
        members=(
            Member(module=name, role="producer", positions=written),
            *(Member(module=reader, role="consumer", positions=places) for reader in readers),
        ),
    )
