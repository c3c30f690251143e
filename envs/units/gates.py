"""Units of layers that write a gate and what it is multiplied with (SwiGLU in one layer, a convolution before a GLU).

One channel is a channel of both, of depthwise convolutions and normalizations on the way, and of the layers that read
the product. Proposed here, verified as all units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from envs.network.graph import Graph
from envs.network.kinds import NORMS
from envs.units.slicing import axis_size
from envs.units.units import Member, Positions, Unit, is_depthwise
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
        node.module: _behind(network, graph, calls, place)
        for place, node in enumerate(graph.nodes)
        if node.kind in ("linear", "conv") and node.module is not None and node.module not in taken
    }
    pairs = [(name, layers) for name, layers in found.items() if _halves(network, name, layers)]
    return [[_unit(network, name, layers, in_turns=in_turns) for name, layers in pairs] for in_turns in (False, True)]


def _behind(network: nn.Module, graph: Graph, calls: Mapping[str, int], start: int) -> list[str]:
    """Layers behind one whose outputs are multiplied with each other on the way, up to those that read it, or none."""
    reached, layers, multiplied = {start}, dict[str, None](), False
    for place, node in enumerate(graph.nodes):
        if place == start or not reached.intersection(node.inputs):
            continue
        module = None if node.module is None else network.get_submodule(node.module)
        carries = module is not None and _carries(module)
        if carries or node.kind in WEIGHTED:
            layers[str(node.module)] = None
        if carries or node.kind not in WEIGHTED:
            reached.add(place)
        multiplied = multiplied or node.function == "glu" or (node.kind == "mul" and len(node.inputs) > 1)
    once = all(calls.get(name) == 1 for name in (*layers, str(graph.nodes[start].module)))
    return list(layers) if multiplied and once else []


def _carries(module: nn.Module) -> bool:
    return is_depthwise(module) or isinstance(module, NORMS)


def _halves(network: nn.Module, name: str, layers: Sequence[str]) -> bool:
    """Whether layers read half as many channels as a layer writes, and those in between carry these or all."""
    layer = network.get_submodule(name)
    wrote = axis_size(layer, "producer")
    if wrote <= 2 or is_depthwise(layer) or getattr(layer, "groups", 1) > 1:
        return False
    behind = list(map(network.get_submodule, layers))
    reading = [one for one in behind if not _carries(one)]
    carried = {axis_size(one, "carrier") for one in behind if _carries(one)}
    read = {axis_size(one, "consumer") * 2 for one in reading if getattr(one, "groups", 1) == 1}
    return bool(reading) and read == {wrote} and carried <= {wrote, wrote // 2}


def _unit(network: nn.Module, name: str, layers: Sequence[str], *, in_turns: bool) -> Unit:
    channels = axis_size(network.get_submodule(name), "producer") // 2
    places: Positions = tuple((channel,) for channel in range(channels))
    written = tuple((2 * c, 2 * c + 1) if in_turns else (c, channels + c) for c in range(channels))
    behind = {one: network.get_submodule(one) for one in layers}
    carriers = {one: axis_size(module, "carrier") for one, module in behind.items() if _carries(module)}
    return Unit(
        name=name,
        channels=channels,
        granules=places,
        members=(
            Member(module=name, role="producer", positions=written),
            *(
                Member(module=one, role="carrier", positions=places if width == channels else written)
                for one, width in carriers.items()
            ),
            *(Member(module=one, role="consumer", positions=places) for one in layers if one not in carriers),
        ),
    )
