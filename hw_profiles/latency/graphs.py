"""Micro-graphs in ONNX: one kernel at given widths, once or in copies, in the format in which a network runs it.

Weights are constants that the runtime fills in, so a graph is a kilobyte whatever its widths. Copies differ in
their values, because equal ones would be merged.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from hw_profiles.latency.kernels import Formats, Kernel, Mode
from hw_profiles.latency.nodes import DTYPES, OnnxGraph
from hw_profiles.latency.token_graphs import TOKEN_CELLS, give_out, token_inputs

CHEAP_MACS, DEAR_MACS = 5e6, 5e7
SINK_CHANNELS = 64


class Probe(NamedTuple):
    """A kernel at given widths: what one measurement is about."""

    kernel: Kernel
    inputs: int
    outputs: int

    @property
    def copies(self) -> int:
        """Copies in the larger graph: many of a cheap kernel, few of a dear one."""
        work = self.inputs * self.outputs * prod(self.kernel.kernel) * prod(self.kernel.out_map)
        work *= prod(self.kernel.in_map) if self.kernel.attends else 1
        return 9 if work < CHEAP_MACS else 5 if work < DEAR_MACS else 3


YARDSTICK = Probe(
    Kernel(
        op="conv",
        mode="blocked",
        add=True,
        activation="relu",
        kernel=(3, 3),
        stride=(1, 1),
        in_map=(16, 16),
        out_map=(16, 16),
    ),
    32,
    32,
)
"""Timed beside every entry; its graph of three copies never changes, so that tables compare in yardsticks."""
YARDSTICK_COPIES = 3


def parts(probe: Probe, formats: Formats) -> list[Probe]:
    """What else each copy of a probe's graph contains in a runtime that fuses, to be taken off the slope."""
    kernel, outputs = probe.kernel, probe.outputs
    end = _format(kernel)
    if kernel.op in ("conv", "depthwise", "transposed") and not kernel.add:
        return [sink(kernel.out_map, outputs, end)]
    if kernel.op == "activation":
        return [_add(kernel.out_map, outputs)]
    if kernel.op == "pool":
        rest = [_add(kernel.in_map, outputs)]
        if set(kernel.out_map) <= {1}:
            return rest
        if formats.block and len(kernel.in_map) == 2 and outputs % formats.block == 0:
            moved = Kernel(op="to_blocked", in_map=kernel.in_map, out_map=kernel.in_map)
            return [*rest, Probe(moved, outputs, outputs), sink(kernel.out_map, outputs, "blocked")]
        return [*rest, sink(kernel.out_map, outputs, "plain")]
    if kernel.op == "to_blocked":
        return [_add(kernel.out_map, outputs), sink(kernel.out_map, outputs, "blocked")]
    if kernel.op == "to_plain":
        return [_thin(kernel.out_map, outputs, formats), sink(kernel.out_map, outputs, "plain")]
    if kernel.attends:
        read = kernel.out_map if kernel.op == "scores" else kernel.in_map
        return [_add(read, probe.inputs * outputs), _token_sink(kernel.out_map)]
    return [_token_sink(kernel.out_map)] if kernel.op == "linear" and kernel.over_positions else []


def _format(kernel: Kernel) -> Mode:
    """The format in which a kernel writes."""
    return "plain" if kernel.mode == "plain" else "blocked"


def sink(out_map: tuple[int, ...], channels: int, mode: Mode) -> Probe:
    """What ends a copy: reads one position of every channel."""
    return Probe(Kernel(op="sink", mode=mode, in_map=out_map, out_map=out_map), channels, channels)


def _token_sink(out_map: tuple[int, ...]) -> Probe:
    """What ends a copy over positions: reads one of them. It takes as long whatever the channels."""
    return Probe(Kernel(op="sink", in_map=out_map, out_map=(*out_map[:-1], 1)), SINK_CHANNELS, SINK_CHANNELS)


def _add(out_map: tuple[int, ...], channels: int) -> Probe:
    return Probe(Kernel(op="add", in_map=out_map, out_map=out_map), channels, channels)


