"""What a run folder holds is what the run wrote: altered files are refused, missing ones written again, one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from amc.config.search import load_config
from amc.runs.folder import CONFIG, EPISODES, EVENTS, PREVIOUS, REPORT, RESULT, SCORES, SNAPSHOT, TIMINGS
from amc.runs.runner import Ended, NoScreen, Run, new_run, resume_run, run_on
from amc.storage.files import UNFINISHED, append_text, write_bytes
from amc.storage.locks import LOCK, held

SETTINGS: dict[str, Any] = {
    "task": "tests.tasks.small:make_task",
    "agent": "random",
    "constraint": {"macs": 0.5},
    "reward_images": 64,
    "confirm": 1,
    "episodes": 6,
    "round_size": 2,
    "compression": {"images": 64, "quick_images": 64, "importance": "l1", "repair": "none"},
    "backend": {"name": "fp32"},
}
POLICY, WEIGHTS = "policy.json", "network.safetensors"
HOLDER = """
import sys, time
from pathlib import Path
from amc.storage.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def original() -> Iterator[Path]:
    """A run that has ended, its report included."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", f"{folder}/cache")
        patch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})
        new_run(load_config(None, SETTINGS), Path(folder, "run"), NoScreen())
        yield Path(folder, "run")


@pytest.fixture
def run(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untimed: None) -> Path:
    """A copy of it."""
    monkeypatch.setenv("AMC_CACHE", str(original.parent / "cache"))
    return Path(shutil.copytree(original, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def resumed(run: Path) -> tuple[str, ...]:
    with pytest.raises(Ended) as ended:
        resume_run(run, 0, NoScreen())
    return ended.value.written


def remove(run: Path, *names: str) -> None:
    for name in names:
        (run / name).unlink()


def test_a_missing_report_is_written_again_from_the_result_alone(
    original: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.runs.runner.prepare", None)
    remove(run, REPORT)
    shutil.rmtree(run / EVENTS)
    assert resumed(run) == (REPORT, EVENTS)
    assert files(run) == files(original)
    assert (run / EVENTS).is_dir()


def test_missing_products_are_written_again_with_the_same_bytes(
    original: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.runs.ending.latency_ms", None)  # what was measured stays
    remove(run, POLICY, WEIGHTS, SCORES)
    assert resumed(run) == (POLICY, WEIGHTS, SCORES)
    assert files(run) == files(original)
    assert resumed(run) == ()


@pytest.mark.slow
def test_an_ended_run_gets_another_result_from_other_limits_only(original: Path, run: Path) -> None:
    run_on(load_config(None, SETTINGS), run, NoScreen())
    assert files(run) == files(original)
    run_on(load_config(None, {**SETTINGS, "confirm": 2}), run, NoScreen())
    assert resumed(run) == ()
    assert (run / RESULT).read_bytes() != (original / RESULT).read_bytes()


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up."""


def killed_at(patch: pytest.MonkeyPatch, name: str) -> None:
    """Lets a process die when a file is written completely and has not got its name yet."""
    replace, unlink = os.replace, Path.unlink

    def deadly(source: str, target: Path) -> None:
        if target.name == name:
            raise Killed
        replace(source, target)

    def dead(path: Path, missing_ok: bool = False) -> None:
        if not path.name.startswith(f".{name}."):
            unlink(path, missing_ok)

    patch.setattr("amc.storage.files.os.replace", deadly)
    patch.setattr("amc.storage.files.Path.unlink", dead)


@pytest.mark.parametrize(
    "names",
    [
        (WEIGHTS, REPORT),
        pytest.param((EPISODES, TIMINGS, SNAPSHOT, POLICY, SCORES, RESULT, REPORT), marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_one_write_after_the_other_ends_in_the_same_files(
    original: Path, run: Path, names: tuple[str, ...]
) -> None:
    remove(run, POLICY, WEIGHTS, SCORES, RESULT, REPORT)
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, name)
            with pytest.raises(Killed):
                resume_run(run, 0, NoScreen())
        assert len(list(run.glob(f".{name}.*{UNFINISHED}"))) == 1
    assert resumed(run) == (REPORT,)
    for name in (EPISODES, POLICY, WEIGHTS, SCORES, CONFIG):
        assert (run / name).read_bytes() == (original / name).read_bytes()
    assert files(run).keys() == files(original).keys()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (CONFIG, b"episodes = 6", b"episodes = 7"),
        (CONFIG, b"seed = 0", b"seed = 1"),
        (EPISODES, b'"reward": ', b'"reward": 1'),
        (EPISODES, b"\n", b"\n\n"),
        (SNAPSHOT, b"image_forwards", b"image_forwardz"),
        (SNAPSHOT, b"schema_version", b"schema_vorsion"),
        (POLICY, b'"kept": ', b'"kept": 1'),
        (WEIGHTS, b"\0", b"\1"),
        (SCORES, b"\0", b"\1"),
        (RESULT, b'"validation": 0', b'"validation": 1'),
        (RESULT, b'"digests"', b'"digest"'),
    ],
)
def test_an_altered_file_is_refused_by_name(run: Path, name: str, old: bytes, new: bytes) -> None:
    data = (run / name).read_bytes()
    assert old in data
    (run / name).write_bytes(data.replace(old, new, 1))
    with pytest.raises(ValueError, match=name) as refused:
        resume_run(run, 0, NoScreen())
    assert "\n" not in str(refused.value)
    assert not (run / LOCK).exists()


