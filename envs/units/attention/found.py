"""Where a traced network attends: found by structure, whatever it is spelled with.

An attention is a softmax between two products (matmul, bmm, einsum), or torch's fused operator, or an explicit
`AttentionCore`; behind its first product stand the layers that write queries and keys, behind its second the one that
writes values, and one layer reads what it gives. How many heads it has follows from how many channels the first product
sums over. That this is true is verified elsewhere, by removal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from torch import fx, nn

from envs.network.attention import AttentionCore
from envs.network.calls import Shape, first_tensor
from envs.network.copies import functional_copy
from envs.network.counting import counting
from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.network.interpreter import run
from envs.network.kinds import BATCH_NORMS, CONVOLUTIONS, plain_name
from envs.units.slicing import axis_size
from envs.units.units import is_depthwise

PRODUCTS = ("matmul", "bmm", "einsum")
FUSED = "scaleddotproductattention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One attention.

    Attributes:
        q: Name of the linear layer that writes queries; the same as `k` and `v` where one layer writes all three.
        k: The one that writes keys.
        v: The one that writes values.
        out: The one that reads what the heads give.
        heads: Query heads.
        groups: Key and value heads: each serves heads / groups query heads.
        head_width: Channels of q and k per head.
        owner: Name of the module in whose forward it stands.
        gates: Layers whose outputs what the heads give is multiplied with: by channel, or by head.
        carriers: Batch normalizations and depthwise convolutions between such a layer and the products, and the layer.
        passed: The same on the other ways to the layer that reads what the heads give, such as beside the products.
    """

    q: str
    k: str
    v: str
    out: str
    heads: int
    groups: int
    head_width: int
    owner: str
    gates: tuple[str, ...] = ()
    carriers: tuple[tuple[str, str], ...] = ()
    passed: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether one layer writes queries, keys and values."""
        return self.q == self.k == self.v

    @property
    def separate(self) -> bool:
        """Whether each has a layer of its own."""
        return len({self.q, self.k, self.v}) == 3


class _Size(NamedTuple):
    """What a node gives: the shape of its (first) tensor, and the multiply-accumulates of making it."""

    shape: Shape
    macs: int


Sizes = dict[fx.Node, _Size]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """The operands of one attention, the operator that gives its result, and the channels its first product sums."""

    q: fx.Node
    k: fx.Node
    v: fx.Node
    result: fx.Node
    summed: int


def find_attention(network: nn.Module, graph: Graph, example_input: Inputs) -> list[Found]:
    """All attentions between linear layers, in execution order; none where the network could not be traced.

    Args:
        network: The network; it is not changed.
        graph: Its operator graph.
        example_input: Input of batch 1.
    """
    if graph.program is None or not any(_attends(network, node) for node in graph.program.nodes):
        return []
    sizes = _sizes(network, graph.program, example_input)
    owners = {node.source: node.owner for node in graph.nodes}
    found = []
    for node in graph.program.nodes:
        ends = _ends(network, node, sizes)
        one = _between_layers(network, ends, sizes, owners) if ends is not None else None
        found += [one] if one is not None else []
    return found


def _sizes(network: nn.Module, program: fx.Graph, example_input: Inputs) -> Sizes:
    """The (first) tensor that each node gives; nodes that give none, such as sizes, are left out."""
    sizes: Sizes = {}
    with counting() as counter:
        for node, value in run(program, functional_copy(network), example_input):
            macs, tensor = counter.take(), first_tensor(value)
            if tensor is not None:
                sizes[node] = _Size(tuple(tensor.shape), macs)
    return sizes


def _attends(network: nn.Module, node: fx.Node) -> bool:
    return _is_core(network, node) or _function(network, node) in ("softmax", FUSED)


def _is_core(network: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), AttentionCore)


def _function(network: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return plain_name(type(network.get_submodule(str(node.target))))
    return plain_name(node.target) if node.op in ("call_function", "call_method") else ""


def _ends(network: nn.Module, node: fx.Node, sizes: Sizes) -> _Ends | None:
    """The attention that a node is the middle of, None where it is not."""
    if _is_core(network, node) or _function(network, node) == FUSED:
        operands = [one for one in (*node.args, *node.kwargs.values()) if isinstance(one, fx.Node)][:3]
        if len(operands) < 3:
            return None
        q, k, v = operands
        core = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        summed = sizes[q].shape[-1]
        if isinstance(core, AttentionCore):
            summed = core.head_width or summed // core.fixed[0]
        return _Ends(q=q, k=k, v=v, result=node, summed=summed)
    if _function(network, node) != "softmax":
        return None

    def multiplies(one: fx.Node) -> bool:
        return _function(network, one) in PRODUCTS

    first = _nearest(node.all_input_nodes, lambda one: _read(one, sizes), multiplies)
    second = _nearest(node.users, lambda one: one.users, multiplies)
    if len(first) != 1 or len(second) != 1:
        return None
    scores, result = first[0], second[0]
    values = [one for one in result.all_input_nodes if one is not node and node not in _upstream(one)]
    if len(scores.all_input_nodes) != 2 or len(values) != 1:
        return None
    q, k = scores.all_input_nodes
    summed = sizes[scores].macs // max(prod(sizes[scores].shape), 1)
    return _Ends(q=q, k=k, v=values[0], result=result, summed=summed)


def _between_layers(network: nn.Module, ends: _Ends, sizes: Sizes, owners: Mapping[str, str]) -> Found | None:
    """The attention with the linear layers around it, None where they are others or their widths do not fit."""

    def is_linear(node: fx.Node) -> bool:
        return node.op == "call_module" and _is_pointwise(network.get_submodule(str(node.target)))

    layers = [_nearest([end], lambda one: _read(one, sizes), is_linear) for end in (ends.q, ends.k, ends.v)]
    layers.append(_nearest(ends.result.users, lambda one: one.users, is_linear))
    if any(len({str(one.target) for one in nodes}) != 1 for nodes in layers):
        return None
    q, k, v, out = (str(nodes[0].target) for nodes in layers)
    widths = _written(network, q, k, v, read=axis_size(network.get_submodule(out), "consumer"))
    if not ends.summed or any(width % ends.summed for width in widths[:2]):
        return None
    heads, groups = (width // ends.summed for width in widths[:2])
    if not groups or heads % groups or widths[2] % groups:
        return None
    gates = [
        str(gate.target)
        for factor in _factors(network, ends.result, is_linear)
        for gate in _nearest([factor], lambda one: _read(one, sizes), is_linear)
        if axis_size(network.get_submodule(str(gate.target)), "producer") in (heads, widths[2] // groups * heads)
    ]
    carriers = dict.fromkeys(_carriers(network, (ends.q, ends.k, ends.v), sizes, is_linear))
    behind = dict.fromkeys(_carriers(network, _read(layers[3][0], sizes), sizes, is_linear))
    return Found(
        q=q,
        k=k,
        v=v,
        out=out,
        heads=heads,
        groups=groups,
        head_width=ends.summed,
        owner=owners.get(ends.result.name, ""),
        gates=tuple(name for name in dict.fromkeys(gates) if name not in (q, k, v)),
        carriers=tuple(carriers),
        passed=tuple(name for name, _ in behind if name not in {name for name, _ in carriers}),
    )


def _is_pointwise(module: nn.Module) -> bool:
    """Whether a layer mixes the channels of each position alone, by a weight that it holds and that nothing computes:
    linear, or a convolution with a kernel of one.
    """
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return False
    if not isinstance(module, CONVOLUTIONS):
        return isinstance(module, nn.Linear)
    return module.groups == 1 and {*module.kernel_size, *module.stride} == {1}


def _carriers(
    network: nn.Module, start: Iterable[fx.Node], sizes: Sizes, is_linear: Callable[[fx.Node], bool]
) -> Iterator[tuple[str, str]]:
    """What maps every channel to itself between some nodes and the layers in front of them, and the first of these."""
    for node in _reached(start, lambda one: [] if is_linear(one) else _read(one, sizes)):
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, BATCH_NORMS) or (module is not None and is_depthwise(module)):
            layers = _nearest([node], lambda one: _read(one, sizes), is_linear)
            yield from ((str(node.target), str(layer.target)) for layer in layers[:1])


def _factors(network: nn.Module, result: fx.Node, is_linear: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """What an attention's result is multiplied with in front of the layers that read it."""
    reached = dict.fromkeys(_reached([result], lambda one: [] if is_linear(one) else one.users))
    products = [node for node in reached if _function(network, node) == "mul"]
    return [one for node in products for one in node.all_input_nodes if one not in reached]


