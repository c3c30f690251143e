"""Queries and keys as a regression: what their products lose without some channels, and what makes up for it.

The product of a query and a key is a sum over channels, q k'. Without some of them the best that queries can do, q A,
is the regression of keys on the keys that stay: A depends on the keys' moments alone, and the error left is a quadratic
form in the queries' moments, as that of a linear layer with inputs k and weights Q^(1/2), where Q = E[q' q]. Keys count
without their mean: softmax does not hear what all keys share. Several heads are that many regressions side by side:
what channels of two heads have in common counts as nothing.

Deviation: queries and keys of one image depend on each other; here they count as independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from envs.regression.ridge import Sums, add, factor, missing, penalty_of, products_of
from envs.regression.rows import weight_rows
from envs.regression.shrinkage import UNDIVIDED_RIDGE, best_ridge

NOISE = 1e-8
"""Of keys' mean square: what their variance is known to, as a difference of sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Moments of one unit's queries and keys.

    Attributes:
        weights: [1, C, C] float64 square root of the queries' second moment.
        keys: Sums over keys, by folds of calibration images.
        heads: Heads of equal width that share the channels, one after the other.
    """

    weights: Tensor
    keys: tuple[Sums, ...]
    heads: int = 1

    @classmethod
    def of(
        cls, first: nn.Module, second: nn.Module, queries: Sequence[Sums], keys: Sequence[Sums], heads: int = 1
    ) -> Factors:
        """From the moments of what the two layers read.

        Args:
            first: The linear layer that writes queries.
            second: The one that writes keys.
            queries: Sums over the inputs of `first`, by folds, with Gram matrices.
            keys: The same of `second`.
            heads: Heads that share the channels.
        """
        total = _projected(add(queries), first)
        values, vectors = torch.linalg.eigh(_within(products_of(total)[0][0], heads) / total.count)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        return cls(weights=root[None], keys=tuple(_projected(sums, second) for sums in keys), heads=heads)

    def gram(self) -> Tensor:
        """[1, C, C] float64 covariance of keys."""
        total = add(self.keys)
        mean = total.x / total.count
        return _within(products_of(total)[0] / total.count - mean[:, :, None] * mean[:, None, :], self.heads)

    def second_moments(self) -> tuple[Tensor, Tensor]:
        """[C, C] float64 those of queries, and of keys without their mean, whose smallest ones are noise."""
        keys = self.gram()[0]
        whole = sum((products_of(sums)[0][0].diagonal().sum() for sums in self.keys), start=keys.new_zeros(()))
        noise = NOISE * whole / (len(keys) * sum(sums.count for sums in self.keys))
        return self.weights[0] @ self.weights[0], keys + noise * torch.eye(
            len(keys), dtype=keys.dtype, device=keys.device
        )

    def mix(self, kept: Tensor) -> Tensor:
        """[C, k] float64 A: queries of the kept channels are the dense queries times it.

        Args:
            kept: [k] channels that stay, ascending; as many of each head.
        """
        if self.heads > 1:
            width = self.weights.shape[1] // self.heads
            whole = torch.zeros(self.weights.shape[1], len(kept), dtype=torch.float64, device=kept.device)
            for head in range(self.heads):
                own = kept // width == head
                whole[head * width : (head + 1) * width, own] = self._head(head, width).mix(kept[own] - head * width)
            return whole
        gram = self.gram()
        inner = gram[:, kept[:, None], kept]
        ridge = UNDIVIDED_RIDGE
        if len(self.keys) > 1:
            ridge = best_ridge([missing(sums, self.weights, kept) for sums in self.keys], intercept=True)
        chosen = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)[:, kept]
        lacking = gram[0, kept] - inner[0] @ chosen.T  # [k, C]: what the others say that those do not yet
        lower, _ = factor(inner, penalty_of(gram, ridge))
        return chosen + torch.cholesky_solve(lacking, lower[0]).T

    def _head(self, head: int, width: int) -> Factors:
        """Those of one head alone."""
        own = slice(head * width, (head + 1) * width)
        keys = []
        for sums in self.keys:
            xx, xr = products_of(sums)
            keys.append(replace(sums, x=sums.x[:, own], xx=xx[:, own, own], xr=xr[:, own]))
        return Factors(weights=self.weights[:, own, own], keys=tuple(keys))


def _within(products: Tensor, heads: int) -> Tensor:
    """Products [..., C, C] of channels with those of another head zeroed."""
    if heads == 1:
        return products
    width = products.shape[-1] // heads
    head = torch.arange(products.shape[-1], device=products.device) // width
    return products * (head[:, None] == head)


def _projected(sums: Sums, layer: nn.Module) -> Sums:
    """Sums over a linear layer's outputs, from those over its inputs."""
    weights = weight_rows(layer).double()[0]
    bias = getattr(layer, "bias", None)
    shift = torch.zeros_like(weights[0]) if bias is None else bias.detach().double()
    x, xx = sums.x.double()[0] @ weights, weights.T @ products_of(sums)[0].double()[0] @ weights
    cross = x[:, None] * shift
    xx = xx + cross + cross.T + sums.count * shift[:, None] * shift
    x = x + sums.count * shift
    empty = x.new_zeros((1, 0))
    return Sums(count=sums.count, x=x[None], r=empty, xx=xx[None], xr=x.new_zeros((1, len(x), 0)))
