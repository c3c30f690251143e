"""CMA-ES beyond the contract of every searcher, which stands in test_searchers.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.cma_es import CMAES
from agents.searcher import FixedPlan, Plan, Trajectory

STEPS = 5
NOTHING = np.zeros(2, np.float32)
BEST = np.array([0.9, 0.2, 0.6, 0.0, 1.0])


def asked(plan: Plan) -> NDArray[np.float64]:
    return np.array([plan(step, NOTHING) for step in range(STEPS)])


def played(plan: Plan) -> Trajectory:
    """The reward falls with the squared distance from BEST; what is executed is something else."""
    reward = -float(((asked(plan) - BEST) ** 2).sum())
    ones = np.ones(STEPS, np.float32)
    return Trajectory(observations=np.zeros((STEPS, 2), np.float32), actions=ones, reward=reward, label=plan.label)


def play_rounds(searcher: CMAES, rounds: int, count: int) -> list[float]:
    rewards = []
    for _ in range(rounds):
        trajectories = [played(plan) for plan in searcher.propose(count)]
        searcher.tell(trajectories)
        rewards += [trajectory.reward for trajectory in trajectories]
    return rewards


def test_it_finds_the_optimum_of_a_bowl_whose_corner_lies_on_the_border() -> None:
    assert max(play_rounds(CMAES(STEPS, 0, sigma=0.2), rounds=50, count=4)) > -1e-2


@pytest.mark.parametrize("count", [1, 3, 4, 8, 20])
def test_rounds_need_not_divide_the_population(count: int) -> None:
    rewards = play_rounds(CMAES(STEPS, 0, sigma=0.2), rounds=240 // count, count=count)
    assert np.mean(rewards[-20:]) > np.mean(rewards[:20])
    assert len(set(rewards)) == len(rewards)


def test_it_begins_around_the_best_start() -> None:
    starts = [("bad", [0.1] * STEPS), ("good", [0.7, 0.3, 0.6, 0.2, 0.8])]
    searcher = CMAES(STEPS, 0, starts, sigma=1e-6)
    play_rounds(searcher, rounds=1, count=2)
    assert asked(searcher.propose(1)[0]) == pytest.approx(starts[1][1], abs=1e-4)


def test_without_a_start_it_begins_in_the_middle() -> None:
    assert asked(CMAES(STEPS, 0, sigma=1e-6).propose(1)[0]) == pytest.approx([0.5] * STEPS, abs=1e-4)


def test_a_start_on_the_border_is_explored_within_it() -> None:
    searcher = CMAES(STEPS, 0, [("dense", [1.0] * STEPS)])
    play_rounds(searcher, rounds=3, count=4)
    for plan in searcher.propose(8):
        assert isinstance(plan, FixedPlan)
        assert (np.array(plan.actions) < 1).any()


def test_its_state_holds_rewards_and_nothing_of_the_library() -> None:
    searcher = CMAES(STEPS, 0)
    rewards = play_rounds(searcher, rounds=3, count=5)
    state = searcher.state()
    assert state.arrays["rewards"].tolist() == rewards
    assert state.arrays["rounds"].tolist() == [5, 5, 5]
    assert json.dumps(state.numbers) == '{"steps": 5}'


def test_equal_rewards_do_not_break_it() -> None:
    searcher = CMAES(STEPS, 0)
    for _ in range(30):
        searcher.tell(
            [
                Trajectory(
                    observations=np.zeros((STEPS, 2), np.float32),
                    actions=np.ones(STEPS, np.float32),
                    reward=0.5,
                    label=plan.label,
                )
                for plan in searcher.propose(4)
            ]
        )
    assert np.isfinite(asked(searcher.propose(1)[0])).all()


def test_impossible_widths_and_populations_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma > 0"):
        CMAES(STEPS, 0, sigma=0.0)
    with pytest.raises(ValueError, match="population >= 3"):
        CMAES(STEPS, 0, population=2)
