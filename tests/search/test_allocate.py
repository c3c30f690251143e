"""Allocation: the knapsack against brute force, and its promises where brute force is out of reach."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amc.search.allocation import knapsack as allocate
from amc.search.allocation.again import corrected, factors_around, steps_around
from amc.search.allocation.groups import Group, alone, together
from amc.search.allocation.knapsack import additive_tables, exchange, knapsack, linearize, solve_additive
from amc.tasks.models.resnet_cifar import resnet20
from envs.compression.damage import Curve
from envs.space.constraint import Budget, Constraint, Costing, FloatArray
from envs.space.pattern_sites import interleaved, pattern_sites
from envs.space.rules import Rules
from envs.units.anatomy import dissect
from hw_profiles.cost import COSTS, Cost, Macs, Memory, Params
from hw_profiles.layers import IntArray
from hw_profiles.shape_rules import load_rules

if TYPE_CHECKING:
    from tests.conftest import Specimen

Stacked = Callable[[tuple[str, ...], int], "Specimen"]

KINDS = st.lists(
    st.sampled_from(["conv", "identity", "projection", "inverted", "grouped", "dense", "gate"]), min_size=1, max_size=2
).map(tuple)
NAMES = st.sampled_from([("macs",), ("params",), ("memory",), ("macs", "params"), ("macs", "params", "memory")])


def make_constraint(costing: Costing, names: Sequence[str], fraction: float) -> Constraint:
    light, dense = costing.lightest(), costing.dense()
    budgets = []
    for name in names:
        low, high = costing.one(COSTS[name], light), costing.one(COSTS[name], dense)
        budgets.append(Budget(COSTS[name], low + fraction * (high - low)))
    return Constraint.create(costing, budgets)


def make_curves(costing: Costing, seed: int) -> list[Curve]:
    """Damage that falls with the width, at a scale of its own for every unit."""
    generator, curves = np.random.default_rng(seed), []
    for site in costing.sites:
        steps = generator.exponential(10 ** generator.uniform(-1, 1), len(site.choices) - 1)
        damage = [*np.cumsum(steps[::-1])[::-1], 0.0]
        curves.append(Curve(unit=site.name, kept=tuple(site.values().tolist()), damage=tuple(damage)))
    return curves


def undamaged(costing: Costing) -> list[Group]:
    return alone(costing, [np.zeros(len(site.choices)) for site in costing.sites])


class Block(nn.Module):
    """A residual block whose inner channels alone can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.conv2(torch.relu(self.conv1(x)))
        return out


def small_blocks() -> nn.Module:
    return nn.Sequential(Block(), Block()).eval()  # the stream of channels begins at the input: none of it is a unit


def total(curves: Sequence[Curve], kept: IntArray) -> float:
    return float(sum(curve.at(kept[i : i + 1])[0] for i, curve in enumerate(curves)))


def brute_force(constraint: Constraint, curves: Sequence[Curve]) -> float:
    """Least total damage over all assignments within the budgets."""
    every = np.asarray(list(itertools.product(*(site.values() for site in constraint.costing.sites))))
    damage = sum((curve.at(every[:, i]) for i, curve in enumerate(curves)), np.zeros(len(every)))
    return float(damage[constraint.keeps(every)].min())


# The exact dynamic program


def tables(numbers: st.SearchStrategy[float], sizes: list[int]) -> st.SearchStrategy[list[FloatArray]]:
    return st.tuples(*(st.lists(numbers, min_size=n, max_size=n).map(np.asarray) for n in sizes)).map(list)


@settings(max_examples=150)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    budget=st.floats(-20, 40) | st.integers(-20, 40).map(float),
)
def test_the_dynamic_program_finds_the_least_damage_of_all_combinations(
    data: st.DataObject, sizes: list[int], budget: float
) -> None:
    costs = data.draw(tables(st.integers(-20, 20).map(float), sizes))
    damages = data.draw(tables(st.floats(0, 10), sizes))
    sums = np.asarray([sum(combo) for combo in itertools.product(*costs)])
    losses = np.asarray([sum(combo) for combo in itertools.product(*damages)])
    picks = solve_additive(costs, damages, budget)
    if picks is None:
        assert (sums > budget).all()
        return
    assert sum(table[pick] for table, pick in zip(costs, picks, strict=True)) <= budget
    found = sum(table[pick] for table, pick in zip(damages, picks, strict=True))
    assert found == pytest.approx(losses[sums <= budget].min(), abs=1e-9)


def test_a_cost_a_hair_above_the_budget_is_not_taken() -> None:
    # 0.29 x 100 is 28.999999999999996 in floating point; 29 is above it
    assert solve_additive([np.asarray([20.0, 29.0])], [np.asarray([1.0, 0.0])], 0.29 * 100) == [0]


