"""From a layout to the kernels that a runtime executes: what it fuses, which tensors are blocked, what it converts.

Read off the data flow (`LayerShape.inputs`) and the functions alone. For `K` variants at once, because formats
depend on the widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hw_profiles.latency.kernels import BoolArray, Formats, Kernel, Mode, Op
from hw_profiles.layers import IntArray, LayerShape, Layout, Widths

FUSED_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "clip",
    "hardtanh": "clip",
    "clamp": "clip",
    "clip": "clip",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "leakyrelu": "leakyrelu",
    "hardsigmoid": "hardsigmoid",
}
"""Function -> the activation that onnxruntime does inside the convolution before it."""

ALONE_ACTIVATIONS = {"silu": "silu", "hardswish": "hardswish", "gelu": "gelu"}
NOTHING = ("identity", "dropout", "dropout2d", "alphadropout", "contiguous", "input")
FOLDED_NORMS = ("batchnorm1d", "batchnorm2d", "batchnorm3d")
CONVOLVING = ("conv", "depthwise", "transposed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator that is left after folding and fusing.

    Attributes:
        layer: Index of the operator whose widths it has.
        shape: The kernel as it runs in the plain format, without an addition.
        sources: Steps that it reads, in the order of the operator's arguments (-1: the network's input).
        whole: A pool that reads the whole map.
    """

    layer: int
    shape: Kernel
    sources: tuple[int, ...]
    whole: bool = False


class Work(NamedTuple):
    """One kernel at work for a layer in those of `K` variants where `where` holds, with channels in and out ([K])."""

    layer: int
    kernel: Kernel
    where: BoolArray
    inputs: IntArray
    outputs: IntArray


@lru_cache(maxsize=64)
def steps_of(layout: Layout, fuses: bool) -> tuple[Step, ...]:
    """The operators of a layout after folding normalization and fusing activations."""
    readers = [0] * len(layout.layers)
    for layer in layout.layers:
        for source in set(layer.inputs):
            readers[source] += 1
    builder = _Builder(readers, fuses)
    for index, layer in enumerate(layout.layers):
        builder.take(index, layer, layout)
    return tuple(builder.steps)


@dataclass(slots=True)
class _Builder:
    """Walks the operators; `step_of` says which step's output an operator's output is."""

    readers: list[int]
    fuses: bool
    steps: list[Step] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)

    def take(self, index: int, layer: LayerShape, layout: Layout) -> None:
        """Adds an operator as a step of its own or to the step before it."""
        sources = tuple(self.step_of[source] for source in layer.inputs)
        if layer.kind == "input" or layer.function in NOTHING:
            self.step_of.append(sources[0] if sources else -1)
        elif not (len(sources) == 1 and sources[0] >= 0 and self._absorbed(sources[0], layer)):
            before = layout.layers[layer.inputs[0]].out_map if layer.inputs else layer.in_map
            self.steps.append(_step(index, layer, sources, before))
            self.step_of.append(len(self.steps) - 1)

    def _absorbed(self, source: int, layer: LayerShape) -> bool:
        """Folds or fuses an operator into the step that it alone reads."""
        step = self.steps[source]
        alone = self.readers[layer.inputs[0]] == 1
        activation = FUSED_ACTIVATIONS.get(layer.function, "") if self.fuses else ""
        folds = layer.kind == "norm" and layer.function in FOLDED_NORMS and step.shape.op in CONVOLVING
        takes = activation and step.shape.op in (*CONVOLVING, "add")
        if not alone or step.shape.activation or not (folds or takes):
            return False
        if takes:
            self.steps[source] = replace(step, shape=replace(step.shape, activation=activation))
        self.step_of.append(source)
        return True