def _written(network: nn.Module, q: str, k: str, v: str, *, read: int) -> tuple[int, int, int]:
    """Channels of queries, keys and values: parts of a layer that writes several of them.

    One layer that writes all three can write fewer keys and values than queries, which are as many as what the heads
    give.
    """
    first, second, third = (
        axis_size(network.get_submodule(name), "producer") // (q, k, v).count(name) for name in (q, k, v)
    )
    whole = axis_size(network.get_submodule(q), "producer")
    shared, rest = divmod(whole - read, 2)
    return (read, shared, shared) if q == k == v and 0 < shared < read and not rest else (first, second, third)


def _read(node: fx.Node, sizes: Sizes) -> list[fx.Node]:
    """The tensors that a node reads."""
    return [source for source in node.all_input_nodes if source in sizes]


def _nearest(
    start: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]], wanted: Callable[[fx.Node], bool]
) -> list[fx.Node]:
    """The first nodes of a kind on all ways from some nodes."""
    return [node for node in _reached(start, lambda one: [] if wanted(one) else following(one)) if wanted(node)]


def _upstream(node: fx.Node) -> list[fx.Node]:
    """A node and all that it depends on."""
    return _reached([node], lambda one: one.all_input_nodes)


def _reached(start: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]) -> list[fx.Node]:
    """Some nodes and all that follow them, each once."""
    seen: dict[fx.Node, None] = {}
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen[node] = None
            waiting += following(node)
    return list(seen)
