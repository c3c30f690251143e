"""Swaps keep what the budget allows, and climb where random search does not."""

from __future__ import annotations

import numpy as np
import pytest

from agents.random_search import RandomSearch
from agents.searcher import FixedPlan, Searcher, Trajectory
from agents.swap import LABEL, Swap

COST = np.array([4.0, 1.0, 2.0, 0.5, 3.0])
BUDGET = float(0.5 * COST.sum())


def actions_of(plan: object) -> np.ndarray:
    assert isinstance(plan, FixedPlan)
    return np.array(plan.actions)


def trajectory(actions: np.ndarray, reward: float) -> Trajectory:
    return Trajectory(
        observations=np.zeros((len(actions), 1), np.float32),
        actions=actions.astype(np.float32),
        reward=reward,
        label=LABEL,
    )


def test_children_cost_what_their_parent_costs() -> None:
    searcher = Swap(5, 0, COST.tolist(), [("start", (0.5,) * 5)])
    searcher.tell([trajectory(actions_of(searcher.propose(1)[0]), 0.0)])
    children = [actions_of(plan) for plan in searcher.propose(200)]
    np.testing.assert_allclose([child @ COST for child in children], BUDGET, rtol=1e-6)
    assert all((child >= 0).all() and (child <= 1).all() for child in children)
    changed = [int((child != 0.5).sum()) for child in children]
    assert min(changed) >= 2
    assert max(changed) <= 6


def best_of(searcher: Searcher, episodes: int) -> float:
    """The best reward under the budget, of a value that rises more slowly the more a step has."""
    best = -np.inf
    for _ in range(0, episodes, 4):
        played = []
        for plan in searcher.propose(4):
            actions = actions_of(plan)
            actions = actions * min(1.0, BUDGET / float(actions @ COST))
            played.append(trajectory(actions, float(np.sqrt(actions) @ [1.0, 3.0, 1.0, 2.0, 0.5])))
        searcher.tell(played)
        best = max(best, *(one.reward for one in played))
    return best


def test_swaps_find_more_than_random_search() -> None:
    start = [("start", (0.5,) * 5)]
    swaps = [best_of(Swap(5, seed, COST.tolist(), start), 120) for seed in range(5)]
    chance = [best_of(RandomSearch(5, seed, start), 120) for seed in range(5)]
    assert min(swaps) > max(chance)


def test_a_single_step_moves_alone() -> None:
    children = [actions_of(plan) for plan in Swap(1, 0, [1.0]).propose(20)]
    assert len({float(child[0]) for child in children}) > 10


def test_what_cannot_be_swapped_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma > 0"):
        Swap(2, 0, [1.0, 1.0], sigma=0.0)
    with pytest.raises(ValueError, match="one number per step"):
        Swap(2, 0, [1.0])