def test_times_may_be_lost(run: Path) -> None:
    (run / TIMINGS).write_text("[]\n")
    assert resumed(run) == ()
    remove(run, TIMINGS)
    assert resumed(run) == ()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda run: (run / SNAPSHOT).unlink(),
    "cut": lambda run: (run / SNAPSHOT).write_bytes(b"half"),
    "its last episode": lambda run: append_text(cut(run / EPISODES), '{"episode": 5}\n'),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_last_round_is_refused_and_the_one_before_is_offered(run: Path, how: str) -> None:
    DAMAGES[how](run)
    with pytest.raises(ValueError, match=f": `amc resume {run} --previous` goes on from") as refused:
        resume_run(run, 0, NoScreen())
    assert str(run / (EPISODES if how == "its last episode" else SNAPSHOT)) in str(refused.value)


@pytest.mark.parametrize(
    "how", ["its last episode", *(pytest.param(how, marks=pytest.mark.slow) for how in ("missing", "cut"))]
)
def test_from_the_round_before_a_run_ends_in_the_same_bytes(original: Path, run: Path, how: str) -> None:
    DAMAGES[how](run)
    resume_run(run, 0, NoScreen(), previous=True)
    for name in (EPISODES, POLICY, WEIGHTS, SCORES):
        assert (run / name).read_bytes() == (original / name).read_bytes()


def cut(episodes: Path) -> Path:
    """Takes the last line away."""
    episodes.write_bytes(b"".join(episodes.read_bytes().splitlines(keepends=True)[:-1]))
    return episodes


def test_a_missing_snapshot_beside_episodes_is_refused_where_no_round_is_kept(run: Path) -> None:
    remove(run, RESULT, SNAPSHOT, PREVIOUS)
    with pytest.raises(ValueError, match=rf"{SNAPSHOT}.*start again with `amc search {run / CONFIG} --out NEW`"):
        resume_run(run, 0, NoScreen())
    with pytest.raises(ValueError, match="has none"):
        resume_run(run, 0, NoScreen(), previous=True)


def test_a_longer_search_that_is_killed_before_its_first_round_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> Run:
        raise KeyboardInterrupt

    for where in ("amc.runs.folder.write_text", "amc.runs.runner.prepare"):  # before and after the configuration
        with monkeypatch.context() as patch:
            patch.setattr(where, killed)
            with pytest.raises(KeyboardInterrupt) as stop:
                resume_run(run, 2, NoScreen())
        assert f"6 episodes are saved in {run}: `amc resume {run}` goes on" in stop.value.__notes__
    resume_run(run, 0, NoScreen())
    assert json.loads((run / RESULT).read_text())["episodes"] == 8


def test_a_folder_in_use_is_refused_until_its_holder_is_gone(run: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        attempts: list[Callable[[], Run]] = [
            lambda: resume_run(run, 0, NoScreen()),
            lambda: new_run(load_config(None, SETTINGS), run, NoScreen(), fresh=True),
        ]
        for attempt in attempts:
            with pytest.raises(ValueError, match=f"in use by process {holder.pid} on "):
                attempt()
        holder.send_signal(signal.SIGKILL)
    assert (run / LOCK).exists()
    assert resumed(run) == ()
    assert not (run / LOCK).exists()


def test_what_a_killed_process_left_half_written_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / f".{POLICY}.killed{UNFINISHED}").write_text("half")
        (tmp_path / ".mine").write_text("stays")
    write_bytes(tmp_path / POLICY, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", POLICY]
    (tmp_path / f".{RESULT}.killed{UNFINISHED}").write_text("half")

    seen: list[str] = []
    real = os.fsync

    def other_process(handle: int) -> None:
        real(handle)
        with held(tmp_path):
            seen.extend(path.name for path in tmp_path.glob(f"*{UNFINISHED}"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amc.storage.files.os.fsync", other_process)
        write_bytes(tmp_path / POLICY, b"new")
    assert len(seen) == 1
    assert seen[0].startswith(f".{POLICY}.")
    assert (tmp_path / POLICY).read_bytes() == b"new"


def test_a_disk_that_fills_up_while_events_are_written_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", full)
    shutil.rmtree(run / EVENTS)
    with pytest.raises(OSError, match=f"'{run / EVENTS}' must be written") as stop:
        resume_run(run, 0, NoScreen())
    assert stop.value.__notes__ == [f"6 episodes are saved in {run}: `amc resume {run}` goes on"]


def test_events_can_be_read_by_episode(run: Path) -> None:
    steps: dict[str, list[int]] = {}
    for event in events(run / EVENTS):
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    assert steps == {tag: [0, 1, 2, 3, 4, 5] for tag in ("reward", "best_reward", "accuracy", "costs/macs")}


def events(folder: Path) -> Iterator[Event]:
    """Reads TFRecords: length in 8 bytes, its checksum in 4, the event, its checksum in 4."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
