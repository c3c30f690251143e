"""2:4 weights on a CUDA device: torch's compressed format, and whether its products agree with the dense ones."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hw_profiles.layers import LayerShape
from hw_profiles.shape_rules import load_rules

BATCH = 64
"""Columns of the random input that products are compared on; a multiple of 8, as the kernels ask for."""
TOLERANCE = 5e-3
"""Largest difference relative to the largest output: half precision, sums in another order."""


def as_matrix(weight: Tensor) -> Tensor:
    """[O, kernel positions x I] of a weight [O, I, ...]: consecutive columns are input channels of one position."""
    return weight.movedim(1, -1).reshape(len(weight), -1)


def compressed(dense: Tensor) -> Tensor:
    """[O, n] float16 with zeros in torch's 2:4 format, whose products with matrices [n, k] are what `dense` gives.

    Raises:
        RuntimeError: If torch's kernels do not take this shape on this device.
    """
    from torch.sparse import to_sparse_semi_structured

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the format a prototype
        return to_sparse_semi_structured(dense)


def difference_on_cuda(weight: Tensor, seed: int = 0) -> float | None:
    """Largest relative difference between torch's 2:4 product and the dense one, in float16.

    Args:
        weight: [O, I, ...] with at most 2 of 4 consecutive input channels not zero.
        seed: Of the random inputs.

    Returns:
        None where there is no CUDA device, or its kernels (CUTLASS) do not take this shape.
    """
    if not torch.cuda.is_available() or not _taken(weight):
        return None
    dense = as_matrix(weight).half().cuda().contiguous()
    inputs = torch.randn(dense.shape[1], BATCH, generator=torch.Generator().manual_seed(seed)).half().cuda()
    expected = dense @ inputs
    got = torch.mm(compressed(dense), inputs)
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _taken(weight: Tensor) -> bool:
    shape = LayerShape(
        name="weight",
        kind="linear" if weight.ndim == 2 else "conv",
        in_channels=weight.shape[1],
        out_channels=len(weight),
        kernel=tuple(weight.shape[2:]),
        pattern="2:4",
    )
    return not load_rules("cutlass-float16").refusal(shape, "2:4")
