"""A search over a range on disk: stopped and resumed, played by workers, asked for single budgets, learned on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import amc
from agents.cma_es import CMAES
from agents.ddpg import TRIALS
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig, load_config
from amc.profiling.measure import measure_profile
from amc.profiling.setting import Setting
from amc.runs.folder import EPISODES, RESULT, RunFolder
from amc.runs.runner import NoScreen, new_run, resume_run
from amc.runs.studies.teaching import asking, taught_by
from amc.search.ranges.budgets import GRID, STRATA
from amc.search.ranges.surrogate import learned_by
from amc.search.ranges.taught import ANSWERS
from amc.search.starts import PLAIN
from envs.units.anatomy import dissect
from hw_profiles.bench.measure import MeasureOptions
from tests.tasks.small import make_task

SETTINGS = {
    "task": "tests.tasks.small:make_task",
    "constraint": {"macs": "0.3:0.7"},
    "reward_images": 100,
    "round_size": 4,
    "episodes": GRID + 8,
    "warmup": 4,
    "confirm": 1,
    "compression": {"images": 48, "positions": 4, "quick_images": 32},
    "knapsack": {"images": 32, "widths": 3, "damages": ["kl"]},
    "learning": {"hidden": [16, 16]},
}
pytestmark = pytest.mark.xdist_group("ranges")  # one process makes the searches that its tests share
SAME = ("episodes.jsonl", "policy.json", "network.safetensors", "scores.safetensors")


class Killed(BaseException):
    """Stands for a signal: nothing in the search may catch it."""


@pytest.fixture(scope="module")
def ended() -> Iterator[Path]:
    """The folder of a search over a range that was left alone."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", f"{folder}/cache")
        without_extras(patch)
        new_run(SearchConfig(**SETTINGS), Path(folder, "run"), NoScreen())
        yield Path(folder, "run")


@pytest.fixture(autouse=True)
def same_cache(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(ended.parent / "cache"))
    without_extras(monkeypatch)


def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.runs.runner.write_report", lambda path, _: path.touch())
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})
    monkeypatch.setattr("agents.learner._CLONE_STEPS", 100)  # 3,000 are half of a search as small as these


def equal(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in SAME)


def test_every_episode_keeps_its_own_budget_and_the_knapsack_goes_first(ended: Path) -> None:
    lines = [json.loads(line) for line in (ended / EPISODES).read_text().splitlines()]
    assert all(line["costs"]["macs"] <= line["budgets"]["macs"] for line in lines)
    assert len({line["budgets"]["macs"] for line in lines}) == len(lines) == GRID + 8
    assert {line["searcher"] for line in lines[:GRID]} == {"knapsack"}
    assert {line["reward"] for line in lines[:GRID]} == {0.0}
    assert [line["searcher"] for line in lines[GRID:]] == [*["ddpg"] * 5, *["surrogate"] * 3]


def test_the_result_of_a_range_is_its_middle(ended: Path) -> None:
    result = json.loads((ended / RESULT).read_text())
    dense = result["dense"]["costs"]["macs"]
    assert result["budgets"]["macs"] == pytest.approx(0.5 * dense)
    assert result["found"]["costs"]["macs"] <= 0.5 * dense


