"""The environment: Gymnasium's contract, AMC's observation, and every stable-baselines3 algorithm for boxes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3

from envs.observation import FEATURES
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation, accuracy
from envs.space.assignment import Assignment
from envs.space.constraint import Budget, Constraint
from envs.space.policy import LayerPolicy, Policy, UnitPolicy
from envs.space.rules import Rules
from hw_profiles.cost import COSTS

if TYPE_CHECKING:
    from tests.conftest import Specimen

Zoo = Callable[[str], "Specimen"]
Step = tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]


def make_env(specimen: Specimen, name: str = "macs", fraction: float = 0.5, rules: Rules | None = None) -> PruningEnv:
    """The environment of a test network; an evaluation is a number made of the widths."""
    costing = specimen.costing(rules)
    limit = fraction * costing.one(COSTS[name], costing.dense())
    constraint = Constraint.create(costing, [Budget(COSTS[name], limit)])
    units = {unit.name: unit for unit in specimen.anatomy.units}

    def policy_of(assignment: Assignment) -> Policy:
        kept, entries = assignment.decisions.kept, []
        for unit in units.values():
            granules = unit.granules[: kept.get(unit.name, unit.channels) // unit.granule]
            entries.append(UnitPolicy(unit=unit, indices=tuple(sorted(c for granule in granules for c in granule))))
        return Policy(structure="s", weights="w", units=tuple(entries), layers=(LayerPolicy(name="l"),))

    def evaluate(assignment: Assignment) -> Evaluation:
        share = sum(policy_of(assignment).widths().values()) / sum(unit.channels for unit in units.values())
        return Evaluation(metric=share, loss=None, images=1, image_forwards=1)

    return PruningEnv(constraint, policy_of, evaluate, accuracy)


def act(value: float) -> NDArray[np.float32]:
    return np.asarray([value], dtype=np.float32)


def play(env: PruningEnv, actions: list[float]) -> list[Step]:
    env.reset()
    return [env.step(act(action)) for action in actions]


# Gymnasium's contract


@pytest.mark.parametrize("name", ["chain", "mobile_v2", "grouped", "dense", "branching"])
def test_gymnasiums_check_passes_without_a_warning(name: str, zoo: Zoo) -> None:
    check_env(make_env(zoo(name)), skip_render_check=True)


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3, DDPG, A2C])
def test_stable_baselines3_runs_on_it_as_it_is(algorithm: Any, zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    few = {"n_steps": 20} if algorithm in (PPO, A2C) else {"learning_starts": 10}
    batch = {"batch_size": 10} if algorithm is not A2C else {}
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **few, **batch)
    model.learn(40)
    action, _ = model.predict(env.reset()[0], deterministic=True)
    assert env.action_space.contains(action)


def test_gymnasium_makes_it_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    settings = {"repair": "none", "importance": "l1", "images": 32}
    env = gymnasium.make("amc:amc/ChannelPruning-v0", task="digits", constraint="macs=0.5", compression=settings)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(act(0.6))
    inner = env.unwrapped
    assert isinstance(inner, PruningEnv)
    assert info["evaluation"].costs["macs"] <= inner.constraint.limits()["macs"]
    assert reward == info["evaluation"].accuracy


# Steps


@given(actions=st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4))
def test_an_episode_ends_after_one_step_per_site(actions: list[float], zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    steps = play(env, actions)
    assert env.steps == 4
    assert [terminated for _, _, terminated, _, _ in steps] == [False, False, False, True]
    assert not any(truncated for _, _, _, truncated, _ in steps)
    assert [reward for _, reward, _, _, _ in steps[:-1]] == [0.0, 0.0, 0.0]


@given(actions=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_executed_action_is_the_preserve_ratio_of_the_site(actions: list[float], zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    for site, (_, _, _, _, info) in zip(env.constraint.costing.sites, play(env, actions), strict=True):
        assert info["site"] == site.name
        assert info["executed_action"] == int(info["choice"]) / site.size


@given(actions=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_playing_the_executed_actions_again_changes_nothing(actions: list[float], zoo: Zoo) -> None:
    # a learner that stores what was executed may be trained on it
    env = make_env(zoo("residual"))
    executed = [info["executed_action"] for *_, info in play(env, actions)]
    assert [info["executed_action"] for *_, info in play(env, executed)] == executed


@given(actions=st.lists(st.floats(0, 1), min_size=4, max_size=4), name=st.sampled_from(sorted(COSTS)))
def test_the_last_step_carries_the_assignment_its_policy_and_its_evaluation(
    actions: list[float], name: str, zoo: Zoo
) -> None:
    env = make_env(zoo("residual"), name)
    _, reward, _, _, info = play(env, actions)[-1]
    assert info["assignment"] == env.assignment
    assert info["policy"].widths() == info["assignment"].named()
    assert reward == info["evaluation"].accuracy
    assert env.constraint.keeps(info["assignment"].values).all()


def test_units_that_a_rule_skips_stay_dense_in_the_policy(zoo: Zoo) -> None:
    env = make_env(zoo("residual"), fraction=0.9, rules=Rules(skip=("2.first.0",)))
    info = play(env, [0.5] * env.steps)[-1][-1]
    assert env.steps == 2  # the stream 0.0 is read by that layer, so it is skipped with it
    assert info["policy"].widths()["2.first.0"] == 8


def test_a_step_after_the_end_asks_for_a_reset(zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    play(env, [0.5] * 4)
    with pytest.raises(RuntimeError, match=r"an episode has ended: call reset\(\) before step\(\)"):
        env.step(act(0.5))


def test_there_is_no_assignment_before_every_site_is_decided(zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    play(env, [0.5] * 3)
    with pytest.raises(RuntimeError, match="needs all 4 sites decided, but 3 are: step"):
        _ = env.assignment


@pytest.mark.parametrize("action", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_is_refused(action: float, zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    env.reset()
    with pytest.raises(ValueError, match="an action must be a finite number in"):
        env.step(act(action))


def test_a_reset_in_the_middle_starts_at_the_dense_network(zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    first, _ = env.reset()
    env.step(act(0.1))
    again, _ = env.reset()
    assert np.array_equal(first, again)


# Observations


def feature(observation: NDArray[np.float32], name: str) -> float:
    return float(observation[FEATURES.index(name)])


@given(actions=st.lists(st.floats(0, 1), min_size=4, max_size=4), name=st.sampled_from(sorted(COSTS)))
def test_observations_stay_in_the_unit_interval(actions: list[float], name: str, zoo: Zoo) -> None:
    env = make_env(zoo("residual"), name)
    observations = [env.reset()[0], *(step[0] for step in play(env, actions))]
    assert all(env.observation_space.contains(observation) for observation in observations)


@given(actions=st.lists(st.floats(0, 1), min_size=4, max_size=4), name=st.sampled_from(sorted(COSTS)))
def test_what_was_saved_and_what_can_still_be_saved_follow_the_cost(actions: list[float], name: str, zoo: Zoo) -> None:
    env = make_env(zoo("residual"), name)
    costing = env.constraint.costing
    total = costing.one(COSTS[name], costing.dense())
    prefix: list[int] = []
    for observation, _, _, _, info in play(env, actions):
        prefix.append(int(info["choice"]))
        now = costing.one(COSTS[name], np.asarray([*prefix, *costing.dense()[len(prefix) :]]))
        least = costing.one(COSTS[name], np.asarray([*prefix, *costing.lightest()[len(prefix) :]]))
        assert feature(observation, "reduced") == pytest.approx((total - now) / total, abs=1e-6)
        assert feature(observation, "rest") == pytest.approx((now - least) / total, abs=1e-6)
        assert feature(observation, "previous_action") == pytest.approx(info["executed_action"])


def test_rest_ends_at_zero(zoo: Zoo) -> None:
    assert feature(play(make_env(zoo("residual")), [0.7] * 4)[-1][0], "rest") == 0


def test_reset_sees_a_dense_network_of_which_all_can_be_saved(zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    observation, _ = env.reset()
    costing = env.constraint.costing
    saved = 1 - costing.one(COSTS["macs"], costing.lightest()) / costing.one(COSTS["macs"], costing.dense())
    assert feature(observation, "reduced") == 0
    assert feature(observation, "rest") == pytest.approx(saved)
    assert feature(observation, "previous_action") == 1


def test_a_step_describes_its_own_site_wherever_the_walk_has_led(zoo: Zoo) -> None:
    env = make_env(zoo("residual"))
    static = [name for name in FEATURES if name not in ("reduced", "rest", "previous_action")]
    walks = [[env.reset()[0], *(step[0] for step in play(env, actions))] for actions in ([0.1] * 4, [0.9] * 4)]
    for one, other in zip(*walks, strict=True):
        assert [feature(one, name) for name in static] == [feature(other, name) for name in static]
    assert [feature(observation, "t") for observation in walks[0][:4]] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_static_features_are_those_of_the_layer_that_produces_the_unit(zoo: Zoo) -> None:
    # Units of `residual`: 3->6 at 8x8, 6->8 at 8x8, 6->7 and 7->10 at 4x4 (stride 2 in the first of them).
    env = make_env(zoo("residual"))
    walk = [env.reset()[0], *(step[0] for step in play(env, [0.5] * 4))][:4]
    table = {name: [feature(observation, name) for observation in walk] for name in FEATURES}
    assert table["n"] == pytest.approx([0.6, 0.8, 0.7, 1.0])
    assert table["c"] == pytest.approx([3 / 7, 6 / 7, 6 / 7, 1.0])
    assert table["h"] == table["w"] == pytest.approx([1.0, 1.0, 0.5, 0.5])
    assert table["stride"] == pytest.approx([0.5, 0.5, 1.0, 0.5])
    assert table["k"] == [1.0, 1.0, 1.0, 1.0]


def test_making_the_environment_warns_about_nothing(zoo: Zoo) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        play(make_env(zoo("chain")), [0.5] * 4)
    assert caught == []
