"""The promise of the constraint: whatever is asked for, the real network keeps every budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.network.graph import trace
from envs.space.assignment import Assignment
from envs.space.constraint import Budget, Constraint, Costing, FloatArray, InfeasibleBudget, resolve_budget
from envs.space.rules import Rules
from envs.units.layout import read_layout
from envs.units.slicing import slice_network
from hw_profiles.cost import COSTS, Cost, Macs, Params, cost_of
from hw_profiles.layers import IntArray, Layout, Widths

if TYPE_CHECKING:
    from tests.conftest import Specimen

Stacked = Callable[[tuple[str, ...], int], "Specimen"]

KINDS = st.lists(
    st.sampled_from(["conv", "identity", "projection", "inverted", "grouped", "dense", "gate"]), min_size=1, max_size=3
).map(tuple)
RULES = st.builds(Rules, round_to=st.sampled_from([1, 2, 4]), min_ratio=st.sampled_from([0.0, 0.2, 0.5]))


@dataclass(frozen=True)
class Jagged:
    """Not monotone, as measured latencies are: a convolution to an odd number of channels costs five times."""

    name: str = "jagged"
    unit: str = "ms"

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        convolution = np.asarray([layer.kind == "conv" for layer in layout.layers])
        slow = 1 + 4 * (widths.outputs % 2)
        return np.asarray((widths.outputs * slow * widths.inputs * convolution).sum(axis=1), dtype=np.float64)


def limits_between(costing: Costing, costs: list[Cost], fractions: list[float]) -> list[Budget]:
    """Reachable budgets: at a fraction of the way from the lightest to the dense network."""
    light, dense = costing.lightest(), costing.dense()
    return [
        Budget(cost, costing.one(cost, light) + fraction * (costing.one(cost, dense) - costing.one(cost, light)))
        for cost, fraction in zip(costs, fractions, strict=True)
    ]


def draw_widths(data: st.DataObject, costing: Costing) -> IntArray:
    return np.asarray([data.draw(st.sampled_from(site.choices)).value for site in costing.sites])


def limits_at(costing: Costing, costs: list[Cost], kept: IntArray) -> list[Budget]:
    """Budgets that are reachable together, because this assignment meets them exactly."""
    return [Budget(cost, costing.one(cost, kept)) for cost in costs]


def real_costs(specimen: Specimen, costing: Costing, kept: IntArray) -> dict[str, float]:
    """Counted on the really sliced network, traced anew."""
    widths = {site.name: int(k) for site, k in zip(costing.sites, kept, strict=True)}
    channels = {
        unit.name: sorted(c for granule in unit.granules[: widths[unit.name] // unit.granule] for c in granule)
        for unit in specimen.anatomy.units
    }
    small = slice_network(specimen.network, specimen.anatomy.units, channels)
    layout = read_layout(small, trace(small, specimen.example), specimen.example)
    return {name: cost_of(cost, layout) for name, cost in COSTS.items()}


def ratios_for(data: st.DataObject, costing: Costing) -> list[float]:
    count = len(costing.sites)
    return data.draw(st.lists(st.floats(0.0, 1.0), min_size=count, max_size=count))


# The promise


@settings(max_examples=25)
@given(
    kinds=KINDS,
    width=st.integers(4, 9),
    rules=RULES,
    data=st.data(),
    names=st.lists(st.sampled_from(sorted(COSTS)), min_size=1, max_size=3, unique=True),
)
def test_no_policy_exceeds_a_budget_when_recounted_on_the_real_network(
    kinds: tuple[str, ...], width: int, rules: Rules, names: list[str], data: st.DataObject, stacked: Stacked
) -> None:
    specimen = stacked(kinds, width)
    costing = specimen.costing(rules)
    fractions = data.draw(st.lists(st.floats(0.0, 1.0), min_size=len(names), max_size=len(names)))
    constraint = Constraint.create(costing, limits_between(costing, [COSTS[name] for name in names], fractions))
    kept = constraint.project(ratios_for(data, costing))
    assert kept.min() >= 1
    real = real_costs(specimen, costing, kept)
    assert {name: real[name] <= limit for name, limit in constraint.limits().items()} == dict.fromkeys(names, True)
    assert constraint.costs(kept) == {name: real[name] for name in names}


@settings(max_examples=10)
@given(kinds=KINDS, data=st.data())
def test_jagged_costs_are_kept_too(kinds: tuple[str, ...], data: st.DataObject, stacked: Stacked) -> None:
    costing = stacked(kinds, 6).costing()
    constraint = Constraint.create(costing, limits_at(costing, [Jagged(), Macs()], draw_widths(data, costing)))
    assert constraint.keeps(constraint.project(ratios_for(data, costing))).all()
    assert constraint.keeps(constraint.uniform()).all()


@pytest.mark.parametrize("costs", [[Macs()], [Macs(), Params()], [Jagged(), Macs()]], ids=["one", "two", "jagged"])
@settings(max_examples=10)
@given(kinds=KINDS, data=st.data())
def test_something_is_allowed_at_every_step_of_any_walk(
    costs: list[Cost], kinds: tuple[str, ...], data: st.DataObject, stacked: Stacked
) -> None:
    costing = stacked(kinds, 5).costing()
    constraint = Constraint.create(costing, limits_at(costing, costs, draw_widths(data, costing)))
    prefix: list[int] = []
    for site in costing.sites:
        allowed = constraint.allowed(prefix)
        assert len(allowed)
        prefix.append(site.choices[data.draw(st.sampled_from(allowed.tolist()))].value)
    assert constraint.keeps(np.asarray(prefix)).all()


@settings(max_examples=10)
@given(kinds=KINDS, data=st.data(), fraction=st.floats(0.0, 1.0))
def test_for_one_monotone_cost_the_allowed_widths_are_those_of_amcs_bound(
    kinds: tuple[str, ...], fraction: float, data: st.DataObject, stacked: Stacked
) -> None:
    # He et al. (AMC, ECCV 2018, algorithm 1): a width may be taken if the budget holds with everything after
    # it pruned as far as it goes.
    costing = stacked(kinds, 6).costing()
    constraint = Constraint.create(costing, limits_between(costing, [Macs()], [fraction]))
    prefix: list[int] = []
    for step, site in enumerate(costing.sites):
        tail = costing.lightest()[step + 1 :]
        bound = [
            index
            for index, choice in enumerate(site.choices)
            if costing.one(Macs(), np.asarray([*prefix, choice.value, *tail])) <= constraint.budgets[0].limit
        ]
        assert constraint.allowed(prefix).tolist() == bound
        prefix.append(site.choices[data.draw(st.sampled_from(bound))].value)


def test_a_jagged_cost_may_be_met_where_the_lightest_network_does_not_meet_it(stacked: Stacked) -> None:
    costing = stacked(("conv",), 4).costing()
    lightest = costing.one(Jagged(), costing.lightest())
    twos = np.full(len(costing.sites), 2)
    assert costing.one(Jagged(), twos) < lightest
    constraint = Constraint.create(costing, [Budget(Jagged(), costing.one(Jagged(), twos))])
    assert constraint.keeps(constraint.fallback).all()


@settings(max_examples=20)
@given(kinds=KINDS, data=st.data())
def test_what_is_known_can_be_walked_to_under_a_jagged_cost(
    kinds: tuple[str, ...], data: st.DataObject, stacked: Stacked
) -> None:
    costing = stacked(kinds, 6).costing()
    known = draw_widths(data, costing)
    constraint = Constraint.create(costing, limits_at(costing, [Jagged()], known))
    heavier = costing.dense()
    for wanted in (known, heavier):
        found = constraint.knowing([known, heavier]).project(Assignment.of(costing.sites, wanted).actions)
        assert constraint.keeps(found).all()
        assert found.tolist() == wanted.tolist() or not constraint.keeps(wanted).all()


@pytest.mark.parametrize("cost", [Macs(), Params(), COSTS["memory"]], ids=lambda cost: cost.name)
def test_a_cost_a_hair_above_its_budget_is_not_kept(cost: Cost, stacked: Stacked) -> None:
    costing = stacked(("identity",), 5).costing()
    kept = np.asarray([4, 3])
    limit = costing.one(cost, kept)
    assert Constraint.create(costing, [Budget(cost, limit)]).keeps(kept).all()
    assert not Constraint.create(costing, [Budget(cost, limit - 1e-6)]).keeps(kept).any()


def test_a_budget_of_the_dense_cost_allows_everything(stacked: Stacked) -> None:
    costing = stacked(("identity",), 5).costing()
    constraint = Constraint.create(costing, limits_between(costing, list(COSTS.values()), [1.0] * len(COSTS)))
    assert constraint.project([1.0] * len(costing.sites)).tolist() == costing.dense().tolist()


def test_a_budget_of_the_lightest_cost_leaves_one_policy(stacked: Stacked) -> None:
    costing = stacked(("identity",), 5).costing()
    constraint = Constraint.create(costing, limits_between(costing, [Macs()], [0.0]))
    assert constraint.project([1.0] * len(costing.sites)).tolist() == costing.lightest().tolist()


# Uniform


def rounded(costing: Costing, ratio: float) -> IntArray:
    """The nearest width of every site; the lighter one on a tie."""
    every = [site.choices[site.nearest(ratio, np.arange(len(site.choices)))].value for site in costing.sites]
    return np.asarray(every)


def is_common_ratio(costing: Costing, kept: IntArray) -> bool:
    """Whether one ratio rounds to all these widths: each is the nearest on an interval, which must overlap."""
    lows, highs = [], []
    for site, width in zip(costing.sites, kept, strict=True):
        ratios = [choice.ratio for choice in site.choices]
        index = site.values().tolist().index(width)
        lows.append((ratios[index - 1] + ratios[index]) / 2 if index else 0.0)
        highs.append((ratios[index] + ratios[index + 1]) / 2 if index + 1 < len(ratios) else 1.0)
    return max(lows) <= min(highs)


@pytest.mark.parametrize("costs", [[Macs()], [Params(), Macs()], [Jagged()]], ids=["macs", "both", "jagged"])
@settings(max_examples=8)
@given(kinds=KINDS, width=st.sampled_from([7, 61]), rules=RULES, data=st.data())
def test_uniform_is_the_largest_common_ratio_that_keeps_every_budget(
    costs: list[Cost], kinds: tuple[str, ...], width: int, rules: Rules, data: st.DataObject, stacked: Stacked
) -> None:
    costing = stacked(kinds, width).costing(rules)
    constraint = Constraint.create(costing, limits_at(costing, costs, draw_widths(data, costing)))
    grid = np.unique([rounded(costing, ratio) for ratio in np.linspace(0, 1, 1000)], axis=0)  # widths grow along it
    legal = grid[constraint.keeps(grid)]
    uniform = constraint.uniform()
    assert constraint.keeps(uniform).all()
    if len(legal):
        best = legal[np.argmax(legal.sum(axis=1))]
        assert (uniform >= best).all()  # the grid may jump over a narrow interval, uniform may not
        assert is_common_ratio(costing, uniform)
    else:
        assert uniform.tolist() == constraint.fallback.tolist()


def test_uniform_of_a_loose_budget_is_dense(stacked: Stacked) -> None:
    costing = stacked(("inverted",), 6).costing()
    constraint = Constraint.create(costing, limits_between(costing, [Macs()], [1.0]))
    assert constraint.uniform().tolist() == costing.dense().tolist()


# What is refused


def test_an_unreachable_budget_names_the_lowest_value_and_the_cure(stacked: Stacked) -> None:
    costing = stacked(("conv",), 6).costing()
    lowest, dense = costing.one(Macs(), costing.lightest()), costing.one(Macs(), costing.dense())
    text = rf"lowest found is macs={lowest:g} \(asked: 10 MACs, dense: {dense:g}\): raise the budget"
    with pytest.raises(InfeasibleBudget, match=text):
        Constraint.create(costing, [Budget(Macs(), 10.0)])


def test_one_unreachable_budget_of_two_is_refused(stacked: Stacked) -> None:
    costing = stacked(("conv",), 6).costing()
    with pytest.raises(InfeasibleBudget, match=r"macs=.*params="):
        Constraint.create(costing, [Budget(Macs(), costing.one(Macs(), costing.dense())), Budget(Params(), 3.0)])


def test_budgets_that_are_reachable_alone_but_not_together_are_refused(stacked: Stacked) -> None:
    costing = stacked(("conv",), 4).costing()

    @dataclass(frozen=True)
    class Opposite:
        """Falls when the network grows."""

        name: str = "opposite"
        unit: str = "units"

        def many(self, layout: Layout, widths: Widths) -> FloatArray:
            return 1e6 - Macs().many(layout, widths)

    dense = costing.one(Opposite(), costing.dense())
    with pytest.raises(InfeasibleBudget):
        Constraint.create(costing, [Budget(Macs(), costing.one(Macs(), costing.lightest())), Budget(Opposite(), dense)])


def test_a_network_without_sites_is_refused(stacked: Stacked) -> None:
    costing = Costing(stacked(("conv",), 6).anatomy.family, ())
    with pytest.raises(InfeasibleBudget, match="nothing in this network can be pruned"):
        Constraint.create(costing, [Budget(Macs(), 1e9)])


def test_no_budget_at_all_is_refused(stacked: Stacked) -> None:
    with pytest.raises(ValueError, match=r"at least one budget, but got none: pass for example macs=0\.5"):
        Constraint.create(stacked(("conv",), 6).costing(), [])


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf")])
def test_a_budget_that_is_no_positive_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"a budget must be a positive number, but got macs={value:g}"):
        resolve_budget(Macs(), value, 100.0)


@pytest.mark.parametrize(("value", "limit"), [(0.5, 100.0), (1.0, 200.0), (150.0, 150.0), (1.5, 1.5)])
def test_a_budget_up_to_one_is_a_fraction_and_above_it_an_absolute_cost(value: float, limit: float) -> None:
    assert resolve_budget(Macs(), value, 200.0) == limit