def _step(index: int, layer: LayerShape, sources: tuple[int, ...], before: tuple[int, ...]) -> Step:
    """An operator as a step of its own; `before` is the map that it reads."""
    op = _op(layer)
    weighted = op in ("conv", "depthwise", "transposed")
    activation = ""
    if op == "activation":
        names = FUSED_ACTIVATIONS | ALONE_ACTIVATIONS
        activation = names.get(layer.function, "relu")
    shape = Kernel(
        op=op,
        activation=activation,
        kernel=layer.kernel if weighted else (),
        stride=layer.stride if weighted else (),
        groups=layer.groups if op in ("conv", "transposed") else 1,
        in_map=layer.in_map if layer.has_weight else (before if op == "pool" else layer.out_map),
        out_map=layer.out_map,
    )
    return Step(layer=index, shape=shape, sources=sources, whole=op == "pool" and set(layer.out_map) <= {1})


def _op(layer: LayerShape) -> Op:
    if layer.kind == "conv" and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return "depthwise"
    if "pool" in layer.function:
        return "pool"
    kinds: dict[str, Op] = {
        "conv": "conv",
        "transposed": "transposed",
        "linear": "linear",
        "add": "add",
        "mul": "mul",
        "concat": "concat",
        "norm": "norm",
        "activation": "activation",
        "pool": "pool",
    }
    return kinds.get(layer.kind, "copy")


def executed(layout: Layout, widths: Widths, formats: Formats) -> Iterator[Work]:
    """The kernels that a runtime executes for `K` variants of a layout, conversions of format included."""
    steps = steps_of(layout, formats.fuses)
    count = len(widths.outputs)
    run = _Run(steps, layout, widths, formats, np.ones(count, dtype=np.bool_))
    for index in range(len(steps)):
        yield from run.play(index)
    yield from run.leave()


