"""The ridge of a fit is that which serves unseen images best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from envs.regression import shrinkage
from envs.regression.ridge import Sums, add, solve, sums_of
from envs.regression.shrinkage import RIDGES, best_ridge, folded_sums

COLUMNS, OUTPUTS = 30, 5


def problem(rows: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [1, m, n] of unequal variance, residuals [1, m, o] and the weights [1, n, o] behind them."""
    draw = torch.Generator().manual_seed(seed)
    weights = 0.2 * torch.randn(1, COLUMNS, OUTPUTS, generator=draw)
    x = torch.randn(1, rows, COLUMNS, generator=draw) * torch.linspace(0.1, 2, COLUMNS)
    return x, x @ weights + noise * torch.randn(1, rows, OUTPUTS, generator=draw), weights


def chunks(x: Tensor, r: Tensor, *, gram: bool, count: int = 4) -> list[Sums]:
    return [sums_of(x[:, k::count], r[:, k::count], gram=gram) for k in range(count)]


def unseen_error(parts: list[Sums], ridge: float, weights: Tensor) -> float:
    x, _, _ = problem(4000, 0.0, seed=1)
    fit = solve(add(parts), torch.zeros_like(weights), ridge, intercept=True)
    return float((x.double() @ (fit.weights - weights)).square().mean())


@pytest.mark.parametrize("rows", [48, 80, 2000])
@pytest.mark.parametrize("gram", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_chosen_ridge_is_near_the_best_one_on_rows_that_were_not_seen(rows: int, gram: bool) -> None:
    x, r, weights = problem(rows, noise=1.0)
    parts = chunks(x, r, gram=gram)
    chosen = unseen_error(parts, best_ridge(folded_sums(parts, 4), intercept=True), weights)
    errors = [unseen_error(parts, ridge, weights) for ridge in RIDGES]
    assert chosen <= 1.3 * min(errors)
    assert chosen < 0.8 * max(errors)


@pytest.mark.parametrize("intercept", [True, False])
def test_gram_matrices_and_rows_choose_alike(intercept: bool) -> None:
    x, r, _ = problem(60, noise=0.5)
    found = [best_ridge(folded_sums(chunks(x, r, gram=gram)), intercept=intercept) for gram in (True, False)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_more_rows_mean_less_shrinkage_and_noise_alone_means_the_most() -> None:
    ridges = []
    for rows in (24, 200, 4000):
        x, r, _ = problem(rows, noise=1.0)
        ridges.append(best_ridge(folded_sums(chunks(x, r, gram=True)), intercept=True))
    assert ridges == sorted(ridges, reverse=True)
    x, _, _ = problem(200, noise=1.0)
    noise = torch.randn(1, 200, OUTPUTS, generator=torch.Generator().manual_seed(9))
    assert best_ridge(folded_sums(chunks(x, noise, gram=True)), intercept=True) > 10 * ridges[1]


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_many_outputs_are_judged_by_few_sums_of_them(gram: bool, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, COLUMNS, generator=draw) * torch.linspace(0.1, 2, COLUMNS)
    scale = torch.linspace(0.01, 1, 700) ** 2
    clean = x @ (0.2 * torch.randn(1, COLUMNS, 700, generator=draw) * scale)
    parts = chunks(x, clean + noise * scale * torch.randn(1, 200, 700, generator=draw), gram=gram)
    few = best_ridge(folded_sums(parts), intercept=True)
    monkeypatch.setattr(shrinkage, "MOST_OUTPUTS", 700)
    assert few == pytest.approx(best_ridge(folded_sums(parts), intercept=True), rel=0.15)


def test_a_column_that_is_always_zero_has_a_ridge_too() -> None:
    x, r, _ = problem(60, noise=0.5)
    x[:, :, 3] = 0
    assert best_ridge(folded_sums(chunks(x, r, gram=True)), intercept=False) > 0


def test_folds_are_every_second_chunk() -> None:
    parts = chunks(*problem(40, noise=0.1)[:2], gram=True)
    folds = folded_sums(parts)
    assert [fold.count for fold in folds] == [20, 20]
    torch.testing.assert_close(folds[0].x, parts[0].x + parts[2].x)
    assert len(folded_sums(parts[:1])) == 1
