"""Budgets of a range, the knapsack that an agent guides, and rewards that can be compared over budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agents.searcher import FixedPlan
from amc.config.search import load_config
from amc.search.allocation.knapsack import knapsack
from amc.search.ranges.baseline import Baseline
from amc.search.ranges.budgets import GRID, STRATA, BudgetRange
from amc.search.ranges.environment import RangedEnv, walked
from amc.search.ranges.guides import STILL, Guide, Guides
from envs.compression.damage import Curve
from envs.reward import Evaluation, accuracy
from envs.space.constraint import Budget, Constraint, Costing
from envs.space.policy import Policy
from hw_profiles.cost import Macs, Params

if TYPE_CHECKING:
    from tests.conftest import Specimen

NO_POLICY = Policy(structure="", weights="", units=(), layers=(), provenance={})
RANGE = BudgetRange(low=(20.0, 3.0), high=(60.0, 3.0), seed=4)


@pytest.fixture(scope="module")
def costing(zoo: Callable[[str], Specimen]) -> Costing:
    return zoo("residual").costing()


def curves(costing: Costing) -> tuple[Curve, ...]:
    """Damages that grow faster the less is left, each site's its own."""
    return tuple(
        Curve(
            unit=site.name,
            kept=tuple(site.values().tolist()),
            damage=tuple(((1 + place) * (1 - site.ratios()) ** 2).tolist()),
        )
        for place, site in enumerate(costing.sites)
    )


def guide_at(costing: Costing, share: float) -> Guide:
    limit = share * costing.one(Macs(), costing.dense())
    constraint = Constraint.create(costing, [Budget(Macs(), limit)])
    return Guides(constraint, curves(costing)).at((limit,))


def test_the_grid_reaches_both_ends_and_later_episodes_take_every_part_of_the_range_in_turn() -> None:
    grid = [RANGE.of_episode(episode)[0] for episode in range(GRID)]
    assert (grid[0], grid[-1]) == (20.0, 60.0)
    assert grid == sorted(set(grid))
    for block in range(3):
        first = GRID + block * STRATA
        drawn = [RANGE.of_episode(episode)[0] for episode in range(first, first + STRATA)]
        assert sorted((np.asarray(drawn) - 20.0) // (40.0 / STRATA)) == list(range(STRATA))


def test_a_draw_depends_on_seed_and_episode_alone_and_a_cost_with_one_budget_keeps_it() -> None:
    again = BudgetRange(low=RANGE.low, high=RANGE.high, seed=4)
    other = BudgetRange(low=RANGE.low, high=RANGE.high, seed=5)
    assert again.of_episode(40) == RANGE.of_episode(40) != other.of_episode(40)
    assert {RANGE.of_episode(episode)[1] for episode in range(60)} == {3.0}


def test_the_knapsack_gains_nothing_and_half_of_its_loss_counts_alike_at_every_budget() -> None:
    baseline = Baseline.of(0.9, [((10.0,), 0.1), ((20.0,), 0.5), ((40.0,), 0.8)])
    for limit, reward in ((10.0, 0.1), (20.0, 0.5), (40.0, 0.8)):
        level = baseline.at((limit,))
        assert level.gain(reward) == pytest.approx(0.0, abs=1e-9)
        assert level.gain((reward + 0.9) / 2) == pytest.approx(0.5)
    between = baseline.at((30.0,))
    assert 0.5 < between.reward < 0.8


def test_a_range_without_any_knapsack_solution_is_refused() -> None:
    with pytest.raises(ValueError, match="all its evaluations failed"):
        Baseline.of(0.9, [])


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_an_agent_that_changes_nothing_is_the_knapsack_solved_again(costing: Costing, share: float) -> None:
    guide = guide_at(costing, share)
    still = walked(guide, FixedPlan((STILL,) * guide.steps, "still"))
    assert still.values.tolist() == knapsack(guide.constraint, guide.curves).tolist()


def test_whatever_an_agent_says_the_budget_is_kept_and_a_site_that_counts_more_keeps_more(costing: Costing) -> None:
    guide = guide_at(costing, 0.5)
    for seed in range(5):
        actions = np.random.default_rng(seed).random(guide.steps).tolist()
        assert guide.constraint.keeps(guide.assignment(actions).values).all()
    for step in range(guide.steps):
        actions = [STILL] * guide.steps
        actions[step] = 1.0
        assert guide.assignment(actions).values[step] >= guide.solution[step]


def test_what_is_observed_has_no_unit_and_fits_its_space(costing: Costing) -> None:
    shares = [1000.0 * costing.one(cost, costing.dense()) for cost in (Macs(), Params())]
    budgets = [Budget(Macs(), 0.5e-3 * shares[0]), Budget(Params(), 0.6e-3 * shares[1])]
    constraint = Constraint.create(costing, budgets)
    own = curves(costing)
    scaled = tuple(Curve(unit=c.unit, kept=c.kept, damage=tuple(7 * d for d in c.damage)) for c in own)
    limits = tuple(limit for _, limit in budgets)
    one, other = (Guides(constraint, kind).at(limits) for kind in (own, scaled))
    actions: list[float] = []
    for step in range(one.steps):
        seen = one.observe(actions)
        assert seen.shape == (Guide.size(2),)
        assert ((seen >= 0) & (seen <= 1)).all()
        assert np.allclose(seen, other.observe(actions))
        actions.append(0.1 * (step % 10))


def test_the_environment_pays_at_the_end_for_the_policy_that_the_knapsack_made(costing: Costing) -> None:
    guide = guide_at(costing, 0.5)
    scored = Evaluation(metric=0.75, loss=None, images=1, image_forwards=1)
    environment = RangedEnv(guide, lambda _: NO_POLICY, lambda _: scored, accuracy)
    observation, _ = environment.reset()
    assert environment.observation_space.contains(observation)
    for step in range(guide.steps):
        _, reward, terminated, _, info = environment.step(np.asarray([0.8], dtype=np.float32))
        assert (terminated, reward) == ((True, 0.75) if step == guide.steps - 1 else (False, 0.0))
    assert info["assignment"] == guide.assignment([float(np.float32(0.8))] * guide.steps)
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step(np.asarray([0.5], dtype=np.float32))


def test_a_range_is_read_wherever_a_budget_is() -> None:
    written = load_config(None, {"task": "digits", "constraint": {"flops": "0.25:0.75", "params": 0.9}})
    given = load_config(None, {"task": "digits", "constraint": {"macs": (0.25, 0.75), "params": 0.9}})
    assert written == given
    assert (written.constraint, written.budget_range) == ({"macs": 0.5, "params": 0.9}, {"macs": (0.25, 0.75)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constraint": {"macs": "0.7:0.3"}}, "LOW:HIGH"),
        ({"constraint": {"macs": "0.5:2"}}, "both fractions"),
        ({"constraint": {"macs": "0.3:0.7"}, "agent": "swap"}, "answers for each"),
        ({"constraint": {"macs": "0.3:0.7"}, "savings.images": 100}, "savings.images"),
        ({"constraint": {"macs": 0.8}, "budget_range": {"macs": (0.3, 0.7)}}, "within its range"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(None, {"task": "digits", **changes})
