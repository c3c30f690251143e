"""How strongly a fit is held to its prior: the ridge with the least error on images that the fit did not see.

Rows of one image are alike, so leave-one-out or generalized cross-validation over rows would take them for far more
evidence than they are. Whole folds of images are left out instead (Stone, 1974), in closed form: the error on a fold is
a quadratic form in its Gram matrix, so that no row is looked at twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.regression.ridge import MIN_ABSOLUTE_PENALTY, Sums, add, products_of

RIDGES = tuple(10.0 ** (power / 2) for power in range(-3, 3))
"""Penalties tried, relative to the mean diagonal of the Gram matrix; between them a parabola tells. Lower ones never
served a network better: its earlier layers are fitted to the images of all folds, so none of them is quite unseen.
"""
FOLDS = 2
UNDIVIDED_RIDGE = 0.1
"""Where all images are one fold, so that none can be left out."""
MOST_OUTPUTS = 128
"""More outputs are judged by so many random sums of them, which keep squared errors in the mean (Johnson and
Lindenstrauss, 1984); all ridges see the same sums. A layer of 1,536 outputs takes a fifth of the time.
"""


def folded_sums(parts: Iterable[Sums], folds: int = FOLDS) -> tuple[Sums, ...]:
    """Sums of every second (third, ...) chunk; one fold where there is but one chunk."""
    totals: list[Sums] = []
    for index, part in enumerate(parts):
        if index < folds:
            totals.append(part)
        else:
            totals[index % folds] = add([totals[index % folds], part])
    return tuple(totals)


def best_ridge(folds: Sequence[Sums], *, intercept: bool) -> float:
    """The ridge whose fits predict the folds they were not made from best, one for all groups of a layer.

    Args:
        folds: Sums over disjoint sets of images, two or more.
        intercept: Whether an intercept is fitted as well.

    Returns:
        Penalty relative to the mean diagonal of the Gram matrix, for a fit to all folds together: the
        best penalty of a *sum* of squares does not grow with the rows, so that of their mean shrinks as they do.
    """
    folds = [_fewer_outputs(fold) for fold in folds]
    errors = np.zeros(len(RIDGES))
    for index, held in enumerate(folds):
        rest = add(fold for k, fold in enumerate(folds) if k != index)
        errors += _gram_errors(rest, held, intercept) if rest.xx is not None else _row_errors(rest, held, intercept)
    return float(10 ** _lowest(np.log10(RIDGES), errors)) * (1 - 1 / len(folds))


def _fewer_outputs(sums: Sums) -> Sums:
    """The same with random sums in the place of many outputs."""
    outputs = sums.r.shape[1]
    if outputs <= MOST_OUTPUTS:
        return sums
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randn(outputs, MOST_OUTPUTS, generator=draw, dtype=torch.float64, device="cpu")
    mix = (drawn / MOST_OUTPUTS**0.5).to(sums.r.device)
    return replace(
        sums,
        r=sums.r.double() @ mix,
        xr=None if sums.xr is None else sums.xr.double() @ mix,
        rows=tuple((x, r.double() @ mix) for x, r in sums.rows),
    )


def _gram_errors(rest: Sums, held: Sums, intercept: bool) -> NDArray[np.float64]:
    """[R] squared error on `held` of fits to `rest`, less that of the prior, per ridge."""
    (rest_xx, rest_xr), (held_xx, held_xr) = products_of(rest), products_of(held)
    x_mean, r_mean = _means(rest, intercept)
    gram = rest_xx.double() / rest.count - x_mean[:, :, None] * x_mean[:, None, :]
    cross = rest_xr.double() / rest.count - x_mean[:, :, None] * r_mean[:, None, :]
    x, r = held.x.double(), held.r.double()
    seen = held_xx.double() - x_mean[:, :, None] * x[:, None, :] - x[:, :, None] * x_mean[:, None, :]
    seen += held.count * x_mean[:, :, None] * x_mean[:, None, :]
    wanted = held_xr.double() - x_mean[:, :, None] * r[:, None, :] - x[:, :, None] * r_mean[:, None, :]
    wanted += held.count * x_mean[:, :, None] * r_mean[:, None, :]
    errors = []
    for change in _changes(gram, gram.diagonal(dim1=1, dim2=2).mean(dim=1), cross):
        errors.append(((seen @ change - 2 * wanted) * change).sum())
    return torch.stack(errors).nan_to_num(nan=torch.inf).cpu().numpy()


def _row_errors(rest: Sums, held: Sums, intercept: bool) -> NDArray[np.float64]:
    """The same through inner products of rows, where they are fewer than the columns."""
    x_mean, r_mean = _means(rest, intercept)
    x, r = _rows(rest, x_mean, r_mean)
    x_held, r_held = _rows(held, x_mean, r_mean)
    mean = x.square().sum(dim=(1, 2)) / (x.shape[1] * x.shape[2])
    inner, across = x @ x.transpose(1, 2) / rest.count, x_held @ x.transpose(1, 2) / rest.count
    errors = [(r_held - across @ dual).square().sum() for dual in _changes(inner, mean, r)]
    return (torch.stack(errors) - r_held.square().sum()).nan_to_num(nan=torch.inf).cpu().numpy()


def _changes(gram: Tensor, scale: Tensor, cross: Tensor) -> Iterable[Tensor]:
    """(gram + ridge x scale)^-1 cross for every ridge; NaN where there is none."""
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    for ridge in RIDGES:
        lower, info = torch.linalg.cholesky_ex(
            gram + (ridge * scale).clamp_min(MIN_ABSOLUTE_PENALTY)[:, None, None] * eye
        )
        found = torch.cholesky_solve(cross, lower)
        yield torch.where(info[:, None, None] == 0, found, torch.full_like(found, torch.nan))


def _means(sums: Sums, intercept: bool) -> tuple[Tensor, Tensor]:
    x, r = sums.x.double() / sums.count, sums.r.double() / sums.count
    return (x, r) if intercept else (torch.zeros_like(x), torch.zeros_like(r))


def _rows(sums: Sums, x_mean: Tensor, r_mean: Tensor) -> tuple[Tensor, Tensor]:
    x, r = (torch.cat(columns, dim=1).double() for columns in zip(*sums.rows, strict=True))
    return x - x_mean[:, None, :], r - r_mean[:, None, :]


def _lowest(places: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Where the parabola through the least value and its neighbours is lowest; an end stays where it is."""
    best = int(np.argmin(values))
    if best in (0, len(values) - 1) or not np.isfinite(values[best - 1 : best + 2]).all():
        return float(places[best])
    left, middle, right = values[best - 1 : best + 2]
    bend = left - 2 * middle + right
    step = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(places[best] + step * (places[1] - places[0]))
