"""Allocations of sparsity: against their definitions, and always within the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amc.config.search import load_config
from amc.problem.setup import Setup, set_up
from amc.search.allocation.baselines import ALLOCATIONS, allocate, erk, global_magnitude, lamp, narrowed, wherever_legal
from amc.search.allocation.knapsack import knapsack
from envs.compression.damage import Curve
from envs.space.constraint import InfeasibleBudget
from envs.space.sites import WidthSite


@pytest.fixture(scope="module")
def fine_grained() -> Setup:
    densities = tuple(k / 50 for k in range(1, 50))
    return set_up(
        load_config(
            None,
            {
                "task": "digits",
                "choose": "unstructured",
                "constraint": {"params": 0.3},
                "densities": densities,
            },
        )
    )


@pytest.mark.parametrize("name", list(ALLOCATIONS))
def test_an_allocation_uses_its_budget_and_keeps_it(name: str, fine_grained: Setup) -> None:
    constraint = fine_grained.constraint
    kept = allocate(constraint, fine_grained.task.network, name)
    cost, limit = constraint.costs(kept)["params"], constraint.limits()["params"]
    assert 0.85 * limit < cost <= limit


def test_global_magnitude_keeps_the_largest_weights_of_all() -> None:
    weights = [torch.tensor([[1.0, -2.0, 3.0, -4.0]]), torch.tensor([[10.0, 20.0, 0.5, 0.1]])]
    np.testing.assert_allclose(global_magnitude(weights)(0.5), [0.5, 0.5])
    np.testing.assert_allclose(global_magnitude(weights)(0.25), [0.0, 0.5])


def test_lamp_does_not_care_how_a_layer_is_scaled_and_keeps_its_largest_weight() -> None:
    layer = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    np.testing.assert_allclose(lamp([layer, 100 * layer])(0.5), [0.5, 0.5])
    np.testing.assert_allclose(lamp([layer, 100 * layer])(0.25), [0.25, 0.25])


def test_erk_keeps_small_layers_denser() -> None:
    narrow, wide = torch.zeros(8, 4, 3, 3), torch.zeros(64, 64, 3, 3)
    small, large = erk([narrow, wide])(0.01)
    assert small / large == pytest.approx(((8 + 4 + 6) / (8 * 4 * 9)) / ((128 + 6) / (64 * 64 * 9)))


def test_a_pattern_wherever_it_is_legal_leaves_the_rest_dense() -> None:
    setup = set_up(load_config(None, {"task": "digits", "choose": "mixed", "constraint": {"params": 0.99}}))
    kept = wherever_legal(setup.sites, "2:4")
    assert set(setup.assignment(kept).decisions.patterns.values()) == {"2:4"}
    sites = zip(setup.sites, kept, strict=True)
    widths = [(site.channels, value) for site, value in sites if isinstance(site, WidthSite)]
    assert widths
    assert all(full == value for full, value in widths)


def test_narrowed_to_a_pattern_every_allocation_has_it_wherever_it_is_legal() -> None:
    setup = set_up(
        load_config(
            None,
            {
                "task": "digits",
                "choose": "mixed",
                "constraint": {"macs": 0.35, "sparsity": "2:4@multiple-of-4"},
            },
        )
    )
    narrow = narrowed(setup.constraint, "2:4")
    everywhere = setup.assignment(wherever_legal(setup.sites, "2:4")).decisions.patterns
    curves = [Curve(unit=s.name, kept=(s.choices[0].value, s.size), damage=(1.0, 0.0)) for s in setup.sites]
    for kept in (narrow.uniform(), narrow.fallback, knapsack(narrow, curves)):
        assert setup.constraint.keeps(kept).all()
        assert setup.assignment(kept).decisions.patterns == everywhere
    assert narrow.costs(narrow.uniform())["macs"] > 0.25 / 0.35 * narrow.limits()["macs"]


def test_a_budget_below_the_sparsest_choice_is_refused(fine_grained: Setup) -> None:
    from dataclasses import replace

    budgets = tuple(budget._replace(limit=1.0) for budget in fine_grained.constraint.budgets)
    with pytest.raises(InfeasibleBudget, match="sparsest"):
        allocate(replace(fine_grained.constraint, budgets=budgets), fine_grained.task.network, "erk")
