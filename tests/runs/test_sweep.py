"""A sweep ends in the same front however often it was stopped; the front itself, on results made up."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig, load_config
from amc.export.applied import POLICY, WEIGHTS
from amc.runs.folder import REPORT
from amc.runs.studies.findings import Sweep
from amc.runs.studies.pareto import DATA, PAGE, PICTURE, gather, on_front, write_front
from amc.runs.studies.shared import run_shared
from amc.runs.studies.sweep import RUNS, Grid, Say, claim, run_sweep, run_sweeps, run_trial
from amc.runs.studies.tuning import parse_range, run_tuning, samples
from amc.storage.files import UNFINISHED
from amc.storage.locks import LOCK

pytestmark = pytest.mark.xdist_group("ray")

SETTINGS: dict[str, Any] = {
    "task": "digits",
    "agent": "knapsack",
    "reward_images": 100,
    "confirm": 1,
    "episodes": 6,
    "round_size": 2,
    "compression": {"images": 48, "positions": 4},
    "knapsack": {"images": 32, "widths": 3, "damages": ["kl"]},
}
FILES = (PAGE, DATA, PICTURE)


def quiet(text: str) -> None:
    """Says nothing."""


def result(validation: float, test: float, **costs: float) -> dict[str, Any]:
    return {"found": {"accuracy": {"validation": validation, "test": test}, "costs": costs}}


def written(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / POLICY).write_text(name)
    (folder / name / WEIGHTS).write_bytes(b"")
    return folder / name


def test_a_point_takes_the_largest_cost_and_the_best_seed_on_validation(tmp_path: Path) -> None:
    runs = [(tmp_path / "0", result(0.8, 0.9, macs=10.0)), (tmp_path / "1", result(0.9, 0.7, macs=9.0))]
    one = gather("ddpg", 0.5, runs)
    assert one.best == tmp_path / "1"
    assert one.costs == {"macs": 10.0}
    assert one.validation.mean == pytest.approx(0.85)
    assert one.test.mean == pytest.approx(0.8)


def test_the_front_holds_what_nothing_beats() -> None:
    points = [("a", 0.9, 10.0), ("b", 0.8, 10.0), ("c", 0.8, 5.0), ("d", 0.9, 10.0), ("e", 0.7, 6.0)]
    outcomes = [gather(name, 0.5, [(Path(), result(value, 0.5, macs=cost))]) for name, value, cost in points]
    assert on_front(outcomes, "macs") == [True, False, True, True, False]


def test_the_front_is_written_as_table_data_picture_and_policies(tmp_path: Path) -> None:
    dense = {"accuracy": {"validation": 0.99, "test": 0.98}, "costs": {"macs": 20.0, "params": 4.0}}
    outcomes = [
        gather(
            agent,
            budget,
            [(written(tmp_path, f"{agent}-{budget}"), result(value, value, macs=20 * budget, params=1.0))],
        )
        for agent, budget, value in (("ddpg", 0.5, 0.9), ("ddpg", 0.3, 0.8), ("random", 0.5, 0.7))
    ]
    table = write_front(tmp_path, outcomes, dense, "made up")
    assert "| 0.5 | ddpg | 1 | 90.00 | 90.00 | 10 * | 1 * |" in table
    assert "| 0.5 | random | 1 | 70.00 | 70.00 | 10 | 1 |" in table
    rows = list(csv.DictReader((tmp_path / DATA).read_text().splitlines()))
    assert [(row["agent"], row["budget"], row["macs_front"]) for row in rows] == [
        ("ddpg", "0.3", "1"),
        ("ddpg", "0.5", "1"),
        ("random", "0.5", "0"),
    ]
    assert (tmp_path / rows[0]["policy"]).read_text() == "ddpg-0.3"
    assert (tmp_path / PICTURE).read_text().startswith("<svg")


def test_every_combination_is_searched_once() -> None:
    trials = Grid(budgets=(0.3, 0.5, 0.3), agents=("ddpg", "random"), seeds=2).trials(SearchConfig(**SETTINGS))
    assert len(trials) == 8
    one = trials["random", 0.3, 1]
    assert (one.name, one.config.agent, one.config.seed, one.config.constraint) == (
        "random-0.3-1",
        "random",
        1,
        {"macs": 0.3},
    )


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, SearchConfig(**SETTINGS))
    claim(tmp_path, SearchConfig(**SETTINGS))
    with pytest.raises(ValueError, match="is another one"):
        claim(tmp_path, SearchConfig(**{**SETTINGS, "episodes": 7}))


def test_every_profile_gets_a_sweep_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[tuple[str | None, Path]] = []

    def noted(config: SearchConfig, grid: Grid, out: Path, say: Say, workers: WorkersConfig) -> Sweep:
        swept.append((config.profile, out))
        return Sweep(outcomes=(), table="", folder=out, page=out / PAGE)

    monkeypatch.setattr("amc.runs.studies.sweep.run_sweep", noted)
    config = SearchConfig(**{**SETTINGS, "constraint": {"latency": 0.6}, "profile": "phone"})
    grid = Grid(budgets=(0.6,), agents=("knapsack",), seeds=1)
    run_sweeps(config, grid, ["phone", "folder/board.json"], tmp_path, quiet, WorkersConfig())
    profiles, folders = zip(*swept, strict=True)
    assert folders == (tmp_path / "phone", tmp_path / "board")
    assert profiles[0] == "phone"
    assert str(profiles[1]).endswith("folder/board.json")
    with pytest.raises(ValueError, match="different names"):
        run_sweeps(config, grid, ["phone", "folder/phone.json"], tmp_path, quiet, WorkersConfig())


def test_a_search_that_has_ended_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.runs.studies.sweep.ended", lambda out, trial: trial.name == "ended")
    monkeypatch.setattr("amc.runs.studies.sweep.run_on", None)
    settings = {"out": str(tmp_path), "home": os.getcwd(), "workers": WorkersConfig().model_dump()}
    config = SearchConfig(**SETTINGS).model_dump(mode="json", exclude_none=True)
    monkeypatch.setenv("AMC_THREADS", "1")
    run_trial({"settings": settings, "trial": {"name": "ended", "config": config}})


def test_ranges_are_read_and_drawn() -> None:
    even, decades, some = (parse_range(text) for text in ("a=0.1..0.3", "b=1e-4..1e-2", 'c=1,2.5,"x"'))
    assert (even.draw(0.5), decades.draw(0.5), some.draw(0.9)) == (0.2, 0.001, "x")
    for text in ("a", "a=3..1", "=1,2", "a=x..y"):
        with pytest.raises(ValueError, match="KEY=LOW"):
            parse_range(text)


def test_the_first_sample_is_the_configuration_and_the_others_are_drawn_by_its_seed() -> None:
    config = SearchConfig(**{**SETTINGS, "agent": "ddpg"})
    ranges = [parse_range("learning.sigma=0.05..0.3"), parse_range("warmup=2,4")]
    found, again = samples(config, ranges, 4), samples(config, ranges, 4)
    assert found == again
    assert found[0][0].config == config
    assert all(trial.config.learning.sigma == drawn["learning.sigma"] for trial, drawn in found[1:])
    assert {trial.config.warmup for trial, _ in found[1:]} <= {2, 4}


def test_a_learning_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a known one, but got 'learning\.sigmoid'"):
        load_config(None, {**SETTINGS, "learning.sigmoid": 1})
    with pytest.raises(ValueError, match="sigma"):
        load_config(None, {**SETTINGS, "learning.sigma": -1.0})


@pytest.mark.slow
def test_tuning_ends_in_a_recipe_that_can_be_searched(
    own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    config = SearchConfig(**{**SETTINGS, "agent": "ddpg", "episodes": 12, "warmup": 2})
    ranges = [parse_range("learning.sigma=0.05..0.3")]
    best = run_tuning(config, ranges, 3, tmp_path / "out", quiet, WorkersConfig())
    assert load_config(best.recipe, {}) == best.config
    assert (tmp_path / "out" / "tune.md").read_text().count("| tune-") == 3
    assert run_tuning(config, ranges, 3, tmp_path / "out", quiet, WorkersConfig()).config == best.config


def sweep(out: Path, recipe: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "amc.cli",
        "sweep",
        str(recipe),
        "--budgets",
        "0.3",
        "0.4",
        "0.5",
        "--seeds",
        "2",
        "--out",
        str(out),
        *options,
    ]


def wait_for_a_search_after(ended: int, runs: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until so many searches have ended and another has played episodes."""
    deadline = time.monotonic() + 300
    while not len(list(runs.glob("*/episodes.jsonl"))) > len(list(runs.glob("*/result.json"))) >= ended:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline, f"no search after {ended}"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_sweep_killed_twice_ends_in_the_same_front(workers: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SearchConfig(**{**SETTINGS, "agent": "ddpg"}).to_toml())
    environment = {**os.environ, "AMC_CACHE": str(tmp_path / "cache")}
    subprocess.run(sweep(tmp_path / "alone", recipe), check=True, env=environment, stdout=subprocess.DEVNULL)
    command = sweep(tmp_path / "killed", recipe, "--workers", workers)
    for ended in (1, 3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        wait_for_a_search_after(ended, tmp_path / "killed" / RUNS, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    for name in FILES:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert len(os.listdir(tmp_path / "killed" / RUNS)) == 6
    places = (tmp_path / "killed" / RUNS, tmp_path / "cache")
    assert [path for place in places for path in place.rglob("*") if path.name.endswith((LOCK, UNFINISHED))] == []


@pytest.mark.slow
def test_a_sweep_on_ray_ends_in_a_front(own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    grid = Grid(budgets=(0.3, 0.5), agents=("knapsack",), seeds=1)
    swept = run_sweep(SearchConfig(**SETTINGS), grid, tmp_path / "out", quiet, WorkersConfig())
    assert [one.costs["macs"] <= 771_392 * one.budget for one in swept.outcomes] == [True, True]
    assert load_config(tmp_path / "out" / "config.toml", {}) == SearchConfig(**SETTINGS)
    report = tmp_path / "out" / RUNS / "knapsack-0.3-0" / REPORT
    text = report.read_bytes()
    report.unlink()  # as if it had been killed before it wrote that
    again = run_sweep(SearchConfig(**SETTINGS), grid, tmp_path / "out", quiet, WorkersConfig())
    assert again.outcomes == swept.outcomes
    assert report.read_bytes() == text


def test_a_shared_sweep_needs_a_range(tmp_path: Path) -> None:
    grid = Grid(budgets=(0.5,), agents=("ddpg",), seeds=1)
    with pytest.raises(ValueError, match="at least two budgets"):
        run_shared(SearchConfig(**SETTINGS), grid, tmp_path, quiet, WorkersConfig())


@pytest.mark.slow
def test_a_shared_sweep_asks_one_agent_for_every_budget(tmp_path: Path) -> None:
    config = SearchConfig(**{**SETTINGS, "episodes": 14, "warmup": 2, "learning": {"hidden": (8,)}})
    found = run_shared(config, Grid(budgets=(0.3, 0.6), agents=("ddpg",), seeds=1), tmp_path, quiet, WorkersConfig())
    assert [outcome.budget for outcome in found.outcomes] == [0.3, 0.6]
    assert {path.name for path in (tmp_path / RUNS).iterdir()} == {"ddpg-range-0", "ddpg-0.3-0", "ddpg-0.6-0"}
    asked = load_config(tmp_path / RUNS / "ddpg-0.3-0" / "config.toml", {})
    assert asked.agent_from == (tmp_path / RUNS / "ddpg-range-0").absolute()
