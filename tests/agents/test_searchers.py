"""The contract of every searcher, and the slow proof that DDPG learns (`test_learning` has a quick one)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC

from agents.actor_plan import ActorPlan, SquashedPlan, with_step_code
from agents.algorithms import ALGORITHMS, means
from agents.ddpg import DDPGSearcher, ddpg
from agents.learner import Learner
from agents.names import AGENTS
from agents.random_search import RandomSearch
from agents.searcher import FixedPlan, MakeSearcher, Searcher, SearchInputs, keyed_generator
from agents.settings import PAPER_SETTINGS, Algorithm, DDPGSettings
from amc.testing import check_searcher
from amc.testing.searcher import SMALL, STARTS, made, play_round, rewards, same_states, stored
from amc.testing.suite import Law
from amc.testing.toy import SIZE, STEPS, Toy, toy
from envs.lookup import find

# --- a toy whose optimum is known ---------------------------------------------------------------------------


def brute_force_optimum(toy: Toy) -> float:
    """The best reward over a grid in all steps but the last, which takes what the budget leaves."""
    levels, best = np.linspace(toy.least, 1.0, 10), -np.inf
    inner = np.array(list(itertools.product(levels, repeat=STEPS - 3)))
    for first, second in itertools.product(levels, repeat=2):
        heads = np.concatenate([np.tile([first, second], (len(inner), 1)), inner], axis=1)
        last = (toy.budget - heads @ toy.cost[:-1]) / toy.cost[-1]
        actions = np.concatenate([heads, np.minimum(last, 1.0)[:, None]], axis=1)[last >= toy.least]
        best = max(best, float(toy.reward(actions).max(initial=-np.inf)))
    return best


def best_after(searcher: Searcher, episodes: int, round_size: int = 4) -> float:
    """The best reward among the first ``episodes``."""
    best = -np.inf
    for begin in range(0, episodes, round_size):
        played = play_round(searcher, min(round_size, episodes - begin))
        best = max(best, *(trajectory.reward for trajectory in played))
    return best


# --- the contract -------------------------------------------------------------------------------------------


def paper(inputs: SearchInputs) -> Searcher:
    return ddpg(replace(inputs, settings=PAPER_SETTINGS.changed(hidden=(16, 16), warmup_episodes=6)))


INSTALLED = [name for name in AGENTS if name not in ("tpe", "gp") or find_spec("optuna")]
SEARCHERS: dict[str, MakeSearcher] = {**{name: find("agent", name, AGENTS) for name in INSTALLED}, "paper": paper}
VARIANTS = {"td3", "sac", "paper"}
"""Searchers whose states, seeds and plans are kept by the same code as those of DDPG."""
QUICK = ("a plan plays the same after pickling", "asking twice gives the same plans")
"""What a new algorithm is most likely to fail."""


@pytest.fixture(params=list(SEARCHERS.values()), ids=list(SEARCHERS))
def every_searcher(request: pytest.FixtureRequest) -> MakeSearcher:
    make: MakeSearcher = request.param
    return make


def pairs() -> list[Any]:
    found = []
    for name, make in SEARCHERS.items():
        for law in check_searcher.laws:
            marks = [pytest.mark.slow] if name in VARIANTS and str(law) not in QUICK else []
            found.append(pytest.param(law, make, id=f"{name}: {law}", marks=marks))
    return found


@pytest.mark.parametrize(("law", "make"), pairs())
def test_every_searcher_keeps_the_law(law: Law, make: MakeSearcher) -> None:
    law(make)


def test_starts_come_first_and_unchanged(every_searcher: MakeSearcher) -> None:
    searcher = made(every_searcher)
    first, second = searcher.propose(5)[:2]
    for plan, (label, actions) in zip((first, second), STARTS, strict=True):
        assert plan.label == label
        assert [plan(step, np.zeros(SIZE, np.float32)) for step in range(STEPS)] == list(actions)


def test_starts_that_span_rounds_are_each_proposed_once(every_searcher: MakeSearcher) -> None:
    searcher = made(every_searcher)
    labels = [trajectory.label for _ in range(3) for trajectory in play_round(searcher, 1)]
    assert labels[:2] == ["uniform", "falling"]
    assert labels[2] not in ("uniform", "falling")


def test_a_start_needs_an_action_per_step(every_searcher: MakeSearcher) -> None:
    with pytest.raises(ValueError, match="one per step, but 'short' has 2"):
        made(every_searcher, 0, [("short", [0.5, 0.5])])


def test_another_seed_gives_another_search_and_episodes_of_one_round_differ(every_searcher: MakeSearcher) -> None:
    one, other = (rewards(made(every_searcher, seed, ()), rounds=2) for seed in (0, 1))
    assert one != other
    assert len(set(one)) == len(one)


def test_nothing_is_learned_from_a_failed_episode() -> None:
    searcher = made(SEARCHERS["ddpg"])
    for number in range(3):
        plans = searcher.propose(4)
        searcher.tell([None if k == number else toy().play(plan) for k, plan in enumerate(plans)])
    assert all(np.isfinite(array).all() for name, array in searcher.state().arrays.items() if name != "rewards")


def test_a_round_of_which_nothing_is_told_changes_no_weight_and_warns_of_nothing() -> None:
    searcher = made(SEARCHERS["ddpg"])
    for _ in range(6):
        searcher.tell([toy().play(plan) for plan in searcher.propose(4)])
    before = searcher.state().arrays
    searcher.propose(4)
    searcher.tell([None] * 4)
    after = searcher.state().arrays
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


# --- DDPG, TD3 and SAC ----------------------------------------------------------------------------------------


@pytest.fixture(params=list(ALGORITHMS))
def any_algorithm(request: pytest.FixtureRequest) -> DDPGSettings:
    algorithm: Algorithm = request.param
    return SMALL.changed(algorithm=algorithm)


def test_the_noiseless_numpy_actor_equals_that_of_stable_baselines3(any_algorithm: DDPGSettings) -> None:
    learner = Learner(SIZE, STEPS, any_algorithm.changed(hidden=(300, 300)), seed=0)
    observations = np.random.default_rng(0).normal(size=(STEPS, SIZE)).astype(np.float32)
    with torch.no_grad():
        expected = (means(learner._model, torch.from_numpy(with_step_code(observations))).numpy()[:, 0] + 1) / 2
    plan = learner.plan(0.0, (0.9,) * STEPS)
    assert [plan(step, row) for step, row in enumerate(observations)] == pytest.approx(expected, abs=1e-6)


def test_sac_explores_by_the_width_that_its_actor_learned() -> None:
    learner = Learner(SIZE, STEPS, SMALL.changed(algorithm="sac"), seed=0)
    observation = np.ones(SIZE, np.float32)
    inputs = torch.from_numpy(with_step_code(np.tile(observation, (STEPS, 1))))
    assert isinstance(learner._model, SAC)
    with torch.no_grad():
        mean, log_std, _ = learner._model.actor.get_action_dist_params(inputs)
    one_sigma_up = float((torch.tanh(mean + log_std.exp())[2, 0] + 1) / 2)
    plan = learner.plan(0.2, (0.841344746,) * STEPS)
    assert isinstance(plan, SquashedPlan)
    assert plan(2, observation) == pytest.approx(one_sigma_up, abs=1e-5)


def test_the_algorithm_is_the_label(any_algorithm: DDPGSettings) -> None:
    searcher = DDPGSearcher(SIZE, STEPS, any_algorithm, 0)
    labels = {trajectory.label for _ in range(3) for trajectory in play_round(searcher, 4)}
    assert labels == {any_algorithm.algorithm}


def test_the_temperature_of_sac_is_learned_and_restored() -> None:
    settings = SMALL.changed(algorithm="sac")
    searcher, restored = DDPGSearcher(SIZE, STEPS, settings, 0), DDPGSearcher(SIZE, STEPS, settings, 0)
    untrained = searcher.state().arrays["learner.log_temperature"]
    rewards(searcher, rounds=4)
    state = searcher.state()
    assert state.arrays["learner.log_temperature"] != untrained
    assert any(name.startswith("learner.temperature_optimizer.") for name in state.arrays)
    restored.load(stored(state))
    assert same_states(restored.state(), state)


def test_the_first_learned_plan_of_a_round_has_no_noise(any_algorithm: DDPGSettings) -> None:
    searcher = DDPGSearcher(SIZE, STEPS, any_algorithm, 0)
    rewards(searcher, rounds=2)
    noiseless = toy().play(searcher._learner.plan(0.0, (0.5,) * STEPS)).actions
    first, second = (toy().play(plan).actions for plan in searcher.propose(2))
    assert np.array_equal(first, noiseless)
    assert not np.array_equal(second, noiseless)


def test_in_the_paper_every_learned_plan_has_noise() -> None:
    searcher = DDPGSearcher(SIZE, STEPS, PAPER_SETTINGS.changed(hidden=(16, 16), warmup_episodes=6), 0)
    rewards(searcher, rounds=2)
    noiseless = toy().play(searcher._learner.plan(0.0, (0.5,) * STEPS)).actions
    assert not any(np.array_equal(toy().play(plan).actions, noiseless) for plan in searcher.propose(3))


def test_around_a_start_warmup_leaves_the_cost_as_it_is() -> None:
    shares = toy().cost
    searcher = DDPGSearcher(SIZE, STEPS, SMALL.changed(warmup_start_sigma=0.02), 0, STARTS, "uniform", shares.tolist())
    plans = searcher.propose(6)[2:]
    actions = np.array([[plan(step, np.zeros(SIZE, np.float32)) for step in range(STEPS)] for plan in plans])
    assert actions @ shares == pytest.approx(0.45, abs=1e-6)
    assert np.abs(actions - 0.45).max() > 0.01


def test_shares_need_a_finite_number_per_step() -> None:
    for shares in ([0.5] * (STEPS - 1), [float("nan")] * STEPS):
        with pytest.raises(ValueError, match="one per step"):
            DDPGSearcher(SIZE, STEPS, SMALL, 0, shares=shares)


def test_a_cloned_actor_begins_at_the_best_start(any_algorithm: DDPGSettings) -> None:
    settings = any_algorithm.changed(hidden=(64, 64), cloned_sigma=0.0, sigma_floor=0.0, whole_critic=False)
    searcher = DDPGSearcher(SIZE, STEPS, settings, 0, STARTS)
    gained = dict(zip(["uniform", "falling"], rewards(searcher, rounds=1, count=2), strict=True))
    rewards(searcher, rounds=2, count=3)
    best = max(STARTS, key=lambda start: gained[start[0]])
    executed = toy().play(FixedPlan(tuple(best[1]), "start")).actions
    (plan,) = searcher.propose(1)
    assert isinstance(plan, (ActorPlan, SquashedPlan))
    assert toy().play(plan).actions == pytest.approx(executed, abs=0.03)


def test_warmup_explores_around_the_anchor() -> None:
    settings = SMALL.changed(warmup_start_sigma=0.0)
    for label, actions in STARTS:
        searcher = DDPGSearcher(SIZE, STEPS, settings, 0, STARTS, anchor=label)
        rewards(searcher, rounds=1, count=2)
        (plan,) = searcher.propose(1)
        executed = toy().play(FixedPlan(tuple(actions), label)).actions
        assert toy().play(plan).actions == pytest.approx(executed, abs=1e-6)


def test_the_executed_action_and_the_end_of_the_episode_are_replayed() -> None:
    learner = Learner(SIZE, STEPS, SMALL.changed(step_code=False), seed=0)
    played = toy().play(FixedPlan((1.0,) * STEPS, "greedy"))
    learner.remember(played)
    arrays = learner.state().arrays
    assert (arrays["replay.actions"][:, 0, 0] + 1) / 2 == pytest.approx(played.actions)
    assert arrays["replay.observations"][:, 0] == pytest.approx(played.observations)
    assert arrays["replay.next_observations"][:-1, 0] == pytest.approx(played.observations[1:])
    assert arrays["replay.dones"][:, 0].tolist() == [0.0] * (STEPS - 1) + [1.0]


def test_ranks_and_baseline_both_centre_the_rewards() -> None:
    for settings in (SMALL, SMALL.changed(rank_rewards=False, baseline_decay=0.0)):
        learner = Learner(SIZE, STEPS, settings, seed=0)
        for level in (0.2, 0.4, 0.4):
            learner.remember(toy().play(FixedPlan((level,) * STEPS, "level")))
        low, high, same = learner._worth(learner._rewards[: 3 * STEPS])[::STEPS]
        assert low < 0 <= high == same


def test_freezing_the_actor_trains_the_critic_only(any_algorithm: DDPGSettings) -> None:
    learner = Learner(SIZE, STEPS, any_algorithm, seed=0)
    learner.remember(toy().play(FixedPlan((0.4,) * STEPS, "level")))
    before = learner.state().arrays
    learner.train(STEPS, index=1, freeze_actor=True)
    after = learner.state().arrays
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "policy.critic.qf0.0.weight" in changed
    assert not any(name.startswith(("policy.actor.", "log_temperature")) for name in changed)
    assert not any(name.startswith(("actor_optimizer.", "temperature_optimizer.")) for name in after)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 1.5),
        ("actor_lr", 0.0),
        ("critic_lr", float("nan")),
        ("hidden", ()),
        ("sigma_decay", 0.0),
        ("algorithm", "ppo"),
    ],
)
def test_settings_outside_their_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SMALL.changed(**{field: value})


def test_an_unknown_anchor_and_a_foreign_episode_are_refused() -> None:
    with pytest.raises(ValueError, match="label of a start"):
        DDPGSearcher(SIZE, STEPS, SMALL, 0, STARTS, anchor="knapsack")
    searcher = DDPGSearcher(SIZE + 1, STEPS, SMALL, 0)
    with pytest.raises(ValueError, match="are expected"):
        play_round(searcher, 1)


def best_of_ddpg_and_random(episodes: int, seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    learned = [best_after(DDPGSearcher(SIZE, STEPS, DDPGSettings(), seed), episodes) for seed in range(seeds)]
    drawn = [best_after(RandomSearch(STEPS, seed), episodes) for seed in range(seeds)]
    return np.array(learned), np.array(drawn)


@pytest.mark.slow
def test_ddpg_from_nothing_learns_to_prune_the_toy() -> None:
    learned, drawn = best_of_ddpg_and_random(episodes=120, seeds=2)
    assert learned.min() >= 0.98 * brute_force_optimum(toy())
    assert learned.mean() > drawn.mean()


@pytest.mark.slow
def test_ddpg_from_nothing_comes_within_a_percent_of_the_optimum_in_300_episodes() -> None:
    learned, drawn = best_of_ddpg_and_random(episodes=300, seeds=5)
    assert learned.min() >= 0.99 * brute_force_optimum(toy())
    assert learned.mean() > drawn.mean()


# --- the words ----------------------------------------------------------------------------------------------


def test_keyed_draws_never_change() -> None:
    assert keyed_generator(0, "warmup", 3).integers(0, 1000, 3).tolist() == [511, 376, 188]
    streams = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({keyed_generator(*key).random() for key in streams}) == len(streams)


def test_impossible_trajectories_and_plans_are_refused() -> None:
    good = toy().play(FixedPlan((0.5,) * STEPS, "level"))
    with pytest.raises(ValueError, match="must agree"):
        replace(good, actions=good.actions[:-1])
    with pytest.raises(ValueError, match="finite"):
        replace(good, reward=float("nan"))
    with pytest.raises(ValueError, match="finite"):
        replace(good, observations=np.full_like(good.observations, np.inf))
    with pytest.raises(ValueError, match="0 <= action <= 1"):
        replace(good, actions=good.actions + np.float32(1))
    with pytest.raises(ValueError, match="0 <= action <= 1"):
        FixedPlan((0.5, 1.2), "wild")
