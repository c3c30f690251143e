"""The whole chain, through the functions that the command line calls."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from amc.config.search import SearchConfig, load_config
from amc.pool.pool import InProcess
from amc.problem.bounds import confirm_costs
from amc.problem.prepare import prepare
from amc.problem.setup import Setup, set_up
from amc.profiling.timing import Timing
from amc.reporting.live import curve
from amc.search.confirm import confirm, confirmed
from amc.search.episode import Episode
from amc.search.loop import search
from amc.search.result import SearchResult
from amc.search.tools import Tools
from envs.network.recount import CountMismatch, independent_macs
from envs.reward import REWARDS, Evaluation
from hw_profiles.layers import IntArray

QUICK = {
    "task": "tests.tasks.small:make_task",
    "constraint": {"macs": 0.3},
    "reward_images": 200,
    "compression": {"images": 128, "positions": 16},
    "knapsack": {"images": 64, "widths": 4},
    "episodes": 6,
    "warmup": 3,
    "confirm": 2,
}


@pytest.fixture(autouse=True)
def common_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def quick(**changes: object) -> SearchConfig:
    return SearchConfig(**{**QUICK, **changes})


def searched(config: SearchConfig) -> SearchResult:
    return search(prepare(set_up(config)))


@pytest.mark.parametrize("agent", ["uniform", "knapsack", "random", "ddpg"])
def test_every_agent_ends_within_the_budget_of_the_real_network(agent: str) -> None:
    result = searched(quick(agent=agent))
    for name in ("uniform", "found"):
        assert result.reports[name].costs["macs"] <= result.budgets["macs"]
    counted = sum(parameter.numel() for parameter in result.networks["found"].parameters())
    assert counted == result.reports["found"].costs["params"] < result.reports["dense"].costs["params"]


def test_a_knapsack_in_rounds_pays_for_measuring_again_and_keeps_the_budget() -> None:
    plain = {"images": 64, "widths": 4, "damages": ("logits",)}
    once, twice = (searched(quick(agent="knapsack", knapsack={**plain, "rounds": rounds})) for rounds in (1, 2))
    assert twice.reports["found"].costs["macs"] <= twice.budgets["macs"]
    assert twice.image_forwards > once.image_forwards


TINY = {"agent": "knapsack", "compression": {"images": 48, "positions": 4}, "knapsack": {"images": 32, "widths": 2}}
WITHOUT = f"""
import sys

sys.modules["ray"] = None

import amc.runs.runner
from amc.config.search import SearchConfig
from amc.problem.prepare import prepare
from amc.problem.setup import Setup, set_up
from amc.search.loop import search