class _Run:
    """Follows the tensors' formats through the steps, for all variants together.

    Kernels are given when it is known how they run: a convolution before an addition waits for it.
    """

    def __init__(self, steps: tuple[Step, ...], layout: Layout, widths: Widths, formats: Formats, every: BoolArray):
        self.steps, self.layout, self.widths, self.formats, self.every = steps, layout, widths, formats, every
        self.blocked: list[BoolArray] = []  # per step: where its output is blocked
        self.plain_reader: list[BoolArray] = []  # per step: where something reads its output plain
        self.block_reader: list[BoolArray] = []
        self.uses = [0] * len(steps)
        for step in steps:
            for source in step.sources:
                if source >= 0:
                    self.uses[source] += 1
        adds = [step for step in steps if step.shape.op == "add" and len(step.sources) == 2]
        waits = {s for step in adds for s in step.sources if s >= 0 and self._may_add(s)}
        self.waiting = waits if formats.fuses else set()

    def _may_add(self, source: int) -> bool:
        shape = self.steps[source].shape
        return shape.op in ("conv", "depthwise") and not shape.activation and self.uses[source] == 1

    def play(self, index: int) -> Iterator[Work]:
        """Runs one step."""
        step = self.steps[index]
        op = step.shape.op
        reads, writes = self._formats(step)
        self.blocked.append(writes)
        self.plain_reader.append(~self.every)
        self.block_reader.append(~self.every)
        for source in step.sources:
            if source >= 0:
                self.plain_reader[source] = self.plain_reader[source] | ~reads
                self.block_reader[source] = self.block_reader[source] | reads
            elif op != "copy" and reads.any():  # the network's own input is plain
                yield self._convert("to_blocked", step, reads, self.widths.inputs[:, step.layer])
        if op == "add" and self.formats.fuses:
            yield from self._add(index)
        elif index not in self.waiting and not (op == "copy" and self._free(step)):
            yield from self._modes(index, self.every, add=False)

    def _free(self, step: Step) -> bool:
        """Reshapes move nothing."""
        return self.layout.layers[step.layer].kind == "reshape"

    def _formats(self, step: Step) -> tuple[BoolArray, BoolArray]:
        """Where a step reads and where it writes blocked tensors."""
        inputs, outputs = self.widths.inputs[:, step.layer], self.widths.outputs[:, step.layer]
        nowhere = ~self.every
        if not self.formats.block:
            return nowhere, nowhere
        if step.shape.op in ("conv", "depthwise") and len(step.shape.in_map) == 2:
            return self.formats.convolution(inputs, self.widths.groups[:, step.layer])
        given = [self.blocked[s] if s >= 0 else nowhere for s in step.sources]
        every_input = np.logical_and.reduce(given) if given else nowhere
        whole_blocks = outputs % self.formats.block == 0
        if step.shape.op == "pool":
            runs = whole_blocks & every_input if step.whole else whole_blocks
        elif step.shape.op in ("add", "activation", "norm"):
            runs = every_input
        elif step.shape.op == "concat":
            runs = every_input & whole_blocks
        else:
            runs = nowhere
        return runs, runs

    def _add(self, index: int) -> Iterator[Work]:
        """An addition runs inside a convolution that writes its operands' format, or by itself."""
        step = self.steps[index]
        blocked, left = self.blocked[index], self.every
        candidates = [s for s in step.sources if s in self.waiting]
        for source in candidates:
            fused = left & (self.blocked[source] == blocked)
            yield from self._modes(source, fused, add=True, activation=step.shape.activation)
            yield from self._modes(source, ~fused, add=False)
            left = left & ~fused
        if left.any():
            outputs = self.widths.outputs[:, step.layer]
            yield Work(step.layer, replace(step.shape, activation=""), left, outputs, outputs)
            if step.shape.activation:
                yield Work(step.layer, replace(step.shape, op="activation"), left, outputs, outputs)

    def _modes(self, index: int, where: BoolArray, *, add: bool, activation: str = "") -> Iterator[Work]:
        """A step's own kernel in each of the modes in which it runs."""
        step = self.steps[index]
        inputs, outputs = self.widths.inputs[:, step.layer], self.widths.outputs[:, step.layer]
        shape = replace(step.shape, add=add, activation=activation or step.shape.activation)
        if step.shape.op not in ("conv", "depthwise"):
            yield Work(step.layer, shape, where, outputs if shape.square else inputs, outputs)
            return
        groups = self.widths.groups[:, step.layer]
        # A depthwise convolution of one channel is an ordinary one, and groups of one channel are depthwise.
        depthwise = (groups > 1) & (groups == inputs) & (groups == outputs)
        reads, writes = self._formats(step)
        padded = self.formats.padded
        modes: tuple[tuple[Mode, BoolArray], ...] = (
            ("plain", ~writes),
            ("direct", writes & ~reads),
            ("blocked", reads),
        )
        for kind, kinds in (
            (replace(shape, op="conv"), ~depthwise),
            (replace(shape, op="depthwise", groups=1), depthwise),
        ):
            for mode, holds in modes:
                here = where & kinds & holds
                if here.any():
                    columns = padded(inputs) if mode == "blocked" else inputs
                    rows = outputs if mode == "plain" else padded(outputs)
                    yield Work(step.layer, replace(kind, mode=mode), here, columns, rows)

    def leave(self) -> Iterator[Work]:
        """Conversions, once per tensor and format, and of the network's output."""
        if not self.formats.block:
            return
        for index, step in enumerate(self.steps):
            channels = self.widths.outputs[:, step.layer]
            last = index == len(self.steps) - 1
            to_plain = self.blocked[index] & (self.every if last else self.plain_reader[index])
            to_blocked = ~self.blocked[index] & self.block_reader[index]
            if to_plain.any():
                yield self._convert("to_plain", step, to_plain, channels)
            if to_blocked.any():
                yield self._convert("to_blocked", step, to_blocked, channels)

    def _convert(self, op: Op, step: Step, where: BoolArray, channels: IntArray) -> Work:
        own = step.shape.in_map if op == "to_blocked" and -1 in step.sources else step.shape.out_map
        channels = self.formats.padded(channels) if op == "to_blocked" else channels
        return Work(step.layer, Kernel(op=op, in_map=own, out_map=own), where, channels, channels)
