"""Ridge regression toward given weights, from sums over chunks of rows; solved in the smaller dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MIN_PENALTY = 1e-6
"""Of the features' mean square, means included: tenfold a few times, it makes any rounded Gram matrix definite."""
MIN_ABSOLUTE_PENALTY = 1e-12
"""Where all features are zero."""
MIN_BAND, WIDE = 32, 320
"""Fewest columns worth a product of their own, and more than how many are worth four bands instead of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Result of a regression: new weights [G, n, o] and the change of the intercept [G, o]."""

    weights: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over rows x [G, m, n] and residuals r [G, m, o]; `rows` are kept instead of a Gram when n > m.

    Attributes:
        count: Rows summed.
        x: [G, n] sum of x.
        r: [G, o] sum of r.
        xx: [G, n, n] sum of x'x, or None.
        xr: [G, n, o] sum of x'r, or None.
        rows: Pairs (x, r), when the Gram would be larger than the rows.
    """

    count: int
    x: Tensor
    r: Tensor
    xx: Tensor | None
    xr: Tensor | None
    rows: tuple[tuple[Tensor, Tensor], ...] = ()


def sums_of(x: Tensor, r: Tensor, *, gram: bool = True) -> Sums:
    """Sums of one chunk.

    Args:
        x: [G, m, n] rows, whose precision the products have; bfloat16 is summed in float32.
        r: [G, m, o] what the given weights leave unexplained.
        gram: Sum a Gram matrix; otherwise the rows themselves are kept.
    """
    kept = () if gram else ((x.to(r.dtype), r),)
    wide = torch.promote_types(x.dtype, torch.float32)
    xx, xr = (_symmetric(x, wide), _cross(x, r.to(x.dtype)).to(wide)) if gram else (None, None)
    return Sums(count=x.shape[1], x=x.sum(1, dtype=wide), r=r.sum(1), xx=xx, xr=xr, rows=kept)


def _symmetric(x: Tensor, wide: torch.dtype) -> Tensor:
    """[G, n, n] x'x in a wider precision; of one group the upper triangle in bands, mirrored."""
    if len(x) > 1:
        return (x.transpose(1, 2) @ x).to(wide)
    rows, n = x[0], x.shape[2]  # as matrices: batched products of one are slower
    band = max(MIN_BAND, -(-n // (4 if n > WIDE else 2)))
    gram = x.new_empty(n, n, dtype=wide)
    for start in range(0, n, band):
        upper = rows[:, start : start + band].T @ rows[:, start:]
        gram[start : start + band, start:] = upper
        gram[start + band :, start : start + band] = upper[:, band:].T
    return gram[None]


def _cross(x: Tensor, r: Tensor) -> Tensor:
    """[G, n, o] x'r."""
    return x.transpose(1, 2) @ r if len(x) > 1 else (x[0].T @ r[0])[None]


def add(chunks: Iterable[Sums]) -> Sums:
    """Adds chunks in order."""
    total: Sums | None = None
    for part in chunks:
        if total is None:
            total = part
            continue
        if (total.xx is None) != (part.xx is None):
            raise ValueError("all chunks of a regression must keep a Gram matrix, or none of them, but got both kinds")
        total = Sums(
            count=total.count + part.count,
            x=total.x + part.x,
            r=total.r + part.r,
            xx=None if total.xx is None or part.xx is None else total.xx + part.xx,
            xr=None if total.xr is None or part.xr is None else total.xr + part.xr,
            rows=total.rows + part.rows,
        )
    if total is None:
        raise ValueError("a regression needs at least one chunk of rows, but got none")
    return total


def missing(sums: Sums, weights: Tensor, columns: Tensor) -> Sums:
    """Sums over the kept columns, with what the other columns gave the outputs as residual.

    Args:
        sums: Over all columns.
        weights: [G, n, o] float64 weights on all columns.
        columns: [k] columns that are kept.
    """
    gone = weights.clone()
    gone[:, columns] = 0
    x = sums.x[:, columns]
    r = torch.einsum("gn,gno->go", sums.x.double(), gone)
    if sums.xx is not None:
        xx, xr = sums.xx[:, columns[:, None], columns], sums.xx[:, columns].double() @ gone
        return Sums(count=sums.count, x=x, r=r, xx=xx, xr=xr)
    rows = tuple((rows[:, :, columns], rows.double() @ gone) for rows, _ in sums.rows)
    return Sums(count=sums.count, x=x, r=r, xx=None, xr=None, rows=rows)


def changed(sums: Sums, matrix: Tensor) -> Sums:
    """Sums over rows that are multiplied with a matrix.

    Args:
        sums: Over rows [1, m, n].
        matrix: [n, n] float64 M: rows x become x M.
    """
    exact = matrix.to(sums.x.device)
    xx = None if sums.xx is None else (exact.T @ sums.xx.double() @ exact).to(sums.xx.dtype)
    xr = None if sums.xr is None else (exact.T @ sums.xr.double()).to(sums.xr.dtype)
    rows = tuple(((x.double() @ exact).to(x.dtype), r) for x, r in sums.rows)
    return replace(sums, x=(sums.x.double() @ exact).to(sums.x.dtype), xx=xx, xr=xr, rows=rows)


Finish = Callable[[Tensor, Tensor], Tensor]
"""(fitted weights [G, n, o], curvature [G, n, n] or its diagonal [G, n]) -> weights: what has to hold beside."""


def solve(sums: Sums, weights: Tensor, ridge: float, *, intercept: bool, finish: Finish | None = None) -> Fit:
    """Argmin over W, b of |r - x (W - W0) - b|^2 / m + penalty |W - W0|^2, penalty = ridge x mean diagonal.

    Args:
        sums: Sums over rows; r is the residual of the given weights.
        weights: [G, n, o] the given weights W0 (the prior).
        ridge: Penalty relative to the mean diagonal of the Gram matrix.
        intercept: Fit an intercept as well.
        finish: Changes the fitted weights, such as to a sparsity pattern; the intercept follows.

    Returns:
        Weights and intercept in float64.
    """
    x_mean, r_mean = sums.x.double() / sums.count, sums.r.double() / sums.count
    if not intercept:
        x_mean, r_mean = torch.zeros_like(x_mean), torch.zeros_like(r_mean)
    change = _dual(sums, x_mean, r_mean, ridge) if sums.xx is None else _primal(sums, x_mean, r_mean, ridge)
    new = weights.double() + change
    if finish is not None:
        new = finish(new, curvature_of(sums, x_mean, ridge))
    shift = r_mean - torch.einsum("gn,gno->go", x_mean, new - weights.double())
    return Fit(weights=new, shift=shift)


def curvature_of(sums: Sums, x_mean: Tensor, ridge: float) -> Tensor:
    """[G, n, n] float64 Gram matrix less the means, plus the penalty; its diagonal [G, n] where rows were kept.

    Args:
        sums: Sums over rows.
        x_mean: [G, n] means, 0 without an intercept.
        ridge: Penalty relative to the mean diagonal.
    """
    if sums.xx is None:
        total = torch.stack([x.double().square().sum(dim=1) for x, _ in sums.rows]).sum(dim=0)
        diagonal = total / sums.count - x_mean.square()
        return diagonal + _penalty(diagonal.mean(dim=1), ridge)[:, None]
    gram = sums.xx.double() / sums.count - x_mean[:, :, None] * x_mean[:, None, :]
    _, penalty = factor(gram, _started(sums, gram, ridge))
    return gram + penalty[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)


def products_of(sums: Sums) -> tuple[Tensor, Tensor]:
    """[G, n, n] sum of x'x and [G, n, o] sum of x'r.

    Raises:
        ValueError: If rows were kept instead.
    """
    if sums.xx is None or sums.xr is None:
        raise ValueError("products of rows are needed, but the rows themselves were kept: sum with gram=True")
    return sums.xx, sums.xr


def _primal(sums: Sums, x_mean: Tensor, r_mean: Tensor, ridge: float) -> Tensor:
    xx, xr = products_of(sums)
    gram = xx.double() / sums.count - x_mean[:, :, None] * x_mean[:, None, :]
    cross = xr.double() / sums.count - x_mean[:, :, None] * r_mean[:, None, :]
    return torch.cholesky_solve(cross, factor(gram, _started(sums, gram, ridge))[0])


def _started(sums: Sums, gram: Tensor, ridge: float) -> Tensor:
    """[G] penalty to begin with: rounding can leave the Gram matrix of features that hardly vary negative."""
    energy = products_of(sums)[0].diagonal(dim1=1, dim2=2).double().mean(dim=1) / sums.count
    return torch.maximum(penalty_of(gram, ridge), MIN_PENALTY * energy)


def _dual(sums: Sums, x_mean: Tensor, r_mean: Tensor, ridge: float) -> Tensor:
    """The same solution through the rows' inner products: x' (x x' + m p)^-1 r."""
    x = torch.cat([x for x, _ in sums.rows], dim=1).double() - x_mean[:, None, :]
    r = torch.cat([r for _, r in sums.rows], dim=1).double() - r_mean[:, None, :]
    return dual(x, x, r, ridge)


def dual(x: Tensor, full: Tensor, r: Tensor, ridge: float) -> Tensor:
    """[G, n, o] change of the weights from few rows, through their inner products.

    Args:
        x: [G, m, n] rows, centered if an intercept is fitted.
        full: [G, m, n'] rows whose mean diagonal the penalty is relative to (x, or more columns).
        r: [G, m, o] residuals, centered as x.
        ridge: Penalty relative to the mean diagonal.
    """
    mean = full.square().sum(dim=(1, 2)) / (x.shape[1] * full.shape[2])
    lower, _ = factor(x @ x.transpose(1, 2) / x.shape[1], _penalty(mean, ridge))
    return x.transpose(1, 2) @ torch.cholesky_solve(r / x.shape[1], lower)


def penalty_of(gram: Tensor, ridge: float) -> Tensor:
    """[G] penalty: ridge x mean diagonal of the [G, n, n] Gram matrix, kept off zero."""
    return _penalty(gram.diagonal(dim1=1, dim2=2).mean(dim=1), ridge)


def _penalty(mean: Tensor, ridge: float) -> Tensor:
    return (max(ridge, 1e-8) * mean).clamp_min(MIN_ABSOLUTE_PENALTY)


def factor(gram: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factor of gram + penalty, and the penalty, which grows tenfold until there is one.

    Args:
        gram: [G, n, n] float64.
        penalty: [G] added to the diagonal.

    Returns:
        [G, n, n] factor and [G] penalty used.
    """
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    for _ in range(8):
        lower: Tensor
        lower, info = torch.linalg.cholesky_ex(gram + penalty[:, None, None] * eye)
        if not bool(info.any()):
            return lower, penalty
        penalty = 10 * penalty
    raise ValueError("calibration features must be finite, but their Gram matrix has no Cholesky factor")
