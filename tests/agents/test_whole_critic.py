"""The critic of whole assignments: it leads from a start to what is better nearby, at the same cost."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.actor_plan import ActorPlan
from agents.ddpg import DDPGSearcher
from agents.searcher import FixedPlan, SearcherState, Trajectory
from agents.whole_critic import ENOUGH, WholeCritic
from amc.testing.searcher import SMALL, STARTS, rewards
from amc.testing.toy import SIZE, STEPS, toy

T, SIGMA = 12, 0.1
START, GOAL = np.full(T, 0.5), 0.5 + 0.12 * np.resize([1.0, -1.0], T)


def told(count: int, shares: NDArray[np.float64] | None = None, noise: float = 0.0, best: float = 0.0) -> WholeCritic:
    """A critic that has seen episodes around the start; the reward falls with the squared distance from the goal."""
    critic, draw = WholeCritic(T, None if shares is None else shares.tolist(), best), np.random.default_rng(0)
    for _ in range(count):
        actions = np.clip(START + SIGMA * draw.standard_normal(T), 0, 1).astype(np.float32)
        reward = float(-np.square(actions - GOAL).sum() + noise * draw.standard_normal())
        critic.remember(
            Trajectory(observations=np.zeros((T, 1), np.float32), actions=actions, reward=reward, label="test")
        )
    return critic


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_it_prefers_what_is_nearer_to_the_goal_than_anything_that_was_played(noise: float) -> None:
    critic = told(80, noise=noise)
    played = critic.state().arrays["actions"]
    nearest = np.linalg.norm(played - GOAL, axis=1).min()
    assert np.linalg.norm(critic.preferred(SIGMA) - GOAL) < 0.6 * nearest


def test_where_rewards_are_noisy_the_mean_of_more_episodes_is_nearer_to_the_goal() -> None:
    few, many = (told(200, noise=0.3, best=share).preferred(SIGMA) for share in (0.0, 0.2))
    assert np.linalg.norm(many - GOAL) < np.linalg.norm(few - GOAL)


def test_what_it_prefers_costs_about_as_much_as_the_best_episodes() -> None:
    shares = np.linspace(1, 3, T)
    with_cost, without = told(40, shares), told(40)
    order = np.argsort(-with_cost.state().arrays["rewards"])[:5]
    middle = np.average(with_cost.state().arrays["actions"][order], axis=0, weights=[5, 4, 3, 2, 1])
    assert shares @ with_cost.preferred(SIGMA) == pytest.approx(shares @ middle, abs=1e-4)
    assert abs(shares @ (without.preferred(SIGMA) - middle)) > 1e-2


@pytest.mark.parametrize(("count", "sigma"), [(ENOUGH - 1, SIGMA), (40, 0.0)])
def test_where_it_knows_nothing_it_prefers_the_best_episode(count: int, sigma: float) -> None:
    critic = told(count)
    arrays = critic.state().arrays
    assert np.array_equal(critic.preferred(sigma), arrays["actions"][np.argmax(arrays["rewards"])].astype(np.float32))


def test_without_an_episode_it_is_not_to_be_asked() -> None:
    with pytest.raises(ValueError, match="remember one first"):
        WholeCritic(T, None).preferred(SIGMA)


def test_a_state_without_its_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="search anew"):
        WholeCritic(T, None).load(SearcherState({}, {}))


def test_the_actor_does_what_it_prefers() -> None:
    searcher = DDPGSearcher(SIZE, STEPS, SMALL.changed(hidden=(64, 64), warmup_episodes=12), 0, STARTS)
    rewards(searcher, rounds=4, count=4)
    (plan,) = searcher.propose(1)
    assert isinstance(plan, ActorPlan)
    assert searcher._whole is not None
    wanted = searcher._whole.preferred(searcher._sigma(0))
    asked = toy().play(FixedPlan(tuple(wanted.astype(float).tolist()), "wanted")).actions
    assert toy().play(plan).actions == pytest.approx(asked, abs=0.03)
