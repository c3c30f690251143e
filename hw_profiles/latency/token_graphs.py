"""Micro-graphs of operators over positions (tokens), as exported networks spell them: channels last, heads apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.nodes import OnnxGraph

Sized: TypeAlias = tuple[Kernel, int, int]
"""A kernel, its channels in (of a head, in an attention core) and out (heads): a `Probe` is one."""

MASK, KEYS, WEIGHTS = "mask", "keys", "weights"
"""Names of what the graphs of attention cores read beside `x`."""


def token_inputs(graph: OnnxGraph, probe: Sized, batch: int) -> str:
    """Declares what a graph reads; returns the first input, [batch, *positions, channels]."""
    kernel, width, heads = probe
    if not kernel.attends:
        return graph.input("x", (batch, *kernel.in_map, width))
    keys, queries = kernel.in_map[0], kernel.out_map[0]
    if kernel.op == "mix":
        graph.input(WEIGHTS, (batch, *(() if heads == 1 else (heads,)), queries, keys))
        return graph.input("x", (batch, keys, heads * width))
    if kernel.add:
        graph.input(MASK, (batch, *(() if heads == 1 else (1,)), 1, keys))
    if keys != queries:
        graph.input(KEYS, (batch, keys, heads * width))
    return graph.input("x", (batch, queries, heads * width))


def give_out(graph: OnnxGraph, tensor: str, axis: int, number: int) -> None:
    """Reads one place of an axis and gives it out: whole outputs would be copied."""
    bounds = [graph.integers([value]) for value in (number, number + 1, axis)]
    graph.outputs.append(graph.node("Slice", [tensor, *bounds]))


def _linear(graph: OnnxGraph, x: str, chained: str, probe: Sized, copy: int) -> str:
    kernel, inputs, outputs = probe
    y = graph.node("MatMul", [x, graph.filled([inputs, outputs], 1e-3 * copy)])
    give_out(graph, y, len(kernel.out_map), copy % kernel.out_map[-1])
    return chained


def _bias(graph: OnnxGraph, x: str, chained: str, probe: Sized, copy: int) -> str:
    return graph.node("Add", [chained, graph.filled([probe[2]], 1e-2 * copy)])


def _layer_norm(graph: OnnxGraph, x: str, chained: str, probe: Sized, copy: int) -> str:
    kernel, _, outputs = probe
    weights = [graph.filled([outputs], value) for value in (1.0, 0.1 * copy)]
    fed = graph.node("Add", [chained, x]) if kernel.add else chained
    return graph.node("LayerNormalization", [fed, *weights], axis=-1)


def _scores(graph: OnnxGraph, x: str, chained: str, probe: Sized, copy: int) -> str:
    kernel, _, heads = probe
    queries = graph.node("Add", [chained, x])
    same = kernel.in_map == kernel.out_map
    keys = queries if same else graph.node("Add", [KEYS, graph.scalar(float(copy))])
    q, k = _split(graph, queries, probe), _split(graph, keys, probe)
    flat = heads == 1
    k = graph.node("Transpose", [k], perm=[0, 2, 1] if flat else [0, 1, 3, 2])
    # Both are scaled by the root of the scale, as torch does it.
    q, k = (graph.node("Mul", [one, graph.scalar(0.42)]) for one in (q, k))
    y = graph.node("MatMul", [q, k])
    if kernel.add:
        y = graph.node("Add", [y, MASK])
    if kernel.activation == "softmax":
        y = graph.node("Softmax", [y], axis=-1)
        if kernel.add:  # a row without anything to attend to gives zeros
            y = graph.node("Where", [graph.node("IsNaN", [y]), graph.scalar(0.0), y])
    give_out(graph, y, 1 if flat else 2, copy % kernel.out_map[0])
    return queries


def _mix(graph: OnnxGraph, x: str, chained: str, probe: Sized, copy: int) -> str:
    kernel, width, heads = probe
    queries = kernel.out_map[0]
    values = graph.node("Add", [chained, x])
    y = graph.node("MatMul", [WEIGHTS, _split(graph, values, probe)])
    if heads > 1:
        y = graph.node("Transpose", [y], perm=[0, 2, 1, 3])
        y = graph.node("Reshape", [y, graph.integers([0, queries, heads * width])])
    give_out(graph, y, 1, copy % queries)
    return values


def _split(graph: OnnxGraph, tensor: str, probe: Sized) -> str:
    """[batch, heads, positions, width] of [batch, positions, heads x width]; of a single head as it is."""
    _, width, heads = probe
    if heads == 1:
        return tensor
    split = graph.node("Reshape", [tensor, graph.integers([0, 0, heads, width])])
    return graph.node("Transpose", [split], perm=[0, 2, 1, 3])


TOKEN_CELLS: Mapping[str, Callable[[OnnxGraph, str, str, Sized, int], str]] = {
    "linear": _linear,
    "bias": _bias,
    "layernorm": _layer_norm,
    "scores": _scores,
    "mix": _mix,
}
"""Op -> what one copy adds to the graph, with what it reads and the end of the chain; returns the new end."""
