"""The rules of onnxruntime's CPU provider (1.22 to 1.31): what it fuses, and which tensors are in blocks (NCHWc)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hw_profiles.latency.graphs import Probe, parts
from hw_profiles.latency.kernels import ACTIVATIONS, BoolArray, Formats, Kernel
from hw_profiles.latency.runtimes.execution import Operands, TokenRules
from hw_profiles.layers import IntArray

FUSED_ACTIVATIONS: Mapping[str, str] = {
    function: activation
    for function, activation in ACTIVATIONS.items()
    if activation in ("relu", "clip", "sigmoid", "tanh", "leakyrelu", "hardsigmoid")
}


@dataclass(frozen=True, slots=True)
class OnnxRuntimeExecution:
    """Fuses activations and additions into convolutions, and runs what it can on blocks of channels.

    The rules of onnxruntime's `nchwc_transformer.cc`; `amc profile check` and the tests compare them with the graph
    that the runtime itself reports.
    """

    formats: Formats

    @property
    def fused_activations(self) -> Mapping[str, str]:
        """Those that a convolution applies to its output."""
        return FUSED_ACTIVATIONS if self.formats.fuses else {}

    @property
    def fuses_additions(self) -> bool:
        """Convolutions add a residual to their output."""
        return self.formats.fuses

    @property
    def tokens(self) -> TokenRules:
        """Biases apart, but in BiasGelu and SkipLayerNormalization; products in columns of a vector register."""
        return TokenRules(
            separate_bias=True, fused_bias=("gelu",), adds_in_norms=self.formats.fuses, tile=max(1, self.formats.block)
        )

    def blocked(self, kernel: Kernel, operands: Operands) -> tuple[BoolArray, BoolArray]:
        """[K] where a kernel reads and [K] where it writes tensors in blocks."""
        nowhere = np.zeros(len(operands.inputs), dtype=np.bool_)
        if not self.formats.block:
            return nowhere, nowhere
        if kernel.op in ("conv", "depthwise") and len(kernel.in_map) == 2:
            return self.convolution(operands.inputs, operands.groups)
        every_input = np.logical_and.reduce(operands.blocked) if operands.blocked else nowhere
        whole_blocks = operands.outputs % self.formats.block == 0
        if kernel.op == "pool":
            whole_map = set(kernel.out_map) <= {1}
            runs = whole_blocks & every_input if whole_map else whole_blocks
        elif kernel.op == "add" and len(operands.blocked) == 1:
            runs = nowhere  # its other operand is a constant, which is never in blocks
        elif kernel.op in ("add", "activation", "norm"):
            runs = every_input
        elif kernel.op == "concat":
            runs = every_input & whole_blocks
        else:
            runs = nowhere
        return runs, runs

    def convolution(self, inputs: IntArray, groups: IntArray) -> tuple[BoolArray, BoolArray]:
        """Where a two-dimensional convolution reads and where it writes tensors in blocks, if there are blocks.

        Args:
            inputs: [K] input channels.
            groups: [K] groups; equal to `inputs` for a depthwise convolution.
        """
        aligned = inputs % self.formats.align == 0
        single, depthwise = groups == 1, (groups == inputs) & (groups > 1)
        direct = single & (inputs < self.formats.block)
        blocked = (single & aligned & ~direct) | (depthwise & aligned)
        return blocked, blocked | direct

    def parts(self, probe: Probe) -> list[Probe]:
        """What keeps the copies of an ONNX micro-graph apart; nothing where nothing is fused."""
        return parts(probe, self.formats) if self.formats.fuses else []
