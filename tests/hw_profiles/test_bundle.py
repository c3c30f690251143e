"""The bundle: what runs on a device is really run, in a process that knows nothing of us."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from amc.profiling.importing import import_profile, read_measured
from amc.profiling.store import user_folder
from hw_profiles import rounds
from hw_profiles.bench import device_script
from hw_profiles.bench.bundle import FORMAT_CHANNELS, KNOWN_FORMATS, TRAVELLING, format_probe, write_bundle
from hw_profiles.latency.graphs import Probe, sink
from hw_profiles.latency.kernels import Formats, Kernel

MAP = (8, 8)
CONV = Kernel(op="conv", activation="relu", kernel=(3, 3), stride=(1, 1), in_map=MAP, out_map=MAP)
LINEAR = Kernel(op="linear")
ANYHOW = ("--keep-disturbed", "--again-minutes", "0")
"""Machines that run tests are busy."""


def small_bundle() -> bytes:
    """Four entries; whatever the device's formats are, the plan is the same."""
    plan = [sink(MAP, 16, "plain"), Probe(CONV, 17, 16), Probe(LINEAR, 8, 4), Probe(LINEAR, 16, 4)]
    return write_bundle(dict.fromkeys(KNOWN_FORMATS, plan), batch=1, dtype="fp32")


def run_bundle(folder: Path, *options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """As on a device: isolated, so that neither this repository nor its environment is on the path."""
    command = [python, "-I", "bundle.zip", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a device wrote."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "bundle.zip").write_bytes(small_bundle())
    done = run_bundle(folder, *ANYHOW, "--threads", "1", "--out", "measured.json")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 measured" in done.stderr
    assert not (folder / "measured.json.partial").exists()
    return folder / "measured.json"


def test_the_script_imports_only_python_numpy_and_onnxruntime() -> None:
    names = set()
    for file in (device_script.__file__, *TRAVELLING.values()):
        for node in ast.walk(ast.parse(Path(file).read_text())):
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
    assert names - sys.stdlib_module_names - {"collections.abc"} == {
        "numpy",
        "onnxruntime",
        *(f"hw_profiles.{name}" for name in TRAVELLING),
    }
    with zipfile.ZipFile(io.BytesIO(small_bundle())) as archive:
        assert {f"hw_profiles/{name}.py" for name in TRAVELLING} <= set(archive.namelist())


def test_what_the_device_wrote_becomes_a_profile(measured: Path) -> None:
    profile = read_measured(measured)
    entries = profile.probes()
    assert len(entries) == 4
    assert 0 < entries[Probe(LINEAR, 16, 4)].median_ms < 10
    assert profile.threads == 1
    assert profile.sessions[0].yardstick_ms > 0


def test_an_import_has_a_name_and_does_not_replace_another(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path, entries = import_profile(measured, "board")
    assert (path, entries) == (user_folder() / "board.json", 4)
    with pytest.raises(ValueError, match=r"must be free, but 'board'.*--replace"):
        import_profile(measured, "board")
    assert import_profile(measured, "board", replace=True)[0] == path
    with pytest.raises(ValueError, match="must be letters, digits"):
        import_profile(measured, "../board")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d["entries"][1].update(median_ms=-1.0), "must not be negative"),
        (lambda d: d["entries"].append(d["entries"][1]), "stands twice"),
        (lambda d: d["entries"][1].update(n="nine"), "n"),
        (lambda d: d.update(schema_version=7), "schema_version"),
        (lambda d: d.pop("device"), "device"),
        (lambda d: d.update(threads=2), "cores_used"),
    ],
    ids=["negative", "twice", "no number", "schema", "no device", "threads"],
)
def test_a_broken_result_is_refused_in_one_line(measured: Path, tmp_path: Path, change: Any, complaint: str) -> None:
    data = json.loads(measured.read_text())
    change(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=complaint) as caught:
        read_measured(path)
    assert "\n" not in str(caught.value)


def test_an_interrupted_device_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(small_bundle())
    command = [sys.executable, "-I", "bundle.zip", *ANYHOW]  # no second pass, which would time the first entry anew
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    partial = tmp_path / "measured.json.partial"
    while process.poll() is None and not (partial.exists() and len(partial.read_text().splitlines()) >= 2):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.wait()
    if not partial.exists():
        pytest.skip("it was done before it could be stopped")
    before = partial.read_text().splitlines()
    assert run_bundle(tmp_path, *ANYHOW).returncode == 0
    kept = json.loads((tmp_path / "measured.json").read_text())["entries"][0]
    assert kept["median_ms"] == json.loads(before[1])["median_ms"]


class Steady:
    """A graph whose runs always take the same."""

    def __init__(self, seconds: float) -> None:
        self.takes = seconds

    def seconds(self, runs: int) -> float:
        return self.takes


