"""What ships keeps to the suites of `amc.testing`, and what does not is told so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.random_search import RandomSearch
from agents.searcher import FixedPlan, Plan, SearchInputs
from amc.pool.pool import InProcess
from amc.testing import check_cost, check_importance, check_repair, check_rollouts, check_searcher
from amc.testing.specimens import specimens
from envs.importance.importance import Evidence
from envs.importance.scores import IMPORTANCES, importance_named
from envs.repair.repair import Pruned, Repair
from envs.repair.repairs import REPAIRS, repair_class
from envs.units.units import Unit
from hw_profiles.cost import COSTS, FloatArray, Macs
from hw_profiles.layers import Layout, Widths


@pytest.mark.parametrize("name", list(COSTS))
def test_shipped_costs_keep_the_laws(name: str) -> None:
    check_cost(COSTS[name])


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_shipped_importances_keep_the_laws(name: str) -> None:
    check_importance(importance_named(name))


@pytest.mark.parametrize("name", list(REPAIRS))
def test_shipped_repairs_keep_the_laws(name: str) -> None:
    check_repair(repair_class(name))


class Forgetful(RandomSearch):
    """Forgets where it was."""

    def load(self, state: Any) -> None:
        pass


class Hasty(RandomSearch):
    """Proposes one plan, however many are asked for."""

    def propose(self, count: int) -> list[Plan]:
        return [FixedPlan((0.5,) * 7, "hasty")]


class Drawing(RandomSearch):
    """Draws from the caller's generator."""

    def propose(self, count: int) -> list[Plan]:
        return [FixedPlan(tuple(np.random.random(7)), "drawing") for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "law"),
    [(Forgetful, "restored"), (Hasty, "asked for 1 plans|asked for 3 plans"), (Drawing, "gives other plans")],
)
def test_a_searcher_that_breaks_a_law_is_told_which(kind: type[RandomSearch], law: str) -> None:
    def make(inputs: SearchInputs) -> RandomSearch:
        return kind(inputs.steps, inputs.seed, inputs.starts)

    with pytest.raises(AssertionError, match=law):
        check_searcher(make)


class Alone(Macs):
    """Counts the first variant only."""

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        return Macs().many(layout, widths)[:1].repeat(len(widths.outputs))


class ByName(Macs):
    """Counts by what layers are called."""

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        return np.full(len(widths.outputs), float(sum("0" in layer.name for layer in layout.layers)))


class Negative(Macs):
    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        return -Macs().many(layout, widths)


@pytest.mark.parametrize(
    ("cost", "law"), [(Alone(), "together"), (ByName(), "other names of layers"), (Negative(), "not negative")]
)
def test_a_cost_that_breaks_a_law_is_told_which(cost: Macs, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_cost(cost)


def flat(unit: Unit, evidence: Evidence) -> Tensor:
    return torch.zeros(1, unit.channels)


def undeclared(unit: Unit, evidence: Evidence) -> Tensor:
    return torch.full((unit.channels,), float(len(evidence.moments)))


@pytest.mark.parametrize(("score", "law"), [(flat, r"gave \[1, "), (undeclared, "does not declare")])
def test_an_importance_that_breaks_a_law_is_told_which(score: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_importance(score)


class Vanishing(Repair):
    def __call__(self, pruned: Pruned) -> None:
        for module in pruned.network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight * float("nan"))


class Free(Repair):
    """Looks at images that it does not pay for."""

    def __call__(self, pruned: Pruned) -> None:
        self.dense.network.train()
        with torch.no_grad():
            self.dense.network(self.dense.chunks[0])
        self.dense.network.eval()


@pytest.mark.parametrize(("kind", "law"), [(Vanishing, "finite weights"), (Free, "dense network has changed")])
def test_a_repair_that_breaks_a_law_is_told_which(kind: type[Repair], law: str) -> None:
    before = [{name: value.clone() for name, value in one.network.state_dict().items()} for one in specimens()]
    try:
        with pytest.raises(AssertionError, match=law):
            check_repair(kind)
    finally:
        for one, state in zip(specimens(), before, strict=True):
            one.network.load_state_dict(state)


class Backwards(InProcess):
    """Answers in the other order."""

    def map(self, function: Any, shared: Any, common: Any, items: Any) -> Any:
        return reversed(list(super().map(function, shared, common, items)))


def test_a_pool_that_breaks_a_law_is_told_which() -> None:
    with pytest.raises(AssertionError, match="order of the items: answers are"):
        check_rollouts(Backwards())
