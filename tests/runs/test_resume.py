"""A search that was stopped, by whatever means and however often, ends as if it had been left alone."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from amc.config.search import SearchConfig, load_config
from amc.runs.folder import CONFIG, EPISODES, RESULT, SNAPSHOT, RunFolder
from amc.runs.runner import run_on, run_resume, run_search

SETTINGS = {
    "task": "tests.tasks.small:make_task",
    "constraint": {"macs": 0.3},
    "reward_images": 150,
    "round_size": 2,
    "episodes": 8,
    "warmup": 2,
    "confirm": 1,
    "compression": {"images": 96, "positions": 8, "quick_images": 64},
    "knapsack": {"images": 32, "widths": 3, "damages": ["kl"]},
}
SAME = ("episodes.jsonl", "policy.json", "network.safetensors", "scores.safetensors")


class Killed(BaseException):
    """Stands for a signal: nothing in the search may catch it."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def without_pictures_and_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.runs.runner.write_report", lambda *_: None)
    monkeypatch.setattr("amc.runs.runner.latency_ms", lambda *_: {})


def quiet() -> Console:
    return Console(file=io.StringIO())


def config(agent: str, **changes: object) -> SearchConfig:
    return SearchConfig(**{**SETTINGS, "agent": agent, **changes})


def equal(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in SAME)


def learned(folder: Path) -> dict[str, bytes]:
    snapshot = RunFolder(folder).snapshot()
    assert snapshot is not None
    return {name: array.tobytes() for name, array in snapshot.searcher.arrays.items()}


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A run that was left alone."""
    run_search(config("ddpg"), tmp_path / "alone", quiet())
    return tmp_path / "alone"


def stop_at(monkeypatch: pytest.MonkeyPatch, where: str, times: int) -> None:
    """Lets the given method of the run folder die the n-th time, before it has done anything."""
    original, calls = getattr(RunFolder, where), iter(range(1, 10_000))

    def deadly(*arguments: object) -> None:
        if next(calls) == times:
            raise Killed
        original(*arguments)

    monkeypatch.setattr(RunFolder, where, deadly)


@pytest.mark.parametrize(("where", "times"), [("round", 1), ("round", 3), ("_log", 2), ("finish", 1)])
def test_a_stopped_run_ends_as_one_left_alone(
    alone: Path, where: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, where, times)
        with pytest.raises(Killed):
            run_search(config("ddpg"), tmp_path / "stopped", quiet())
    run_resume(tmp_path / "stopped", 0, quiet())
    assert equal(alone, tmp_path / "stopped")
    assert learned(alone) == learned(tmp_path / "stopped")


def test_a_run_that_another_machine_goes_on_with_keeps_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = tmp_path / "run", config("random")
    with monkeypatch.context() as patch:
        stop_at(patch, "round", 2)
        with pytest.raises(Killed):
            run_on(wanted, path, quiet())
    settled = load_config(path / CONFIG, {}).backend
    assert settled.name != "auto"
    monkeypatch.setattr("amc.search.setup.choose_backend", None)
    run_on(wanted, path, quiet())
    assert load_config(path / CONFIG, {}).backend == settled
    assert json.loads((path / RESULT).read_text())["episodes"] == 8


def test_two_stops_in_a_row_change_nothing(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stopped"
    attempts = (lambda: run_search(config("ddpg"), path, quiet()), lambda: run_resume(path, 0, quiet()))
    for attempt in attempts:
        with monkeypatch.context() as patch:
            stop_at(patch, "round", 2)
            with pytest.raises(Killed):
                attempt()
    run_resume(tmp_path / "stopped", 0, quiet())
    assert equal(alone, tmp_path / "stopped")


def test_episodes_written_after_the_last_snapshot_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("amc.runs.folder.write_snapshot", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run_search(config("random"), tmp_path / "run", quiet())
    assert (tmp_path / "run" / EPISODES).read_text()
    assert RunFolder.reopen(tmp_path / "run").snapshot() is None
    run_resume(tmp_path / "run", 0, quiet())
    assert len((tmp_path / "run" / EPISODES).read_text().splitlines()) == 8


def test_more_episodes_give_what_a_longer_run_gives(alone: Path, tmp_path: Path) -> None:
    run_resume(alone, 4, quiet())
    run_search(config("ddpg", episodes=12), tmp_path / "longer", quiet())
    assert equal(alone, tmp_path / "longer")
    assert json.loads((alone / RESULT).read_text())["episodes"] == 12


def test_a_run_that_has_ended_shows_its_result_and_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_search(config("uniform"), tmp_path / "run", quiet())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    monkeypatch.setattr("amc.runs.runner.Problem", None)
    with open(tmp_path / "screen", "w") as file:
        run_resume(tmp_path / "run", 0, Console(file=file, width=120))
    assert "found" in (tmp_path / "screen").read_text()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config.toml"):
        run_resume(tmp_path, 0, quiet())


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    run_search(config("random"), tmp_path / "run", quiet())
    snapshot = tmp_path / "run" / SNAPSHOT
    snapshot.write_bytes(snapshot.read_bytes()[:40])
    with pytest.raises(ValueError, match="undamaged snapshot"):
        run_resume(tmp_path / "run", 4, quiet())


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run_search(config("random"), tmp_path / "run", quiet())
    folder = RunFolder.reopen(tmp_path / "run")
    folder.replace_config(config("random", seed=1))
    with pytest.raises(ValueError, match="one of them has changed"):
        run_resume(tmp_path / "run", 4, quiet())


def test_a_run_of_one_policy_takes_no_more_episodes(tmp_path: Path) -> None:
    run_search(config("uniform"), tmp_path / "run", quiet())
    with pytest.raises(ValueError, match="computes one policy"):
        run_resume(tmp_path / "run", 4, quiet())


def killed_at(command: list[str], folder: Path, episodes: int, later: float) -> None:
    """Kills a run some time after it has written so many episodes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = folder / EPISODES
    while not path.exists() or len(path.read_text().splitlines()) < episodes:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("moments", [((0, 0.3),), ((2, 0.02), (6, 0.1)), ((4, 0.0), (4, 0.05))])
def test_sigkill_at_any_moment_twice_in_a_row_changes_nothing(
    moments: tuple[tuple[int, float], ...], tmp_path: Path
) -> None:
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "killed"
    recipe.write_text(config("ddpg", episodes=24).to_toml())
    run_search(load_config(recipe, {}), tmp_path / "alone", quiet())
    command = [sys.executable, "-m", "amc.cli.main", "search", str(recipe), "--out", str(folder)]
    for episodes, later in moments:
        killed_at(command, folder, episodes, later)
        command = [sys.executable, "-m", "amc.cli.main", "resume", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert equal(tmp_path / "alone", folder)