def test_an_entry_knows_how_many_programs_ran_beside_it() -> None:
    beside = iter([0.0, 3.0, 9.0, 3.0, 9.0, 3.0, None])
    found = rounds.measure(Steady(1e-3), Steady(4e-3), 4, Steady(2e-3), 0.01, 7, others=lambda: next(beside))
    assert found["median_ms"] == pytest.approx(1.0)
    assert found["yardstick_ms"] == pytest.approx(2.0)
    assert (found["n"], found["others"]) == (7, 3.0)


@pytest.mark.skipif(rounds.others_ready() is None, reason="this system does not tell")
def test_a_program_that_computes_is_seen() -> None:
    code = "print('ready', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = [rounds.others_ready() for _ in range(9)]
        process.kill()
    assert all(count is not None and count >= 1 for count in seen)


# Disturbed entries, with made-up times: the entry at index 1 is disturbed as often as is said.


class Timer:
    """Times nothing: quiet records, but for one entry that is disturbed the first few times."""

    def __init__(self, disturbed: int, stop_after: int | None = None) -> None:
        self.disturbed, self.stop_after, self.calls = disturbed, stop_after, list[int]()

    def __call__(self, one: Any, many: Any, copies: int, yardstick: Any, confidence: float, most: int) -> Any:
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        bad = len(self.calls) == 1 or len(self.calls) >= 4  # the second entry, and whatever is timed again
        self.calls.append(copies)
        others = 9999.0 if bad and self.disturbed > 0 else 0.0
        self.disturbed -= bad
        return {
            "n": 9,
            "median_ms": 1.0 + len(self.calls),
            "mean_ms": 1.0,
            "variance": 1e-9,
            "p95_ms": 1.0,
            "overhead_ms": 0.003,
            "yardstick_ms": 0.08,
            "others": others,
        }


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The bundle, unpacked."""
    with zipfile.ZipFile(io.BytesIO(small_bundle())) as archive:
        archive.extractall(tmp_path / "bundle")
    return tmp_path


def ran(device: Path, timer: Timer, *options: str) -> int:
    place = ("--bundle", str(device / "bundle"), "--out", str(device / "measured.json"))
    return device_script.main([*place, *options], timer)


def test_a_disturbed_entry_is_timed_again_with_progress(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timer = Timer(disturbed=1)
    assert ran(device, timer) == 0
    said = capsys.readouterr().err
    assert "4 of 4 measured" in said
    assert "1 of 1 disturbed ones timed again,  0.0 minutes left" in said
    assert "1 of 4 entries were disturbed, 0 still are" in said
    assert len(timer.calls) == 5
    data = json.loads((device / "measured.json").read_text())
    assert data["entries"][1]["median_ms"] == 6.0  # the better record
    assert data["disturbed"] == {"entries": 4, "at_first": 1, "left": 0}
    assert not (device / "measured.json.partial").exists()


def test_what_stays_disturbed_is_refused_in_one_line_and_kept_only_when_told_to(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(device, Timer(disturbed=99)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: at most 10% of the entries may be disturbed, but 1 of 4 are:")
    assert "--keep-disturbed" in said
    assert not (device / "measured.json").exists()
    quiet = Timer(disturbed=0)
    assert ran(device, quiet) == 0  # what was measured is remembered: only the disturbed entry is timed again
    assert len(quiet.calls) == 1


def test_a_profile_records_how_disturbed_it_is(device: Path) -> None:
    assert ran(device, Timer(disturbed=99), "--keep-disturbed") == 0
    found = read_measured(device / "measured.json").sessions[0].disturbed
    assert found is not None
    assert (found.entries, found.at_first, found.left, found.trusted) == (4, 1, 1, False)


def test_a_second_pass_that_is_stopped_goes_on(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(device, Timer(disturbed=2, stop_after=5)) == 130
    partial = (device / "measured.json.partial").read_text().splitlines()
    assert [json.loads(line).get("again") for line in partial] == [None] * 5 + [1]
    assert "holds what was measured" in capsys.readouterr().err
    timer = Timer(disturbed=0)
    assert ran(device, timer) == 0
    assert len(timer.calls) == 1


def test_no_time_for_a_second_pass_means_none(device: Path) -> None:
    timer = Timer(disturbed=99)
    assert ran(device, timer, "--again-minutes", "0", "--keep-disturbed") == 0
    assert len(timer.calls) == 4


def test_equal_bundles_are_equal_files() -> None:
    assert small_bundle() == small_bundle()


def test_the_formats_are_told_from_what_the_runtime_executes() -> None:
    found = Formats(**device_script.detect_formats({c: format_probe(c) for c in FORMAT_CHANNELS}))
    assert found in KNOWN_FORMATS


@pytest.mark.slow
def test_the_bundle_runs_in_a_fresh_environment(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"], check=True, env=dict(os.environ))
    (tmp_path / "bundle.zip").write_bytes(small_bundle())
    assert run_bundle(tmp_path, *ANYHOW, python=python).returncode == 0
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert "__main__.py" in archive.namelist()
    assert len(read_measured(tmp_path / "measured.json").probes()) == 4
