"""A search that was stopped, by whatever means and however often, ends as if it had been left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from rich.console import Console

from amc.cli.commands import run_resume
from amc.config.search import SearchConfig, load_config
from amc.runs import folder as folder_module
from amc.runs.events import Events
from amc.runs.folder import CONFIG, EPISODES, RESULT, SNAPSHOT, TIMINGS, RunFolder
from amc.runs.runner import Ended, NoScreen, Run, new_run, resume_run, run_on

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

OWNERS: dict[str, Any] = {
    "round": RunFolder,
    "finish": RunFolder,
    "append_text": folder_module,
    "write_snapshot": folder_module,
    "write": Events,
}
"""What a run folder does -> where it is done."""


class Killed(BaseException):
    """Stands for a signal: nothing in the search may catch it."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def without_pictures_and_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    without_extras(monkeypatch)


def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.runs.runner.write_report", lambda path, _: path.touch())
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})


def config(agent: str, **changes: object) -> SearchConfig:
    return SearchConfig(**{**SETTINGS, "agent": agent, **changes})


def equal(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in SAME)


def learned(folder: Path) -> dict[str, bytes]:
    snapshot = RunFolder(folder).snapshot()
    assert snapshot is not None
    return {name: array.tobytes() for name, array in snapshot.searcher.arrays.items()}


@pytest.fixture(scope="module")
def left_alone() -> Iterator[Callable[[str], Path]]:
    """Makes runs of an agent that were left alone, each once."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", f"{folder}/cache")
        without_extras(patch)

        @cache
        def make(agent: str) -> Path:
            new_run(config(agent), Path(folder, agent), NoScreen())
            return Path(folder, agent)

        yield make


@pytest.fixture
def alone(left_alone: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a run that was left alone."""
    return Path(shutil.copytree(left_alone("ddpg"), tmp_path / "alone"))


