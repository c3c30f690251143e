"""What stands in the place of a branch that is gone: plain modules, none of which looks at what it is called with.

Nothing that the network's own code still does between them depends on the network's input, so exporters fold it away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Gives one value per channel, whatever it is called with; the addition behind it repeats it at all positions.

    Attributes:
        value: [1, ..., C, ..., 1], trained like a bias.
    """

    def __init__(self, channels: int, axis: int, rank: int) -> None:
        """Gives zeros.

        Args:
            channels: Values.
            axis: Where they lie.
            rank: Axes in all.
        """
        super().__init__()
        shape = [channels if place == axis else 1 for place in range(rank)]
        self.value = nn.Parameter(torch.zeros(shape, device="cpu"))  # moved to where the branch stood

    def reset_parameters(self) -> None:
        """Zeros, as for a network that is trained anew."""
        nn.init.zeros_(self.value)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """[1, ..., C, ..., 1]."""
        return self.value

    def extra_repr(self) -> str:
        """The shape."""
        return str(tuple(self.value.shape))


class Skipped(nn.Module):
    """In the place of a layer inside of a branch: gives a single zero, which nobody hears.

    Attributes:
        nothing: A zero with as many axes as what the layer gave.
        outputs: Length of the tuple that the layer gave, 0 where it gave a tensor.
        batch_first: As the layer's, if it was an attention, which encoders ask for it.
    """

    nothing: Tensor
    in_proj_bias = None
    """As in an nn.MultiheadAttention without biases: so torch's encoder layers do not take their fused kernel."""
    _qkv_same_embed_dim = False

    def __init__(self, rank: int, outputs: int = 0, *, batch_first: bool = False) -> None:
        """Holds no parameters."""
        super().__init__()
        self.outputs, self.batch_first = outputs, batch_first
        self.register_buffer("nothing", torch.zeros([1] * rank, device="cpu"), persistent=False)

    def forward(self, *inputs: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        """[1, ..., 1], or a tuple that begins with it."""
        return (self.nothing, *[None] * (self.outputs - 1)) if self.outputs else self.nothing


class ConstantTuple(Constant):
    """A constant in the place of a module that gives a tuple, such as attention: the value, then nothing.

    Attributes:
        outputs: Length of the tuple.
        batch_first: As the module's, if it was an attention, which encoders ask for it.
    """

    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, channels: int, axis: int, rank: int, outputs: int, *, batch_first: bool = False) -> None:
        """Gives zeros."""
        super().__init__(channels, axis, rank)
        self.outputs, self.batch_first = outputs, batch_first

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # a tuple
        """The value, then None."""
        return (self.value, *[None] * (self.outputs - 1))


class Shortcut(nn.Module):
    """In the place of a block whose own code works in place on what its branch gives: tail(shortcut(x) + constant).

    Its parts keep the names that they had in the block.

    Attributes:
        constant: What is left of the branch.
        shortcut_name: Name of the part that the shortcut runs through, "" where it adds what the block is given.
        tail_name: Name of the part behind the addition, "" without one.
    """

    def __init__(self, constant: Constant, shortcut: str, tail: str) -> None:
        """Takes the constant; parts are added by their names."""
        super().__init__()
        self.constant, self.shortcut_name, self.tail_name = constant, shortcut, tail

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] of [B, ...]."""
        added = self.get_submodule(self.shortcut_name)(x) if self.shortcut_name else x
        out: Tensor = added + self.constant()
        return self.get_submodule(self.tail_name)(out) if self.tail_name else out
