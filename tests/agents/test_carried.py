"""An actor that another search taught: taken over where it does better than the starts, and left where it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.ddpg import TRIALS, DDPGSearcher
from agents.searcher import Plan, SearcherState, Trajectory
from amc.testing.searcher import SMALL, STARTS, same_states, stored
from amc.testing.toy import SIZE, STEPS

Reward = Callable[[NDArray[np.float64]], float]
SEEN = np.eye(STEPS, SIZE, dtype=np.float32)
STILL = SMALL.changed(warmup_episodes=TRIALS + 2, step_code=False)


def new() -> DDPGSearcher:
    return DDPGSearcher(SIZE, STEPS, STILL, 0, STARTS)


@pytest.fixture(scope="module")
def teacher() -> SearcherState:
    """An actor that does what nothing else does: about 0.9 everywhere."""
    searcher = DDPGSearcher(SIZE, STEPS, STILL, 1, [("high", (0.9,) * STEPS)])
    play(searcher, 9, lambda actions: float(actions.mean()))
    assert np.mean(acted(searcher.answer())) > 0.8
    return searcher.state()


def acted(plan: Plan) -> list[float]:
    return [plan(step, row) for step, row in enumerate(SEEN)]


def play(searcher: DDPGSearcher, count: int, reward: Reward) -> list[list[float]]:
    """A round of plans, what they did."""
    plans = [acted(plan) for plan in searcher.propose(count)]
    told = [
        Trajectory(
            observations=SEEN,
            actions=np.asarray(actions, np.float32),
            reward=reward(np.asarray(actions)),
            label="ddpg",
        )
        for actions in plans
    ]
    searcher.tell(told)
    return plans


def good(actions: NDArray[np.float64]) -> float:
    return float(actions.mean())


def bad(actions: NDArray[np.float64]) -> float:
    return -float(actions.mean())


def test_what_is_carried_over_is_played_after_the_starts_without_noise(teacher: SearcherState) -> None:
    searcher = new()
    searcher.learn_from(teacher)
    wanted = acted(searcher.answer())
    plans = play(searcher, len(STARTS) + TRIALS + 1, bad)
    assert plans[len(STARTS) : len(STARTS) + TRIALS] == [wanted] * TRIALS
    assert plans[-1] != wanted


def test_an_actor_that_does_better_than_the_starts_is_taken_over_without_a_warm_up(teacher: SearcherState) -> None:
    searcher = new()
    searcher.learn_from(teacher)
    play(searcher, len(STARTS) + TRIALS, good)
    assert searcher.state().numbers["learned_from"] == len(STARTS) + TRIALS
    assert np.mean(acted(searcher.answer())) > 0.8


def test_an_actor_that_does_worse_leaves_a_search_as_if_it_had_not_been(teacher: SearcherState) -> None:
    searcher, anew = new(), new()
    searcher.learn_from(teacher)
    play(searcher, len(STARTS) + TRIALS, bad)
    play(anew, len(STARTS) + TRIALS, bad)
    assert searcher.state().numbers["learned_from"] is None
    assert [acted(plan) for plan in searcher.propose(2)] == [acted(plan) for plan in anew.propose(2)]
    assert acted(searcher.answer()) == acted(anew.answer())
    play(searcher, 4, bad)
    assert "taught" not in searcher.state().numbers
    assert "whole.actions" in searcher.state().arrays


@pytest.mark.parametrize("reward", [good, pytest.param(bad, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [1, len(STARTS) + 1, len(STARTS) + TRIALS, len(STARTS) + TRIALS + 3])
def test_it_goes_on_where_it_was_stopped(teacher: SearcherState, reward: Reward, before: int) -> None:
    whole, begun = new(), new()
    for searcher in (whole, begun):
        searcher.learn_from(teacher)
        for _ in range(before):
            play(searcher, 1, reward)
    resumed = new()
    resumed.learn_from(teacher)
    resumed.load(stored(begun.state()))
    for _ in range(8):
        assert play(whole, 1, reward) == play(resumed, 1, reward)
    assert same_states(whole.state(), resumed.state())


def test_trials_that_all_fail_are_no_reason_to_take_anything_over(teacher: SearcherState) -> None:
    searcher = new()
    searcher.learn_from(teacher)
    play(searcher, len(STARTS), bad)
    searcher.propose(TRIALS)
    searcher.tell([None] * TRIALS)
    assert searcher.state().numbers["learned_from"] is None
    assert "taught" not in searcher.state().numbers