def stop_at(patch: pytest.MonkeyPatch, where: str, times: int, moment: str = "before") -> None:
    """Lets what the run folder does die the n-th time: before it is done, after it, or where half is written."""
    owner = OWNERS[where]
    original, calls = getattr(owner, where), iter(range(1, 10_000))

    def deadly(*arguments: Any) -> None:
        if next(calls) != times:
            original(*arguments)
            return
        if moment == "after":
            original(*arguments)
        elif moment == "half":
            path, text = arguments
            original(path, text[: len(text) // 2])
        raise Killed

    patch.setattr(owner, where, deadly)


@pytest.mark.parametrize(
    ("where", "times", "moment"),
    [
        pytest.param("round", 1, "before", marks=pytest.mark.slow),
        ("round", 3, "before"),
        ("append_text", 1, "half"),  # of the second round's episodes
        ("append_text", 3, "after"),  # episodes without timings
        pytest.param("append_text", 4, "half", marks=pytest.mark.slow),
        ("write_snapshot", 2, "before"),  # episodes and timings behind the snapshot
        pytest.param("write_snapshot", 2, "after", marks=pytest.mark.slow),
        pytest.param("write", 2, "before", marks=pytest.mark.slow),
        ("finish", 1, "before"),
    ],
)
def test_a_stopped_run_ends_as_one_left_alone(
    alone: Path, where: str, times: int, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, where, times, moment)
        with pytest.raises(Killed):
            new_run(config("ddpg"), tmp_path / "stopped", NoScreen())
    resume_run(tmp_path / "stopped", 0, NoScreen())
    assert equal(alone, tmp_path / "stopped")
    assert learned(alone) == learned(tmp_path / "stopped")
    clocks = (tmp_path / "stopped" / TIMINGS).read_text().splitlines()
    assert [json.loads(clock)["episode"] for clock in clocks] == list(range(8))


def test_a_run_that_another_machine_goes_on_with_keeps_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = tmp_path / "run", config("random")
    with monkeypatch.context() as patch:
        stop_at(patch, "round", 2)
        with pytest.raises(Killed):
            run_on(wanted, path, NoScreen())
    settled = load_config(path / CONFIG, {}).backend
    assert settled.name != "auto"
    monkeypatch.setattr("amc.problem.prepare.choose_backend", None)
    run_on(wanted, path, NoScreen())
    assert load_config(path / CONFIG, {}).backend == settled
    assert json.loads((path / RESULT).read_text())["episodes"] == 8


@pytest.mark.slow
def test_two_stops_in_a_row_change_nothing(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stopped"
    attempts: list[Callable[[], Run]] = [
        lambda: new_run(config("ddpg"), path, NoScreen()),
        lambda: resume_run(path, 0, NoScreen()),
    ]
    for attempt in attempts:
        with monkeypatch.context() as patch:
            stop_at(patch, "round", 2)
            with pytest.raises(Killed):
                attempt()
    resume_run(tmp_path / "stopped", 0, NoScreen())
    assert equal(alone, tmp_path / "stopped")


def test_a_run_appends_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [""]
    for times in (1, 2, 3):
        with monkeypatch.context() as patch:
            stop_at(patch, "round", times + 1)
            with pytest.raises(Killed):
                new_run(config("random"), tmp_path / f"{times}", NoScreen())
        seen.append((tmp_path / f"{times}" / EPISODES).read_text())
    assert [len(text.splitlines()) for text in seen] == [0, 2, 4, 6]
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


def test_episodes_written_before_the_first_snapshot_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "write_snapshot", 1)
        with pytest.raises(Killed):
            new_run(config("random"), tmp_path / "run", NoScreen())
    assert (tmp_path / "run" / EPISODES).read_text()
    assert RunFolder.reopen(tmp_path / "run").snapshot() is None
    resume_run(tmp_path / "run", 0, NoScreen())
    assert len((tmp_path / "run" / EPISODES).read_text().splitlines()) == 8


def test_episodes_behind_the_last_snapshot_go_even_if_no_round_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "write_snapshot", 3)
        with pytest.raises(Killed):
            new_run(config("random"), tmp_path / "run", NoScreen())
    folder = RunFolder.reopen(tmp_path / "run")
    assert len((tmp_path / "run" / EPISODES).read_text().splitlines()) == 6
    folder.replace_config(folder.config().model_copy(update={"max_minutes": 1e-9}), folder.snapshot())
    assert resume_run(tmp_path / "run", 0, NoScreen()).result.episodes == 4
    for name in (EPISODES, TIMINGS):
        assert len((tmp_path / "run" / name).read_text().splitlines()) == 4


def test_more_episodes_give_what_a_longer_run_gives(alone: Path, tmp_path: Path) -> None:
    resume_run(alone, 4, NoScreen())
    new_run(config("ddpg", episodes=12), tmp_path / "longer", NoScreen())
    assert equal(alone, tmp_path / "longer")
    assert json.loads((alone / RESULT).read_text())["episodes"] == 12


def test_a_run_that_has_ended_shows_its_result_and_computes_nothing(
    left_alone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(left_alone("uniform"), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    monkeypatch.setattr("amc.runs.runner.set_up", None)
    with pytest.raises(Ended) as ended:
        resume_run(tmp_path / "run", 0, NoScreen())
    assert ended.value.result == json.loads(before[RESULT])
    with open(tmp_path / "screen", "w") as file:
        run_resume(tmp_path / "run", 0, Console(file=file, width=120))
    assert "found" in (tmp_path / "screen").read_text()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config.toml: name the folder that"):
        resume_run(tmp_path, 0, NoScreen())


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("found", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "found" / "config.toml").touch()
    with pytest.raises(ValueError, match=r"name a run in it \(.*found\)$"):
        resume_run(tmp_path, 0, NoScreen())


def test_a_damaged_snapshot_is_refused(left_alone: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(left_alone("random"), tmp_path / "run")
    snapshot = tmp_path / "run" / SNAPSHOT
    snapshot.write_bytes(snapshot.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"snapshot.safetensors' cannot be read"):
        resume_run(tmp_path / "run", 4, NoScreen())


def test_another_configuration_is_refused(left_alone: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(left_alone("random"), tmp_path / "run")
    folder = RunFolder.reopen(tmp_path / "run")
    folder.replace_config(config("random", seed=1), folder.snapshot())
    with pytest.raises(ValueError, match="one of them has changed"):
        resume_run(tmp_path / "run", 4, NoScreen())


def test_a_run_of_one_policy_takes_no_more_episodes(left_alone: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(left_alone("uniform"), tmp_path / "run")
    with pytest.raises(ValueError, match="computes one policy"):
        resume_run(tmp_path / "run", 4, NoScreen())


def killed_at(command: list[str], folder: Path, name: str, episodes: int) -> None:
    """Kills a run as soon as a file of it, or what will become that file, is there and holds so many lines."""
    process, deadline = subprocess.Popen(command, stdout=subprocess.DEVNULL), time.monotonic() + 300
    while lines(folder, name) < episodes:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"no {episodes} lines in {name}"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def lines(folder: Path, name: str) -> int:
    """Lines of the file itself or of what is being written beside it, the larger number; -1 without any."""
    found = [-1]
    for path in folder.glob(f"*{name}*"):
        with suppress(OSError):  # renamed or removed between being seen and being read
            found.append(path.read_bytes().count(b"\n"))
    return max(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments", [((EPISODES, 2),), ((EPISODES, 4), (TIMINGS, 8)), ((TIMINGS, 4), (EPISODES, 4)), ((SNAPSHOT, 0),)]
)
def test_sigkill_at_any_moment_twice_in_a_row_changes_nothing(
    moments: tuple[tuple[str, int], ...], tmp_path: Path
) -> None:
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "killed"
    recipe.write_text(config("ddpg", episodes=24).to_toml())
    new_run(load_config(recipe, {}), tmp_path / "alone", NoScreen())
    command = [
        sys.executable,
        "-m",
        "amc.cli",
        "search",
        str(recipe),
        "--task",
        str(SETTINGS["task"]),
        "--out",
        str(folder),
    ]
    for name, episodes in moments:
        killed_at(command, folder, name, episodes)
        command = [sys.executable, "-m", "amc.cli", "resume", str(folder), "--task", str(SETTINGS["task"])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert equal(tmp_path / "alone", folder)