@pytest.mark.parametrize("rounds", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_a_stopped_range_ends_as_one_left_alone(
    ended: Path, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_round(rounds, SearchConfig(**SETTINGS), tmp_path / "stopped", monkeypatch)
    resume_run(tmp_path / "stopped", 0, NoScreen())
    assert equal(ended, tmp_path / "stopped")


def stop_in_round(rounds: int, config: SearchConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a search before it writes its `rounds`th round."""
    original, calls = RunFolder.round, iter(range(1, 100))

    def deadly(folder: RunFolder, snapshot: object) -> None:
        if next(calls) == rounds:
            raise Killed
        original(folder, snapshot)  # type: ignore[arg-type]  # it is one

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "round", deadly)
        with pytest.raises(Killed):
            new_run(config, folder, NoScreen())


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_workers_change_nothing_of_a_range(ended: Path, tmp_path: Path) -> None:
    new_run(SearchConfig(**SETTINGS), tmp_path / "run", NoScreen(), workers=WorkersConfig(workers=2))
    assert equal(ended, tmp_path / "run")


def test_an_answer_needs_no_judging_beside_confirmation(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("audition.judge", "curves.measure_block"):
        monkeypatch.setattr(f"amc.search.allocation.{name}", None)
    found = amc.policy(ended, {"macs": 0.45}, out=tmp_path / "answer", progress=False)
    assert {"start", "uniform", "found"} <= set(found.record)


def test_an_agent_answers_for_a_budget_and_is_not_worse_than_the_knapsack(ended: Path, tmp_path: Path) -> None:
    found = amc.policy(ended, {"macs": 0.45}, refine=2, out=tmp_path / "answer", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "answer" / EPISODES).read_text().splitlines()]
    assert [line["searcher"] for line in lines] == ["answer", "knapsack", "uniform", PLAIN, "swap", "swap"]
    dense = found.record["dense"]["costs"]["macs"]
    assert all(line["costs"]["macs"] <= 0.45 * dense for line in lines)
    again = amc.policy(ended, {"macs": 0.45}, refine=2, out=tmp_path / "again", progress=False)
    assert again.record["found"]["choices"] == found.record["found"]["choices"]
    assert equal(tmp_path / "answer", tmp_path / "again")


def test_each_half_of_many_episodes_answers_too(ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.search.ranges.taught.DIVIDED", 2 * STRATA)
    fitted: list[int] = []

    def seen(config: Any, setup: Any, curves: Any, dense: float, lines: Sequence[Any]) -> Any:
        fitted.append(len(lines))
        return learned_by(config, setup, curves, dense, lines)

    monkeypatch.setattr("amc.search.ranges.taught.learned_by", seen)
    found = amc.policy(ended, {"macs": 0.45}, out=tmp_path / "answer", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "answer" / EPISODES).read_text().splitlines()]
    assert [line["searcher"] for line in lines] == [*ANSWERS, "knapsack", "uniform", PLAIN]
    assert fitted[0] == fitted[1] + fitted[2]
    assert all(fitted)
    assert all(line["costs"]["macs"] <= 0.45 * found.record["dense"]["costs"]["macs"] for line in lines)


def test_the_result_of_a_task_that_no_file_holds_is_asked_as_it_is(tmp_path: Path) -> None:
    settings: dict[str, Any] = {key: SETTINGS[key] for key in SETTINGS.keys() - {"task", "constraint"}}
    found = amc.search(make_task(), {"macs": (0.3, 0.7)}, out=tmp_path / "run", progress=False, **settings)
    answer = amc.policy(found, {"macs": 0.45}, progress=False)
    assert answer.record["found"]["costs"]["macs"] <= 0.45 * answer.record["dense"]["costs"]["macs"]
    with pytest.raises(ValueError, match="objects that no file can hold"):
        amc.policy(tmp_path / "run", {"macs": 0.45}, progress=False)


def test_an_agent_without_observations_answers_too_but_only_for_its_own_sites(tmp_path: Path) -> None:
    new_run(SearchConfig(**{**SETTINGS, "agent": "cmaes"}), tmp_path / "run", NoScreen())
    found = amc.policy(tmp_path / "run", {"macs": 0.45}, out=tmp_path / "answer", progress=False)
    assert found.record["found"]["costs"]["macs"] <= 0.45 * found.record["dense"]["costs"]["macs"]
    state = taught_by(tmp_path / "run").state
    with pytest.raises(ValueError, match="use ddpg"):
        CMAES(99, 0).load(state)


@pytest.mark.parametrize(
    ("budgets", "said"), [({"macs": 0.8}, "within its range macs=0.3:0.7"), ({"params": 0.5}, "the same ones")]
)
def test_a_budget_that_was_not_learned_is_refused(ended: Path, budgets: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asking(ended, budgets, 0)


def test_a_run_of_one_budget_has_no_agent_to_ask(tmp_path: Path) -> None:
    folder = tmp_path / "single"
    RunFolder.create(folder, load_config(None, {"task": "digits"}))
    with pytest.raises(ValueError, match="only a search over a range"):
        taught_by(folder)


def test_an_agent_learns_on_from_another_run_and_not_from_one_of_another_kind(ended: Path, tmp_path: Path) -> None:
    further = {**SETTINGS, "constraint": {"macs": "0.4:0.6"}, "agent_from": str(ended), "episodes": GRID + TRIALS}
    run = new_run(SearchConfig(**further), tmp_path / "further", NoScreen())
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "further" / EPISODES).read_text().splitlines()]
    taken_over = np.mean(rewards[GRID : GRID + TRIALS]) > 0  # the knapsack's own
    assert run.snapshot.searcher.numbers.get("taught", False) is bool(taken_over)
    assert "tried" not in run.snapshot.searcher.numbers
    wider = {**further, "learning": {"hidden": [8, 8]}}
    with pytest.raises(ValueError, match="the same networks and observations"):
        new_run(SearchConfig(**wider), tmp_path / "wider", NoScreen())
    shutil.rmtree(tmp_path / "further")


@pytest.mark.slow
def test_an_agent_that_learns_on_is_stopped_before_its_first_episodes_and_resumed(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = {**SETTINGS, "constraint": {"macs": "0.4:0.6"}, "agent_from": str(ended), "episodes": GRID + TRIALS}
    new_run(SearchConfig(**further), tmp_path / "whole", NoScreen())
    stop_in_round(2, SearchConfig(**further), tmp_path / "stopped", monkeypatch)
    resume_run(tmp_path / "stopped", 0, NoScreen())
    assert equal(tmp_path / "whole", tmp_path / "stopped")


def test_an_agent_does_not_learn_on_for_another_cost(ended: Path, tmp_path: Path) -> None:
    other = {**SETTINGS, "constraint": {"params": "0.4:0.6"}, "agent_from": str(ended)}
    with pytest.raises(ValueError, match="the same ones"):
        new_run(SearchConfig(**other), tmp_path / "other", NoScreen())


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Profiles with kernels as measured, but times made up: on the second device large maps take ten times as long."""
    folder, task = tmp_path_factory.mktemp("devices") / "new", make_task()
    options = MeasureOptions(knots=2, max_rounds=0, confidence=1.0, max_blocks=7, again_minutes=0, keep_disturbed=True)
    anatomy = dissect(task.network, task.example_input)
    measure_profile(anatomy, Setting(), options, folder / "measured.json", lambda what, done, total: None)
    for name, factor in (("here.json", 1), ("there.json", 10)):
        profile = json.loads((folder / "measured.json").read_text())
        for entry in profile["kernels"]:
            slower = factor if entry["kernel"]["in_map"] == [8, 8] else 1
            for one in entry["entries"]:
                one.update(
                    dict.fromkeys(("median_ms", "mean_ms", "p95_ms"), slower * one["inputs"] * one["outputs"] / 1e3)
                )
        (folder / name).write_text(json.dumps(profile))
    return [str(folder / name) for name in ("here.json", "there.json")]


@pytest.fixture(scope="module")
def of_devices(devices: list[str], ended: Path) -> Path:
    """A search over a range of latencies on both."""
    two = {"constraint": {"latency": "0.5:0.9"}, "profiles": devices, "episodes": 2 * GRID + 8}
    new_run(SearchConfig(**{**SETTINGS, **two}), ended.parent / "devices", NoScreen())
    return ended.parent / "devices"


@pytest.mark.slow
def test_widths_and_patterns_have_a_range_where_narrower_layers_do_not_take_their_pattern(tmp_path: Path) -> None:
    mixed = {"choose": "mixed", "constraint": {"macs": "0.2:0.6"}, "episodes": GRID + 5, "warmup": 0}
    new_run(SearchConfig(**{**SETTINGS, **mixed}), tmp_path / "run", NoScreen())
    lines = [json.loads(line) for line in (tmp_path / "run" / EPISODES).read_text().splitlines()]
    assert all(line["costs"]["macs"] <= line["budgets"]["macs"] for line in lines)
    assert "surrogate" in {line["searcher"] for line in lines}


def test_devices_take_turns_and_every_episode_keeps_the_latency_of_its_own(
    of_devices: Path, devices: list[str]
) -> None:
    lines = [json.loads(line) for line in (of_devices / EPISODES).read_text().splitlines()]
    assert [line["profile"] for line in lines] == devices * (GRID + 4)
    wrong = [line for line in lines if line["costs"]["latency_ms"] > line["budgets"]["latency_ms"]]
    assert wrong == []
    assert {line["searcher"] for line in lines[: 2 * GRID]} == {"knapsack"}
    highest = [max(line["budgets"]["latency_ms"] for line in lines if line["profile"] == name) for name in devices]
    assert highest[1] > 2 * highest[0]


def test_an_agent_of_several_devices_answers_for_each_and_for_no_other(
    of_devices: Path, devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("audition.judge", "curves.measure_block"):  # nothing is judged beside confirmation
        monkeypatch.setattr(f"amc.search.allocation.{name}", None)
    answers = [
        amc.policy(of_devices, {"latency": 0.7}, profile=name, out=tmp_path / Path(name).stem, progress=False).record
        for name in devices
    ]
    for answer in answers:
        assert answer["found"]["costs"]["latency_ms"] <= answer["budgets"]["latency_ms"]
    assert answers[1]["budgets"]["latency_ms"] > 2 * answers[0]["budgets"]["latency_ms"]
    with pytest.raises(ValueError, match="profile must be one of"):
        asking(of_devices, {"latency": 0.7}, 0, "another")


@pytest.mark.slow
def test_a_stopped_search_for_several_devices_ends_as_one_left_alone(
    of_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_round(8, RunFolder.reopen(of_devices).config(), tmp_path / "stopped", monkeypatch)
    resume_run(tmp_path / "stopped", 0, NoScreen())
    assert equal(of_devices, tmp_path / "stopped")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"constraint": {"macs": "0.3:0.7"}, "profiles": ["a", "b"]}, "needs a range of latencies"),
        ({"constraint": {"latency": 0.5}, "profiles": ["a", "b"]}, "needs a range of latencies"),
        ({"constraint": {"latency": "0.4:0.8"}, "profiles": ["a"]}, "use profile for one"),
        ({"constraint": {"latency": "0.4:0.8"}, "profiles": ["a", "b"], "profile": "c"}, "must be one of profiles"),
    ],
)
def test_several_devices_need_a_range_of_latencies_and_names(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(None, {"task": "digits", **values})
