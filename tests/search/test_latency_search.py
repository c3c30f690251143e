"""A search under a latency budget, by the command line: measured here, kept exactly, shown in result and report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from amc.cli.main import main
from amc.config.search import load_config
from amc.problem.setup import set_up
from amc.profiling.measure import measure_profile
from amc.profiling.runtimes.onnxruntime import OnnxRuntime
from amc.profiling.setting import Setting
from amc.profiling.store import read_profile
from amc.tasks.task import load_task
from envs.reward import Evaluation
from envs.units.anatomy import dissect
from hw_profiles.bench.measure import MeasureOptions

pytestmark = pytest.mark.xdist_group("latency")  # one process measures the profile that its tests share
QUICK = [
    *("--task", "digits", "--agent", "knapsack", "--set", "compression.images=64"),
    *("--set", "compression.positions=8", "--set", "knapsack.images=32", "--set", "knapsack.widths=3"),
    *("--set", 'knapsack.damages=["logits"]'),
]


def amc(*arguments: object) -> int:
    before, sys.argv = sys.argv, ["amc", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coarse profile of this machine for the digits network."""
    path, task = tmp_path_factory.mktemp("profiles") / "here.json", load_task("digits")
    anatomy = dissect(task.network, task.example_input)
    options = MeasureOptions(knots=2, max_rounds=0, confidence=1.0, max_blocks=7, again_minutes=0, keep_disturbed=True)
    measure_profile(anatomy, Setting(), options, path, lambda what, done, total: None)
    return path


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_a_fraction_of_the_dense_latency_is_kept_beside_another_budget(profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    budgets = ("--constraint", "latency=0.85", "--constraint", "params=0.6", "--profile", profile)
    assert amc("search", *QUICK, *budgets, "--out", out) == 0
    result = json.loads((out / "result.json").read_text())
    dense, found = result["dense"]["costs"], result["found"]["costs"]
    assert result["budgets"]["latency_ms"] == pytest.approx(0.85 * dense["latency_ms"])
    assert found["latency_ms"] <= result["budgets"]["latency_ms"]
    assert found["params"] <= result["budgets"]["params"]
    layers = result["measured"]["layers"]["found"]
    predicted = [layer["predicted_ms"] for layer in layers]  # a coarse profile may find the smallest to take nothing
    assert min(predicted) >= 0 < sum(predicted)
    measured = [layer["measured_ms"] for layer in layers]  # whole microseconds: small layers may have none
    assert min(measured) >= 0 < sum(measured)
    report = (out / "report.html").read_text()
    assert "Latency, predicted and measured" in report
    assert layers[0]["layer"] in report


def test_milliseconds_are_absolute_and_the_reward_knows_the_budget(profile: Path) -> None:
    values = {"task": "digits", "profile": str(profile), "reward": "accuracy_latency"}
    fraction = set_up(load_config(None, {**values, "constraint": {"latency": 0.85}}))
    limit = fraction.constraint.limits()["latency_ms"]
    setup = set_up(load_config(None, {**values, "constraint": {"latency_ms": limit}}))
    assert setup.constraint.limits() == {"latency_ms": limit}
    evaluation = Evaluation(metric=0.8, loss=None, costs={"latency_ms": limit / 2}, images=1, image_forwards=0)
    assert setup.reward(evaluation) == pytest.approx(0.8 * 2**0.07)
    assert "latency_ms" in setup.real_costs(setup.task.network)


@pytest.mark.parametrize(
    ("values", "law"),
    [
        ({"constraint": {"latency": 0.5}}, "needs a profile"),
        ({"constraint": {"latency": 1.5}, "profile": "x"}, "write latency_ms"),
        ({"constraint": {"latency": 0.5, "latency_ms": 1.0}, "profile": "x"}, "keep latency or latency_ms"),
        ({"reward": "accuracy_latency"}, "needs a latency budget"),
    ],
)
def test_a_latency_budget_that_means_nothing_is_refused(values: dict[str, object], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        load_config(None, {"task": "digits", **values})


@pytest.mark.slow
def test_a_profile_of_another_network_is_refused_with_the_command(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(profile.read_text())
    data["kernels"] = [k for k in data["kernels"] if k["kernel"]["op"] != "linear"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    assert amc("search", *QUICK, "--constraint", "latency=0.85", "--profile", other, "--out", tmp_path / "run") == 1
    assert "amc profile measure" in capsys.readouterr().err


def test_profiles_are_listed_shown_and_validated(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_PROFILES", str(profile.parent))
    assert amc("profile", "list") == 0
    assert "here" in capsys.readouterr().out
    assert amc("profile", "show", "here", "--plot", tmp_path / "here.svg") == 0
    assert (tmp_path / "here.svg").read_text().startswith("<?xml")
    assert "yardstick" in capsys.readouterr().out
    assert amc("profile", "validate", profile) == 0
    broken = tmp_path / "broken.json"
    broken.write_text(profile.read_text()[:-50])
    assert amc("profile", "validate", broken) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:")
    assert "\n" not in error


def test_a_busy_machine_is_refused_by_the_command_line_unless_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "n": 9,
        "median_ms": 1.0,
        "mean_ms": 1.0,
        "variance": 1e-9,
        "p95_ms": 1.0,
        "overhead_ms": 0.003,
        "yardstick_ms": 0.08,
        "others": 9999.0,
    }
    monkeypatch.setattr(OnnxRuntime, "time", lambda *_: dict(record))
    out = tmp_path / "busy.json"
    command = ("profile", "measure", "--task", "digits", "--coarse", "--out", out)
    assert amc(*command) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: at most 10% of the entries may be disturbed, but")
    assert "--keep-disturbed" in error
    assert "\n" not in error
    assert not out.exists()
    assert amc(*command, "--keep-disturbed", "--again-minutes", 0) == 0
    entries = len(read_profile(out).probes())
    said = f"{entries} of {entries} entries were disturbed, {entries} still are"
    assert said in capsys.readouterr().out
    assert amc("profile", "show", out) == 0
    assert f"{said}; do not trust it" in " ".join(capsys.readouterr().out.split())