def _thin(out_map: tuple[int, ...], channels: int, formats: Formats) -> Probe:
    """The lightest convolution that writes a blocked tensor: from one channel."""
    ones = (1,) * len(out_map)
    kernel = Kernel(op="conv", mode="direct", kernel=ones, stride=ones, in_map=out_map, out_map=out_map)
    return Probe(kernel, 1, -(-channels // formats.block) * formats.block)


def micrograph(probe: Probe, formats: Formats, *, copies: int, batch: int, dtype: str = "fp32") -> bytes:
    """The ONNX model of some copies of a probe.

    Args:
        probe: Kernel and widths.
        formats: The formats of the runtime that it is for.
        copies: How often the kernel runs.
        batch: Batch size.
        dtype: fp32 or fp16.
    """
    kernel, inputs = probe.kernel, probe.inputs
    graph = OnnxGraph(DTYPES[dtype])
    if kernel.over_positions:
        return _over_positions(graph, probe, copies, batch)
    thin = kernel.op == "to_plain"
    shape = (
        (batch, *kernel.in_map, inputs) if _is_token_sink(kernel) else (batch, 1 if thin else inputs, *kernel.in_map)
    )
    x = graph.input("x", shape)
    chained = x
    if kernel.add:
        ones = (1,) * len(kernel.kernel)
        chained = graph.node("Relu", [_convolve(graph, x, probe, ones, 0.5)])
    for copy in range(1, copies + 1):
        chained = _CELLS[kernel.op](graph, x, chained, probe, formats, copy)
    if kernel.add or kernel.op in ("add", "mul", "concat", "norm", "activation", "copy", "to_blocked"):
        _end(graph, chained, kernel.out_map, _format(kernel), 0)
    return graph.model()


def _over_positions(graph: OnnxGraph, probe: Probe, copies: int, batch: int) -> bytes:
    kernel = probe.kernel
    x = chained = token_inputs(graph, probe, batch)
    for copy in range(1, copies + 1):
        chained = TOKEN_CELLS[kernel.op](graph, x, chained, probe, copy)
    if kernel.op in ("bias", "layernorm"):
        give_out(graph, chained, len(kernel.out_map), 0)
    return graph.model()


def _is_token_sink(kernel: Kernel) -> bool:
    return kernel.op == "sink" and kernel.in_map != kernel.out_map


def _end(graph: OnnxGraph, tensor: str, spatial: tuple[int, ...], mode: str, number: int) -> None:
    """Reads one position of every channel and gives it out."""
    if not spatial or set(spatial) == {1}:
        graph.outputs.append(tensor)
    elif mode == "blocked":
        strides = [size + number for size in spatial]  # numbers differ, or equal ends would be merged
        graph.outputs.append(graph.node("MaxPool", [tensor], kernel_shape=[1] * len(spatial), strides=strides))
    else:
        axes = list(range(2, 2 + len(spatial)))
        starts = [number % size for size in spatial]
        bounds = [graph.integers(values) for values in (starts, [s + 1 for s in starts], axes)]
        graph.outputs.append(graph.node("Slice", [tensor, *bounds]))


def _convolve(graph: OnnxGraph, x: str, probe: Probe, size: tuple[int, ...], value: float) -> str:
    kernel, inputs, outputs = probe
    groups = outputs if kernel.op == "depthwise" else kernel.groups
    transposed = kernel.op == "transposed"
    shape = [inputs, outputs // groups, *size] if transposed else [outputs, inputs // groups, *size]
    weight, bias = graph.filled(shape, 1e-3 * value), graph.filled([outputs], 1e-2 * value)
    before, after = (kernel.out_map, kernel.in_map) if transposed else (kernel.in_map, kernel.out_map)
    total = [max(0, (o - 1) * s + k - i) for i, o, s, k in zip(before, after, kernel.stride, size, strict=True)]
    pads = [-(-t // 2) for t in total] + [t // 2 for t in total]
    op = "ConvTranspose" if transposed else "Conv"
    attributes: dict[str, Any] = {"kernel_shape": list(size), "strides": list(kernel.stride), "pads": pads}
    return graph.node(op, [x, weight, bias], group=groups, **attributes)


def _activate(graph: OnnxGraph, tensor: str, name: str) -> str:
    if name == "clip":
        return graph.node("Clip", [tensor, graph.scalar(0.0), graph.scalar(6.0)])
    if name == "silu":
        return graph.node("Mul", [tensor, graph.node("Sigmoid", [tensor])])
    if name == "gelu":
        inner = graph.node("Erf", [graph.node("Div", [tensor, graph.scalar(1.4142135)])])
        whole = graph.node("Mul", [tensor, graph.node("Add", [inner, graph.scalar(1.0)])])
        return graph.node("Mul", [whole, graph.scalar(0.5)])
    if name == "gelutanh":  # less a product with 0.5, which onnxruntime moves into the weight that follows
        cubic = graph.node("Mul", [graph.node("Mul", [tensor, tensor]), tensor])
        sum_ = graph.node("Add", [tensor, graph.node("Mul", [cubic, graph.scalar(0.044715)])])
        inner = graph.node("Tanh", [graph.node("Mul", [sum_, graph.scalar(0.7978846)])])
        return graph.node("Mul", [tensor, graph.node("Add", [inner, graph.scalar(1.0)])])
    ops = {
        "softmax": "Softmax",
        "relu": "Relu",
        "sigmoid": "Sigmoid",
        "tanh": "Tanh",
        "leakyrelu": "LeakyRelu",
        "hardsigmoid": "HardSigmoid",
        "hardswish": "HardSwish",
    }
    return graph.node(ops[name], [tensor]) if name else tensor


def _convolution_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    kernel = probe.kernel
    y = _convolve(graph, x, probe, kernel.kernel, copy)
    if kernel.add:
        return _activate(graph, graph.node("Add", [y, chained]), kernel.activation)
    _end(graph, _activate(graph, y, kernel.activation), kernel.out_map, _format(kernel), copy)
    return chained


def _linear_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    weight = graph.filled([probe.inputs, probe.outputs], 1e-3 * copy)
    bias = graph.filled([probe.outputs], 1e-2 * copy)
    graph.outputs.append(graph.node("Gemm", [x, weight, bias]))
    return chained


def _pairwise_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    return graph.node("Mul" if probe.kernel.op == "mul" else "Add", [chained, x])


def _activation_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    return _activate(graph, graph.node("Add", [chained, x]), probe.kernel.activation)


def _norm_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    values = [graph.filled([probe.outputs], value) for value in (1.0, 0.1 * copy, 0.0, 1.0)]
    return graph.node("BatchNormalization", [chained, *values])


def _copy_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    """Pads one channel on and cuts one off: two copies of the tensor."""
    rank = 1 + len(probe.kernel.in_map)
    pads = graph.integers([0, 1, *[0] * (rank - 1), 0, 0, *[0] * (rank - 1)])
    wide = graph.node("Pad", [chained, pads])
    bounds = [graph.integers([value]) for value in (0, probe.outputs, 1)]
    return graph.node("Slice", [wide, *bounds])


def _pool_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    kernel = probe.kernel
    fed = graph.node("Add", [chained, x])
    if set(kernel.out_map) <= {1}:
        graph.outputs.append(graph.node("GlobalAveragePool", [fed]))
        return fed
    strides = [max(1, i // o) for i, o in zip(kernel.in_map, kernel.out_map, strict=True)]
    size = [i - (o - 1) * s for i, o, s in zip(kernel.in_map, kernel.out_map, strides, strict=True)]
    pooled = graph.node("MaxPool", [fed], kernel_shape=size, strides=strides)
    blocked = formats.block and len(kernel.in_map) == 2 and probe.outputs % formats.block == 0
    _end(graph, pooled, kernel.out_map, "blocked" if blocked else "plain", copy)
    return fed


def _to_blocked_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    fed = graph.node("Add", [chained, x])
    _end(graph, fed, probe.kernel.out_map, "blocked", copy)
    return fed


def _to_plain_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    thin = _thin(probe.kernel.out_map, probe.outputs, formats)
    y = _convolve(graph, x, Probe(thin.kernel, 1, probe.outputs), thin.kernel.kernel, copy)
    _end(graph, y, probe.kernel.out_map, "plain", copy)
    return chained


def _sink_cell(graph: OnnxGraph, x: str, chained: str, probe: Probe, formats: Formats, copy: int) -> str:
    if _is_token_sink(probe.kernel):
        give_out(graph, x, len(probe.kernel.in_map), copy % probe.kernel.in_map[-1])
    else:
        _end(graph, x, probe.kernel.out_map, _format(probe.kernel), copy)
    return chained


_CELLS = {
    "conv": _convolution_cell,
    "depthwise": _convolution_cell,
    "transposed": _convolution_cell,
    "linear": _linear_cell,
    "add": _pairwise_cell,
    "mul": _pairwise_cell,
    "concat": _copy_cell,
    "norm": _norm_cell,
    "activation": _activation_cell,
    "pool": _pool_cell,
    "copy": _copy_cell,
    "to_blocked": _to_blocked_cell,
    "to_plain": _to_plain_cell,
    "sink": _sink_cell,
}
"""Op -> what one copy adds to the graph; returns the end of the chain."""
