"""Where a layer's channels go: the reason why one stays that no unit holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from operator import getitem

from torch import fx, nn

from envs.network.calls import observed_modules
from envs.network.graph import Graph, Node
from envs.network.kinds import WEIGHTED, is_layer
from hw_profiles.layers import WEIGHTED as WEIGHTED_KINDS

SAME_CHANNELS = ("norm", "activation", "add", "mul", "pool", "input")
"""Kinds of operators behind which every channel is still where it was."""


def fate(graph: Graph, layers: Collection[str]) -> str:
    """Why no layer is known that reads the channels of some layers."""
    if graph.program is None:
        return "no layer that reads its channels was found in a network that cannot be traced"
    known = {node.source: node for node in graph.nodes}
    reached = list(_downstream(graph.program, layers, known))
    if not any(node.name in known and _reads(known[node.name]) for node in reached):
        ends = any(node.op == "output" for node in reached)
        return "its channels are the network's output" if ends else "nothing reads what it computes"
    return lost_track(graph, layers)


def lost_track(graph: Graph, layers: Collection[str]) -> str:
    """Names the first operator behind some layers that rearranges their channels, or reads them."""
    known = {node.source: node for node in graph.nodes}
    reached = _downstream(graph.program, layers, known) if graph.program is not None else iter(())
    between = [known[n.name] for n in reached if n.name in known and not _keeps_channels(n, known[n.name])]
    mixing = (node for node in between if node.kind not in WEIGHTED_KINDS)
    stop = next(mixing, next(iter(between), None))
    return f"its channels cannot be followed through {stop or 'what reads them'}"


def left_over(network: nn.Module, graph: Graph, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """(layer, reason) of every layer with a weight that is not among the known ones."""
    order = graph.order()
    outermost = dict(observed_modules(network))
    held = {str(node.target) for node in graph.program.nodes if node.op == "get_attr"} if graph.program else set()
    for name, module in network.named_modules():
        if not isinstance(module, WEIGHTED) or name in known:
            continue
        if name in order:
            yield name, fate(graph, [name])
        elif name not in outermost:
            yield name, f"it is a part of {_around(network, name)}"
        elif any(target.startswith(f"{name}.") for target in held):
            yield name, "it is never called: forward reads its weight by itself"
        else:
            yield name, "forward does not call it"


def _around(network: nn.Module, name: str) -> str:
    """The layer that holds a module, with its class."""
    parts = name.split(".")
    paths = (".".join(parts[:count]) for count in range(len(parts)))
    outer = next(path for path in paths if is_layer(network.get_submodule(path)))
    return f"{outer!r} ({type(network.get_submodule(outer)).__name__}), whose channels depend on each other"


def _keeps_channels(node: fx.Node, operator: Node) -> bool:
    """Whether every channel is still where it was behind an operator: also where it cuts other axes."""
    if node.target is getitem and isinstance(node.args[1], tuple) and len(node.args[1]) > 1:
        return node.args[1][1] == slice(None)
    return operator.kind in SAME_CHANNELS


def _reads(node: Node) -> bool:
    """Whether an operator reads channels by a weight, or multiplies them with others."""
    whole = node.module is not None and node.kind == "other"  # a recurrent layer, attention
    products = node.kind in ("attention", "product")
    return node.kind in WEIGHTED_KINDS or products or whole or (node.kind == "other" and len(node.inputs) > 1)


def _downstream(program: fx.Graph, layers: Collection[str], known: Mapping[str, Node]) -> Iterator[fx.Node]:
    """All nodes that depend on some layers, up to those that read the channels, in order."""
    reached: set[fx.Node] = set()
    for node in program.nodes:
        if node.op == "call_module" and str(node.target) in layers:
            reached.add(node)
        elif any(source in reached for source in node.all_input_nodes):
            yield node
            if node.name not in known or not _reads(known[node.name]):
                reached.add(node)