config, counted = SearchConfig(**{ {**QUICK, **TINY} }), Setup.real_costs
search(prepare(set_up(config)))
print("searched", flush=True)
Setup.real_costs = lambda *given: {{name: cost + 1 for name, cost in counted(*given).items()}}
search(prepare(set_up(config)))
"""


@pytest.mark.parametrize("options", [[], pytest.param(["-O"], marks=pytest.mark.slow)], ids=["plain", "optimized"])
def test_a_search_without_workers_needs_no_ray_and_its_recount_no_assertions(
    options: list[str], tmp_path: Path
) -> None:
    # Optimized takes long where nobody keeps bytecode: torch is compiled anew.
    environment, command = {**os.environ, "AMC_CACHE": str(tmp_path)}, [sys.executable, *options, "-c", WITHOUT]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "searched" in ended.stdout, ended.stderr
    assert ended.returncode == 1
    assert "CountMismatch: the network must cost what the search was told" in ended.stderr


def test_several_budgets_hold_at_once() -> None:
    result = searched(quick(agent="knapsack", constraint={"macs": 0.5, "params": 0.3, "memory": 0.5}))
    assert set(result.budgets) == {"macs", "params", "memory"}
    for cost, limit in result.budgets.items():
        assert result.reports["found"].costs[cost] <= limit


@pytest.mark.slow
def test_the_same_seed_gives_the_same_policy_and_accuracy() -> None:
    first, second = (searched(quick(agent="ddpg")) for _ in range(2))
    assert first.policy == second.policy
    assert first.reports == second.reports
    assert first.image_forwards == second.image_forwards


def test_ddpg_is_not_worse_than_its_start_on_validation() -> None:
    start = searched(quick(agent="knapsack")).reports["found"].accuracy["validation"]
    assert searched(quick(agent="ddpg")).reports["found"].accuracy["validation"] >= start


def test_the_second_budget_finds_sensitivities_on_disk_and_pays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = quick(agent="knapsack", constraint={"macs": 0.4})
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cold"))
    computed = searched(other)
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "warm"))
    searched(quick(agent="knapsack"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("damage was measured again")

    monkeypatch.setattr("amc.search.allocation.curves.measure_damage", never)
    remembered = searched(other)
    assert remembered.image_forwards == computed.image_forwards
    assert remembered.policy == computed.policy


def test_a_search_does_not_change_the_task_network() -> None:
    setup = set_up(quick(agent="knapsack"))
    before = {name: tensor.clone() for name, tensor in setup.task.network.state_dict().items()}
    search(prepare(setup))
    after = setup.task.network.state_dict()
    assert all(np.array_equal(before[name].numpy(), after[name].numpy()) for name in before)


def test_an_unreachable_budget_is_refused_with_the_lowest_value_found() -> None:
    with pytest.raises(ValueError, match="lowest found is macs="):
        set_up(quick(constraint={"macs": 0.0001}))


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu"):
        set_up(quick(device="cuda"))


def test_the_result_has_the_documented_fields() -> None:
    result = searched(quick(agent="uniform"))
    data = json.loads(
        json.dumps(result.to_json({"torch": "0"}, {"dense": Timing(median_ms=1.0, mad_ms=0.1, rounds=40)}))
    )
    assert data["schema_version"] == 1
    assert {"task", "budgets", "seed", "evaluations", "image_forwards", "versions", "measured"} <= data.keys()
    for name in ("dense", "uniform", "found"):
        assert data[name].keys() == {"accuracy", "costs", "choices", "standard_error"}
        assert data[name]["accuracy"].keys() == {"validation", "test"}


def test_the_reward_sees_at_most_half_of_validation_and_confirmation_the_rest() -> None:
    draws = set_up(quick(reward_images=10_000)).draws
    seen, unseen = set(draws.reward()), set(draws.confirm())
    assert len(seen) == len(unseen) == 300
    assert not seen & unseen


def test_confirmation_decides_by_the_reward_on_unseen_images_among_those_no_less_accurate_than_the_start() -> None:
    prepared = prepare(set_up(quick(agent="ddpg")))
    setup, pool, tools = prepared.setup, InProcess(), Tools.of(prepared, InProcess())
    dense = tools.dense_outputs(prepared)
    values = [setup.constraint.uniform(), setup.constraint.fallback, *drawn(setup, 2)]
    episodes = [
        Episode(searcher=name, actions=(), key=setup.assignment(kept).key, reward=-rank, evaluation=EVALUATION)
        for rank, (name, kept) in enumerate(zip(["uniform", "ddpg", "ddpg", "ddpg"], values, strict=True))
    ]
    start, uniform, found, _ = confirm(prepared, pool, tools, dense, ["uniform"], episodes)
    assert start is not None
    assert start.assignment.key == uniform.assignment.key == episodes[0].key
    unseen = setup.draws.confirm()
    keys = [episode.key for episode in episodes[:3]]  # confirm = 2, and the start
    candidates = list(confirmed(prepared, pool, tools, dense, keys))
    fit = [one for one in candidates if one.score.at(unseen).value >= start.score.at(unseen).value]
    best = max(fit, key=lambda one: setup.reward(one.score.at(unseen).evaluation({}, 0)))
    assert found.assignment == best.assignment
    before = prepared.ledger.image_forwards
    # no time left: the start all the same, here uniform and best
    confirm(prepared, pool, tools, dense, ["uniform"], episodes, seconds=0)
    each = prepared.compressor.repair_forwards + len(setup.task.validation)
    assert prepared.ledger.image_forwards - before == each


@pytest.mark.parametrize("agent", ["knapsack", "ddpg"])
def test_what_is_returned_is_never_worse_than_uniform_widths_and_says_so_where_nothing_beats_them(agent: str) -> None:
    prepared = prepare(set_up(quick(agent=agent, constraint={"macs": 0.6})))
    setup, pool, tools = prepared.setup, InProcess(), Tools.of(prepared, InProcess())
    dense = tools.dense_outputs(prepared)
    lightest = setup.assignment(setup.constraint.costing.lightest()).key  # within every budget, and of no use
    worse = Episode(searcher="knapsack", actions=(), key=lightest, reward=1.0, evaluation=EVALUATION)
    starts = ["knapsack"] if agent == "ddpg" else []
    start, uniform, found, remarks = confirm(prepared, pool, tools, dense, starts, [worse])
    unseen = setup.draws.confirm()
    (useless,) = confirmed(prepared, pool, tools, dense, [lightest])
    assert useless.score.at(unseen).value < uniform.score.at(unseen).value
    assert found.assignment == uniform.assignment == setup.uniform()
    assert any("found is uniform" in remark for remark in remarks)
    assert any("the damage curves and confirmation disagree" in remark for remark in remarks)
    assert (start is not None) == (agent == "ddpg")


EVALUATION = Evaluation(metric=0.5, loss=1.0, costs={"macs": 100.0}, images=1, image_forwards=1)


def drawn(setup: Setup, count: int) -> list[IntArray]:
    draw = np.random.default_rng(0)
    return [setup.constraint.project(draw.random(len(setup.sites)).tolist()) for _ in range(count)]


def test_rewards_are_what_the_paper_and_their_names_say() -> None:
    evaluation = replace(EVALUATION, output_error=0.25)
    assert REWARDS["accuracy"](evaluation) == 0.5
    assert REWARDS["error_log_cost"](evaluation) == pytest.approx(-0.5 * np.log(100))
    assert REWARDS["loss"](evaluation) == -1.0
    assert REWARDS["output_error"](evaluation) == -0.25
    with pytest.raises(ValueError, match="use --reward accuracy"):
        REWARDS["loss"](replace(evaluation, loss=None))


def test_time_ends_a_search_only_after_a_round() -> None:
    result = searched(quick(agent="random", round_size=2, max_minutes=1e-9))
    assert (result.stopped, result.episodes) == ("time", 2)


def test_effort_ends_a_search() -> None:
    result = searched(quick(agent="random", round_size=1, effort=8_000, episodes=1000, confirm=1))
    assert result.stopped == "effort"
    assert result.image_forwards <= 8_000 + 200 + 2 * 128


def test_an_effort_that_leaves_no_room_for_an_episode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of 1,000 image-forwards preparation took .* raise it"):
        searched(quick(agent="random", effort=1_000))


def test_a_user_reward_guides_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(cheap=lambda evaluation: -evaluation.costs["macs"]))
    result = searched(quick(agent="random", reward="mine:cheap"))
    assert result.reports["found"].costs["macs"] <= result.budgets["macs"]


def test_the_reward_curve_rises_to_full_height_at_the_best() -> None:
    line = curve([0.0, 0.5, 1.0])
    assert len(line) == 3
    assert line[-1] == "█"
    assert len(curve(list(range(1000)), width=60)) == 60
    assert set(curve([0.3, 0.3])) == {"█"}


@pytest.mark.slow
def test_uniform_loses_three_points_on_the_digits_and_the_search_loses_less() -> None:
    recipe = Path(__file__).resolve().parents[2] / "experiments" / "recipes" / "digits.toml"
    reports = searched(load_config(recipe, {"agent": "knapsack"})).reports
    dense, uniform, found = (reports[n].accuracy["validation"] for n in ("dense", "uniform", "found"))
    assert dense - uniform >= 0.03
    assert found > uniform


def test_a_network_that_costs_other_than_foretold_is_an_error() -> None:
    constraint = set_up(quick()).constraint
    dense = constraint.costing.dense()
    true = constraint.costs(dense)
    confirm_costs(true, constraint, dense, bounded=False)
    with pytest.raises(CountMismatch, match="every budget must be kept, but a recount gives macs="):
        confirm_costs(true, constraint, dense, bounded=True)
    with pytest.raises(CountMismatch, match="what the search was told, but a recount gives macs="):
        confirm_costs({"macs": true["macs"] + 1}, constraint, dense, bounded=False)


def test_real_costs_are_those_of_an_independent_count() -> None:
    prepared = prepare(set_up(quick()))
    setup = prepared.setup
    small = prepared.compressor.compress(prepared.policy(setup.uniform())).network
    counted = independent_macs(small, setup.task.example_input).macs
    assert setup.real_costs(small)["macs"] == counted <= setup.constraint.limits()["macs"]