@given(seed=st.integers(0, 50), fraction=st.floats(0.05, 0.95))
def test_a_dynamic_program_short_of_states_stays_feasible_and_close(seed: int, fraction: float) -> None:
    generator = np.random.default_rng(seed)
    costs = [np.sort(generator.uniform(0, 10, 6)) for _ in range(6)]
    damages = [np.sort(generator.exponential(1, 6))[::-1] for _ in range(6)]
    budget = sum(c[0] for c in costs) + fraction * sum(c[-1] - c[0] for c in costs)
    exact = solve_additive(costs, damages, budget)
    rough = solve_additive(costs, damages, budget, states=40)
    assert exact is not None
    assert rough is not None
    loss = [sum(d[p] for d, p in zip(damages, picks, strict=True)) for picks in (exact, rough)]
    assert sum(c[p] for c, p in zip(costs, rough, strict=True)) <= budget
    assert loss[0] <= loss[1] <= loss[0] + 0.1 * sum(d[0] for d in damages)


# Additivity


@pytest.fixture(scope="module")
def inner_channels() -> Costing:
    """ResNet-20 with parameter-free shortcuts: only the inner channels of each block can be pruned."""
    anatomy = dissect(resnet20().eval(), torch.zeros(1, 3, 32, 32))
    return Costing(anatomy.family, tuple(Rules().sites(anatomy.units)[0]))


def test_macs_over_inner_channels_of_residual_blocks_are_additive(inner_channels: Costing) -> None:
    assert len(inner_channels.sites) == 9
    assert additive_tables(inner_channels, Macs(), undamaged(inner_channels)) is not None


@pytest.mark.parametrize("cost", [Macs(), Params(), Memory()], ids=lambda cost: cost.name)
def test_no_cost_of_a_plain_chain_is_additive(cost: Cost, zoo: Callable[[str], Specimen]) -> None:
    costing = zoo("chain").costing()
    assert additive_tables(costing, cost, undamaged(costing)) is None


def test_linearized_costs_are_exact_for_every_single_change(zoo: Callable[[str], Specimen]) -> None:
    costing = zoo("chain").costing()
    kept = np.asarray([4, 3, 7, 2])
    base, changes = linearize(costing, Params(), kept, undamaged(costing))
    for step, site in enumerate(costing.sites):
        for index, width in enumerate(site.values()):
            moved = kept.copy()
            moved[step] = width
            assert base + changes[step][index] == costing.one(Params(), moved)


