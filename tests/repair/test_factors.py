"""Queries and keys: what makes up for channels of their products, and in which order these go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from envs.importance.importance import Evidence
from envs.importance.scores import IMPORTANCES, importance_named
from envs.regression.factors import Factors
from envs.regression.ridge import Sums, sums_of
from envs.units.units import Member, Unit

WIDTH = 6


def layers(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)


def rows(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4000, WIDTH, generator=generator) + 0.5


def folds(x: Tensor, count: int = 2) -> list[Sums]:
    return [sums_of(part[None], part.new_zeros((1, len(part), 0))) for part in x.chunk(count)]


def unit() -> Unit:
    places = tuple((channel,) for channel in range(WIDTH))
    members = tuple(Member(module=name, role="factor", positions=places) for name in ("0", "1"))
    return Unit(name="0", channels=WIDTH, granules=places, members=members)


def products(first: nn.Linear, second: nn.Linear, mix: Tensor, kept: list[int]) -> Tensor:
    """What queries and keys of unrelated rows give on the kept channels, less what all keys share."""
    keys = second(rows(2))
    found: Tensor = (first(rows(1))[:50] @ mix.float()) @ (keys - keys.mean(dim=0))[:, kept].T
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_mixed_queries_lose_the_least_of_their_products(bias: bool) -> None:
    first, second = layers(bias)
    factors = Factors.of(first, second, folds(rows()), folds(rows()))
    kept = [0, 2, 3]
    chosen = torch.eye(WIDTH)[:, kept]
    mix = factors.mix(torch.tensor(kept))
    with torch.no_grad():
        dense = products(first, second, torch.eye(WIDTH), list(range(WIDTH)))
        taken = (products(first, second, chosen, kept) - dense).square().mean()
        mixed = (products(first, second, mix, kept) - dense).square().mean()
        keys = second(rows(2))
        keys = (keys - keys.mean(dim=0)).double()
        best = torch.linalg.lstsq(keys[:, kept], keys).solution.T
        least = (products(first, second, best, kept) - dense).square().mean()
    assert mixed < 0.9 * taken
    assert mixed < 1.1 * least


def test_several_heads_are_mixed_side_by_side() -> None:
    first, second = layers()
    both = Factors.of(first, second, folds(rows()), folds(rows()), heads=2)
    mix = both.mix(torch.tensor([0, 2, 4, 5]))
    assert not mix[3:, :2].any()
    assert not mix[:3, 2:].any()
    for head, kept in enumerate(([0, 2], [1, 2])):
        own = slice(3 * head, 3 * head + 3)
        alone = layers()
        for layer, whole in zip(alone, (first, second), strict=True):
            layer.weight, layer.bias = nn.Parameter(whole.weight[own]), nn.Parameter(whole.bias[own])
        expected = Factors.of(*alone, folds(rows()), folds(rows())).mix(torch.tensor(kept))
        assert torch.allclose(mix[own, 2 * head : 2 * head + 2], expected, atol=1e-6)


def test_channels_that_others_can_stand_for_cost_nothing() -> None:
    first, second = layers()
    with torch.no_grad():
        second.weight[4] = second.weight[1] - 2 * second.weight[3]
    factors = Factors.of(first, second, folds(rows()), folds(rows()))
    evidence = Evidence(network=nn.Sequential(first, second), moments={}, factors={"0": factors})
    order = importance_named("obs")(unit(), evidence).argsort()
    assert int(order[0]) in (1, 3, 4)


@pytest.mark.parametrize("name", [name for name in IMPORTANCES if name not in ("bn_scale", "taylor")])
def test_every_importance_scores_factors(name: str) -> None:
    first, second = layers()
    factors = Factors.of(first, second, folds(rows()), folds(rows()))
    evidence = Evidence(network=nn.Sequential(first, second), moments={}, factors={"0": factors})
    scores = importance_named(name)(unit(), evidence)
    assert scores.isfinite().all()
    assert len(set(scores.tolist())) == WIDTH
