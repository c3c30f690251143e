"""Which weights of a layer go under a pattern, and what the remaining ones become.

Everything is measured on one matrix: the curvature A (Gram of the layer's inputs plus the ridge penalty), by which
changing weights from W to V costs tr (V - W)' A (V - W). Selections: `magnitude`; `wanda` (Sun et al., A Simple and
Effective Pruning Approach for Large Language Models, ICLR 2024); `sparsegpt` (Frantar & Alistarh, SparseGPT, ICML
2023: one sweep of optimal brain surgeon). `refit` then gives the best remaining weights for any selection.

Deviations: Wanda compares the weights of one output; under a density we compare those of a whole layer, so that every
selection keeps the same number. SparseGPT's blocks under a density are 128 columns, as in its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from envs.compression.names import SELECTIONS
from envs.lookup import find
from envs.regression.ridge import Finish
from envs.regression.rows import kernel_size
from envs.space.patterns import best_mask, grouped
from hw_profiles.patterns import Pattern, parse_pattern

BLOCK = 128
"""Columns whose weights compete with each other in SparseGPT's sweep under a density."""
BAND_BYTES = 64e6
"""Memory of the systems that `refit` solves at once."""


class Sparse(NamedTuple):
    """Weights [G, n, o] float64 with zeros, and [G, n, o] bool which of them stay."""

    weights: Tensor
    mask: Tensor


class Selection(Protocol):
    """Chooses the weights that stay under a pattern.

    Attributes:
        reads_curvature: Whether it looks at the curvature, for which the layer's inputs must be measured.
    """

    reads_curvature: ClassVar[bool] = True

    def __call__(self, weights: Tensor, curvature: Tensor, pattern: Pattern, kernel: int) -> Sparse:
        """What stays of one layer.

        Args:
            weights: [G, n, o] float64 in the order of `weight_rows`.
            curvature: [G, n, n] float64 positive definite, or its diagonal [G, n].
            pattern: What to keep to.
            kernel: Kernel positions per input channel.
        """
        ...


class Magnitude(Selection):
    """The largest weights stay."""

    reads_curvature: ClassVar[bool] = False

    def __call__(self, weights: Tensor, curvature: Tensor, pattern: Pattern, kernel: int) -> Sparse:
        """See `Selection`."""
        mask = best_mask(weights.abs(), pattern, kernel)
        return Sparse(weights * mask, mask)


class Wanda(Selection):
    """The weights of the largest |W| times root mean square of the input stay."""

    def __call__(self, weights: Tensor, curvature: Tensor, pattern: Pattern, kernel: int) -> Sparse:
        """See `Selection`."""
        diagonal = curvature if curvature.ndim == 2 else curvature.diagonal(dim1=1, dim2=2)
        mask = best_mask(weights.abs() * diagonal.clamp_min(0).sqrt()[:, :, None], pattern, kernel)
        return Sparse(weights * mask, mask)


class SparseGPT(Selection):
    """Column by column the cheapest weights go, and those to the right make up for them."""

    def __call__(self, weights: Tensor, curvature: Tensor, pattern: Pattern, kernel: int) -> Sparse:
        """See `Selection`; of a diagonal `Wanda`."""
        if curvature.ndim == 2:
            return Wanda()(weights, curvature, pattern, kernel)
        columns = torch.arange(weights.shape[1], device=weights.device)
        if pattern.structured:
            columns = grouped(columns[None, :, None], pattern, kernel).flatten()
        back = torch.argsort(columns)
        swept = [
            _sweep(w[columns].T, a[columns[:, None], columns], pattern) for w, a in zip(weights, curvature, strict=True)
        ]
        new, mask = (torch.stack([part[k].T[back] for part in swept]) for k in (0, 1))
        return Sparse(new, mask)


def selection_named(name: str) -> Selection:
    """The selection of that name.

    Raises:
        ValueError: If there is none of that name.
    """
    kind: type[Selection] = find("selection", name, SELECTIONS)
    return kind()