def test_the_knapsack_over_an_additive_cost_is_optimal(inner_channels: Costing) -> None:
    curves = make_curves(inner_channels, seed=3)
    constraint = make_constraint(inner_channels, ["macs"], 0.5)
    base, changes = linearize(inner_channels, Macs(), inner_channels.dense(), undamaged(inner_channels))
    # The same problem by dynamic programming over an integer budget: all changes are multiples of the least one.
    unit = float(np.gcd.reduce([int(-c) for change in changes for c in change if c < 0]))
    room = int((constraint.budgets[0].limit - base) // unit)
    lowest = int(sum(change.min() for change in changes) // unit)
    best = np.full(1 - lowest, np.inf)
    best[0] = 0.0
    for site, change, curve in zip(inner_channels.sites, changes, curves, strict=True):
        fresh = np.full_like(best, np.inf)
        for saved, loss in zip((-change / unit).astype(int), curve.at(site.values()), strict=True):
            fresh[saved:] = np.minimum(fresh[saved:], best[: len(best) - saved] + loss)
        best = fresh
    assert total(curves, knapsack(constraint, curves)) == pytest.approx(best[-room:].min(), abs=1e-9)


@settings(max_examples=5)
@given(seed=st.integers(0, 99), share=st.floats(0.1, 0.6))
def test_widths_and_patterns_together_are_allocated_optimally(seed: int, share: float) -> None:
    anatomy, rules = dissect(small_blocks(), torch.zeros(1, 8, 8, 8)), load_rules("multiple-of-4")
    layers, _ = pattern_sites(small_blocks(), anatomy.graph, anatomy.family.dense, ["2:4"], shapes=rules)
    widths = Rules(min_ratio=0.4).sites(anatomy.units)[0]
    sites = interleaved(widths, layers, anatomy.units)
    costing = Costing(anatomy.family, tuple(sites), rules)
    macs = Macs(skips=rules.skips)
    low, high = costing.one(macs, costing.lightest()), costing.one(macs, costing.dense())
    constraint = Constraint.create(costing, [Budget(macs, low + share * (high - low))])
    curves = make_curves(costing, seed)
    groups = together(costing, [curve.at(site.values()) for curve, site in zip(curves, sites, strict=True)])
    assert additive_tables(costing, macs, groups) is not None
    assert additive_tables(costing, macs, undamaged(costing)) is None
    assert total(curves, knapsack(constraint, curves)) == pytest.approx(brute_force(constraint, curves), abs=1e-9)


# Any costs, any number of budgets


@given(kinds=KINDS, names=NAMES, fraction=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_the_knapsack_keeps_every_budget_and_is_never_worse_than_uniform_or_the_fallback(
    kinds: tuple[str, ...], names: tuple[str, ...], fraction: float, seed: int, stacked: Stacked
) -> None:
    costing = stacked(kinds, 6).costing()
    constraint, curves = make_constraint(costing, names, fraction), make_curves(costing, seed)
    kept = knapsack(constraint, curves)
    assert constraint.keeps(kept).all()
    assert total(curves, kept) <= total(curves, constraint.uniform())
    assert total(curves, kept) <= total(curves, constraint.fallback)


@pytest.mark.parametrize("names", [("macs",), ("macs", "params")])
def test_multipliers_alone_already_beat_uniform_by_far(
    names: tuple[str, ...], stacked: Stacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocate, "exchange", lambda constraint, groups, kept: kept)
    costing = stacked(("conv", "projection", "inverted", "dense"), 8).costing()
    constraint, curves = make_constraint(costing, names, 0.5), make_curves(costing, 0)
    assert total(curves, knapsack(constraint, curves)) < 0.7 * total(curves, constraint.uniform())


def test_uniform_is_returned_where_nothing_else_does_no_damage(stacked: Stacked) -> None:
    costing = stacked(("conv", "projection"), 8).costing()
    constraint = make_constraint(costing, ["macs"], 0.5)
    uniform = constraint.uniform()
    narrower = [site.values() < kept for site, kept in zip(costing.sites, uniform, strict=True)]
    curves = [
        Curve(unit=site.name, kept=tuple(site.values().tolist()), damage=tuple(less.astype(float).tolist()))
        for site, less in zip(costing.sites, narrower, strict=True)
    ]
    kept = knapsack(constraint, curves)
    assert (kept >= uniform).all()
    assert total(curves, kept) == 0


def test_the_knapsack_is_close_to_brute_force_on_coupled_problems(stacked: Stacked) -> None:
    # Measured over 580 random ones: 97 % optimal; the rest lose 2 % on average of what the lightest one loses.
    lost = []
    for seed, kinds in enumerate([("conv", "projection"), ("inverted", "conv"), ("dense",), ("gate", "grouped")] * 5):
        costing = stacked(kinds, 4).costing()
        constraint = make_constraint(costing, [("macs",), ("macs", "params"), ("params", "memory")][seed % 3], 0.4)
        curves = make_curves(costing, seed)
        best, worst = brute_force(constraint, curves), total(curves, costing.lightest())
        lost.append((total(curves, knapsack(constraint, curves)) - best) / (worst - best))
    assert np.mean(np.asarray(lost) < 1e-9) >= 0.8
    assert max(lost) < 0.05


def test_without_a_need_to_prune_the_knapsack_stays_dense(stacked: Stacked) -> None:
    costing = stacked(("conv",), 6).costing()
    kept = knapsack(make_constraint(costing, ["macs", "params"], 1.0), make_curves(costing, 0))
    assert kept.tolist() == costing.dense().tolist()


def test_an_exchange_of_two_sites_is_found_where_no_single_change_helps(stacked: Stacked) -> None:
    costing = stacked(("conv",), 6).costing()
    constraint = Constraint.create(costing, [Budget(Params(), costing.one(Params(), np.asarray([3, 5])))])
    # The first site hurts a lot, the second hardly: widening one means narrowing the other.
    damages = [np.linspace(10, 0, len(costing.sites[0].choices)), np.linspace(1, 0, len(costing.sites[1].choices))]
    better = exchange(constraint, alone(costing, damages), np.asarray([3, 5]))
    assert better[0] > 3
    assert better[1] < 5
    assert constraint.keeps(better).all()


def test_equal_problems_get_equal_answers(stacked: Stacked) -> None:
    costing = stacked(("dense", "conv"), 5).costing()
    constraint, curves = make_constraint(costing, ["macs", "memory"], 0.5), make_curves(costing, 1)
    assert knapsack(constraint, curves).tolist() == knapsack(constraint, curves).tolist()


def test_a_curve_is_corrected_by_what_its_step_costs_in_the_whole_network(zoo: Callable[[str], Specimen]) -> None:
    costing = zoo("residual").costing()
    sites = costing.sites
    curves = [
        Curve(unit=s.name, kept=tuple(s.values().tolist()), damage=tuple((1 - s.ratios()).tolist())) for s in sites
    ]
    solution = np.asarray([site.values()[len(site.values()) // 2] for site in sites])
    steps = steps_around(sites, solution)
    assert all((np.flatnonzero(step != solution) == [place]).all() for place, step in enumerate(steps))
    weights = 1.0 + np.arange(len(sites))

    def damage(kept: IntArray) -> float:
        each = [float(curve.at(kept[place : place + 1])[0]) for place, curve in enumerate(curves)]
        return float(weights @ each)

    factors = factors_around(curves, solution, steps, damage(solution), [damage(step) for step in steps])
    np.testing.assert_allclose(factors, np.clip(weights / np.median(weights), 0.25, 4.0))
    found = corrected(curves, [factors, factors**3])
    for factor, new, old in zip(factors, found, curves, strict=True):
        np.testing.assert_allclose(new.damage, factor**2 * np.asarray(old.damage))
