"""The bundle: what runs on a device is really run, in a process that knows nothing of us."""

from __future__ import annotations

import ast
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

from amc.profile_import import import_profile, read_measured
from amc.profiles import user_folder
from hw_profiles import device_script
from hw_profiles.bundle import FORMAT_CHANNELS, KNOWN_FORMATS, format_probe, write_bundle
from hw_profiles.graphs import Probe, sink
from hw_profiles.kernels import Formats, Kernel

MAP = (8, 8)
CONV = Kernel(op="conv", activation="relu", kernel=(3, 3), stride=(1, 1), in_map=MAP, out_map=MAP)
LINEAR = Kernel(op="linear")


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
    done = run_bundle(folder, "--threads", "1", "--out", "measured.json")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 measured" in done.stderr
    assert not (folder / "measured.json.partial").exists()
    return folder / "measured.json"


def test_the_script_imports_only_python_numpy_and_onnxruntime() -> None:
    tree = ast.parse(Path(device_script.__file__).read_text())
    names = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - sys.stdlib_module_names == {"numpy", "onnxruntime"}


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
    process = subprocess.Popen([sys.executable, "-I", "bundle.zip"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    partial = tmp_path / "measured.json.partial"
    while process.poll() is None and not (partial.exists() and len(partial.read_text().splitlines()) >= 2):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.wait()
    if not partial.exists():
        pytest.skip("it was done before it could be stopped")
    before = partial.read_text().splitlines()
    assert run_bundle(tmp_path).returncode == 0
    kept = json.loads((tmp_path / "measured.json").read_text())["entries"][0]
    first = json.loads(before[1])
    assert kept["n"] == first["n"] or kept["median_ms"] != first["median_ms"]  # timed again only if disturbed


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
    assert run_bundle(tmp_path, python=python).returncode == 0
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert "__main__.py" in archive.namelist()
    assert len(read_measured(tmp_path / "measured.json").probes()) == 4
