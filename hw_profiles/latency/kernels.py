"""What a runtime executes as one piece (`Kernel`), and how it lays tensors out (`Formats`).

A kernel is a fused layer shape without its widths: the key under which measured times are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hw_profiles.layers import IntArray

BoolArray = NDArray[np.bool_]

Op = Literal[
    "conv",
    "depthwise",
    "transposed",
    "linear",
    "bias",
    "scores",
    "mix",
    "layernorm",
    "add",
    "mul",
    "concat",
    "norm",
    "activation",
    "pool",
    "copy",
    "to_blocked",
    "to_plain",
    "sink",
]
"""What a kernel does; "copy" stands for whatever moves a tensor without arithmetic, "sink" ends a micro-graph.

An attention core is two kernels: "scores" (queries by keys, and the softmax if `activation` says so) and "mix" (weights
by values). "bias" adds a vector to every position, where a linear layer does not do that itself."""

Mode = Literal["plain", "direct", "blocked"]
"""How a kernel meets its tensors: plain (channels one after the other), blocked (channels in blocks of a vector
register), or direct (reads plain, writes blocked: a convolution of few input channels)."""

ACTIVATIONS = {
    "relu": "relu",
    "relu6": "clip",
    "hardtanh": "clip",
    "clamp": "clip",
    "clip": "clip",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "leakyrelu": "leakyrelu",
    "hardsigmoid": "hardsigmoid",
    "silu": "silu",
    "hardswish": "hardswish",
    "gelu": "gelu",
    "gelutanh": "gelutanh",
    "softmax": "softmax",
}
"""Function of an operator -> the activation that a kernel of its own computes; others are taken for a relu."""


@dataclass(frozen=True, slots=True)
class Formats:
    """Tensor formats of a runtime on a device, found by asking it (`device_script.detect_formats`).

    Attributes:
        block: Channels in a block; 0 where the runtime knows only the plain format.
        align: Input channels must be a multiple of this for a convolution to run blocked.
        fuses: Whether activations and additions are done by the convolution before them.
    """

    block: int = 0
    align: int = 1
    fuses: bool = True

    def padded(self, channels: IntArray) -> IntArray:
        """Channels that a blocked kernel really works on: whole blocks."""
        return -(-channels // self.block) * self.block if self.block else channels


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Kernel:
    """One piece of a runtime's work, but for its widths.

    Attributes:
        op: What it does.
        mode: How it meets its tensors.
        add: Whether it also adds another tensor: a residual connection to its output (to the input of a layer norm), a
            mask to scores.
        activation: Activation that it applies to its output, or is ("relu"); "" for none.
        kernel: Kernel size per spatial dimension, () without a kernel.
        stride: Stride per spatial dimension, () without a kernel.
        groups: Groups of a convolution (1 for a depthwise one, whose groups follow its width).
        in_map: Size of the input without batch and channels; of an attention core the positions that are attended to.
        out_map: Size of the output without batch and channels.
    """

    op: Op
    mode: Mode = "plain"
    add: bool = False
    activation: str = ""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    in_map: tuple[int, ...] = ()
    out_map: tuple[int, ...] = ()

    @property
    def square(self) -> bool:
        """Whether input and output channels are always the same number."""
        return self.op not in ("conv", "transposed", "linear", "scores", "mix")

    @property
    def attends(self) -> bool:
        """Whether it is a part of an attention core: its inputs are channels of a head, its outputs heads."""
        return self.op in ("scores", "mix")

    @property
    def over_positions(self) -> bool:
        """Whether its tensors hold channels last, behind their positions (tokens)."""
        return self.op in ("bias", "layernorm", "scores", "mix") or (self.op == "linear" and self.in_map != ())

    @property
    def label(self) -> str:
        """One line for people: `conv 3x3/1 32x32 > 32x32 + add + relu (blocked)`."""
        size = "x".join(map(str, self.kernel))
        size += f"/{self.stride[0]}" if self.stride and size else ""
        maps = " > ".join("x".join(map(str, m)) or "1" for m in (self.in_map, self.out_map))
        groups = f"{self.groups} groups" if self.groups > 1 else ""
        fused = "".join(f" + {name}" for name in ("add" if self.add else "", self.activation) if name)
        return " ".join(part for part in (self.op, size, groups, maps) if part) + f"{fused} ({self.mode})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_json` reads it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kernel:
        """Reads `to_json` back.

        Raises:
            ValueError: If a field is missing, unknown or of the wrong kind.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names or data["op"] not in get_args(Op) or data["mode"] not in get_args(Mode):
            raise ValueError(f"a kernel must have the fields {', '.join(sorted(names))}, but got {dict(data)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)