def finishes(network: nn.Module, patterns: Mapping[str, str], selection: str, *, refitted: bool) -> dict[str, Finish]:
    """What brings each layer to its pattern.

    Args:
        network: The dense network.
        patterns: Pattern by layer name.
        selection: Name of the selection.
        refitted: Whether what stays makes up for what goes.
    """
    select = selection_named(selection)
    return {
        name: _finish(select, parse_pattern(text), kernel_size(network.get_submodule(name)), refitted)
        for name, text in patterns.items()
    }


def _finish(select: Selection, pattern: Pattern, kernel: int, refitted: bool) -> Finish:
    def finish(weights: Tensor, curvature: Tensor) -> Tensor:
        found = select(weights, curvature, pattern, kernel)
        return refit(found, weights, curvature) if refitted else found.weights

    return finish


def refit(sparse: Sparse, weights: Tensor, curvature: Tensor) -> Tensor:
    """[G, n, o] the remaining weights that come closest to the given ones, as the layer's outputs see it.

    Minimizes (V - W)' A (V - W) with V zero outside of the mask: every output has a system of its own,
    A_SS (V_S - W_S) = A_ST W_T over what stays (S) and what went (T).

    Args:
        sparse: What stays.
        weights: [G, n, o] float64 weights W before anything went.
        curvature: [G, n, n] positive definite A; with its diagonal alone nothing can be made up for.
    """
    if curvature.ndim == 2:
        return weights * sparse.mask
    parts = [_refit_group(w.T, keep.T, a) for w, keep, a in zip(weights, sparse.mask, curvature, strict=True)]
    return torch.stack([part.T for part in parts])


def _refit_group(weights: Tensor, keep: Tensor, curvature: Tensor) -> Tensor:
    """[o, n] of one group; weights and mask are [o, n]."""
    width = int(keep.sum(dim=1).max())
    stays = torch.sort(keep.to(torch.int8), dim=1, descending=True, stable=True).indices[:, :width]  # [o, width]
    valid = keep.gather(1, stays)
    wanted = ((weights * ~keep) @ curvature).gather(1, stays) * valid
    new = weights * keep
    band = max(1, int(BAND_BYTES / (8 * max(width, 1) ** 2)))
    eye = torch.eye(width, dtype=curvature.dtype, device=curvature.device)
    for start in range(0, len(weights), band):
        part, real = stays[start : start + band], valid[start : start + band]
        systems = curvature[part[:, :, None], part[:, None, :]]
        systems = torch.where(real[:, :, None] & real[:, None, :], systems, eye)
        change = torch.cholesky_solve(wanted[start : start + band, :, None], torch.linalg.cholesky(systems))[:, :, 0]
        new[start : start + band].scatter_add_(1, part, change * real)
    return new


def _sweep(weights: Tensor, curvature: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """[o, n] weights and mask after one sweep over the columns, those of an N:M group beside each other."""
    weights = weights.clone()
    keep = torch.ones_like(weights, dtype=torch.bool)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
    upper = torch.linalg.cholesky(inverse, upper=True)
    block = pattern.group if pattern.structured else BLOCK
    for start in range(0, weights.shape[1], block):
        stop = min(start + block, weights.shape[1])
        scores = (weights[:, start:stop] / upper.diagonal()[start:stop]).square()
        keep[:, start:stop] = _best(scores, pattern, start)
        for column in range(start, stop):
            gone = weights[:, column] * ~keep[:, column] / upper[column, column]
            weights[:, column:] -= gone[:, None] * upper[column, column:]
    return weights * keep, keep


def _best(scores: Tensor, pattern: Pattern, start: int) -> Tensor:
    """[o, b] bool: the best of a block; under a density so many that blocks add up to what is allowed."""
    outputs, width = scores.shape
    mask = torch.zeros(outputs, width, dtype=torch.bool, device=scores.device)
    if pattern.structured:
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, : pattern.keep]
        return mask.scatter_(1, order, True)
    count = pattern.allowed(outputs * (start + width)) - pattern.allowed(outputs * start)
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices[:count]
    mask.view(-1)[order] = True
    return mask
