"""Which tokens count: padding is computed like all else, but nothing hears it, and no statistic should.

A task says it of its inputs by a mask of the shape of the tokens, such as [N, T]. A layer is looked at by that mask
where it has one row for each token ([N, T, C], [N * T, C], [T, N, C], [N, C, T]), else, as behind pooling, in all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeAlias

from torch import Tensor, nn

from envs.network.inputs import Inputs

Counts: TypeAlias = Callable[[Inputs], Tensor]
"""A batch of inputs -> mask of its tokens, [N, ...] bool or of 0 and 1, true where a token counts."""


def mask_of(counts: Counts | None, inputs: Inputs) -> Tensor | None:
    """[N, ...] bool, which tokens of a batch count; None where all do."""
    return None if counts is None else counts(inputs).bool()


def counted_rows(mask: Tensor, rows: tuple[int, ...]) -> Tensor | None:
    """Which rows of an activation count, of the shape of its rows; None where they are not the tokens.

    Args:
        mask: [N, ...] bool, which tokens count.
        rows: Shape of the activation without its channels.
    """
    if mask.ndim == 2 and rows == (mask.shape[1], mask.shape[0]) and rows != tuple(mask.shape):
        return mask.T
    return mask.reshape(rows) if prod(rows) == mask.numel() else None


def counted_outputs(mask: Tensor, module: nn.Module, outputs: Tensor) -> Tensor | None:
    """[B, P] bool, which output positions of a layer count; None where all do.

    Args:
        mask: [N, ...] bool, which tokens count.
        module: The layer.
        outputs: What it wrote: [B, ..., O], or [B, O, ...] of a convolution.
    """
    linear = isinstance(module, nn.Linear)
    rows = tuple(outputs.shape[:-1]) if linear else (outputs.shape[0], *outputs.shape[2:])
    found = counted_rows(mask, rows)
    return None if found is None else found.reshape(rows[0], -1)
