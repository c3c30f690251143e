"""From a layout to the kernels that a runtime executes: in which format each runs, and what has to be converted.

For `K` variants at once, because formats depend on the widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hw_profiles.latency.kernels import BoolArray, Kernel, Mode, Op
from hw_profiles.latency.runtimes.execution import Execution, Operands
from hw_profiles.latency.steps import Step, steps_of
from hw_profiles.layers import IntArray, Layout, Widths


class Work(NamedTuple):
    """One kernel at work for a layer in those of `K` variants where `where` holds, with channels in and out ([K])."""

    layer: int
    kernel: Kernel
    where: BoolArray
    inputs: IntArray
    outputs: IntArray


def executed(layout: Layout, widths: Widths, execution: Execution) -> Iterator[Work]:
    """The kernels that a runtime executes for `K` variants of a layout, conversions of format included."""
    run = _Run(layout, widths, execution)
    for index in range(len(run.steps)):
        yield from map(_present, run.play(index))
    yield from map(_present, run.leave())


def _present(work: Work) -> Work:
    """The same, but nowhere where no channels are left: an operator that is gone takes no time."""
    return work._replace(where=work.where & (work.inputs > 0) & (work.outputs > 0))


class _Run:
    """Follows the tensors' formats through the steps, for all variants together.

    Kernels are given when it is known how they run: a convolution before an addition waits for it.
    """

    def __init__(self, layout: Layout, widths: Widths, execution: Execution) -> None:
        self.layout, self.widths, self.execution = layout, widths, execution
        self.formats = execution.formats
        self.steps = steps_of(layout, execution)
        self.every: BoolArray = np.ones(len(widths.outputs), dtype=np.bool_)
        self.blocked: list[BoolArray] = []  # per step: where its output is blocked
        self.plain_reader: list[BoolArray] = []  # per step: where something reads its output plain
        self.block_reader: list[BoolArray] = []
        self.uses = [0] * len(self.steps)
        for step in self.steps:
            for source in step.sources:
                if source >= 0:
                    self.uses[source] += 1
        adds = [step for step in self.steps if step.shape.op == "add" and len(step.sources) == 2]
        waits = {s for step in adds for s in step.sources if s >= 0 and self._may_add(s)}
        self.waiting = waits if execution.fuses_additions else set()

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
        if op == "add" and self.execution.fuses_additions:
            yield from self._add(index)
        elif index not in self.waiting and not (op == "copy" and self._free(step)):
            yield from self._modes(index, self.every, add=False)

    def _free(self, step: Step) -> bool:
        """Reshapes move nothing."""
        return self.layout.layers[step.layer].kind == "reshape"

    def _formats(self, step: Step) -> tuple[BoolArray, BoolArray]:
        """Where a step reads and where it writes blocked tensors."""
        widths, column = self.widths, step.layer
        given = tuple(self.blocked[source] if source >= 0 else ~self.every for source in step.sources)
        operands = Operands(widths.inputs[:, column], widths.outputs[:, column], widths.groups[:, column], given)
        return self.execution.blocked(step.shape, operands)

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
        if step.shape.op not in ("conv", "depthwise"):
            yield Work(step.layer, step.shape, where, *self._sizes(step))
            return
        inputs, outputs = self.widths.inputs[:, step.layer], self.widths.outputs[:, step.layer]
        shape = replace(step.shape, add=add, activation=activation or step.shape.activation)
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

    def _sizes(self, step: Step) -> tuple[IntArray, IntArray]:
        """[K] channels in and out of a kernel that is no convolution; of a head, and heads, in an attention core."""
        shape, tile = step.shape, self.execution.tokens.tile
        inputs, outputs = self.widths.inputs[:, step.layer], self.widths.outputs[:, step.layer]
        if shape.attends:
            heads = self.widths.groups[:, step.layer]
            of_all = inputs if shape.op == "scores" else _tiled(outputs, tile * heads)
            return of_all // np.maximum(heads, 1), heads
        if shape.op == "linear" and shape.in_map:
            return inputs, _tiled(outputs, np.asarray(tile))
        return outputs if shape.square else inputs, outputs

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


def _tiled(channels: IntArray, tile: IntArray) -> IntArray:
    """Channels in whole tiles."""
    return np.asarray(-(-channels // np.maximum(tile, 1)) * tile)
