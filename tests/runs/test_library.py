"""`amc.search` with a task that one has in hand: a fresh interpreter, a run that goes on, workers, ONNX."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import amc
from amc.runs.found import Result
from amc.runs.runner import NoScreen, resume_run
from amc.storage.files import read_json
from envs.importance.importance import Evidence
from envs.reward import Evaluation
from envs.units.units import Unit
from tests.tasks.small import make_task

QUICK: dict[str, Any] = {
    "budgets": {"macs": 0.5},
    "searcher": "random",
    "progress": False,
    "episodes": 4,
    "round_size": 2,
    "reward_images": 64,
    "confirm": 1,
    "compression": {"images": 64, "quick_images": 64},
    "knapsack": {"widths": 2, "images": 32},
}

SCRIPT = """
import torch
import amc.runs.ending
from torch import nn
import amc

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu().mean(dim=(2, 3)))

amc.runs.ending.latency_ms = lambda *_, **__: {}  # three seconds
torch.manual_seed(0)
x, y = torch.randn(96, 1, 8, 8), torch.randint(3, (96,))
task = amc.Task(network=Own(), example_input=x[:1], calibration=(x[:32], y[:32]), validation=(x[32:64], y[32:64]),
                test=(x[64:], y[64:]))
settings = dict(episodes=4, round_size=2, reward_images=16, confirm=1, progress=False, searcher="cmaes",
                compression={"images": 32, "quick_images": 32}, knapsack={"widths": 2, "images": 32})
reward = lambda evaluation: -evaluation.output_error
result = amc.search(task, budgets={"macs": 0.5}, out="run", workers=WORKERS, reward=reward, **settings)
assert result.reports["found"].costs["macs"] <= 0.5 * result.reports["dense"].costs["macs"]
result.policy.save("policy.json")
amc.export_onnx(result.network, "small.onnx", task)
result.show()
"""


@pytest.fixture(autouse=True, scope="module")
def bare_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without pictures and latency, and with a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("amc.runs.runner.write_report", lambda path, _: path.touch())
        patch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})
        yield


@pytest.fixture(scope="module")
def found(bare_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A search whose run is kept."""
    result: Result = amc.search(make_task(), out=tmp_path_factory.mktemp("found") / "run", **QUICK)
    return result


@pytest.fixture
def run(found: Result, tmp_path: Path) -> Path:
    """A copy of the folder of a search."""
    assert found.folder is not None
    return Path(shutil.copytree(found.folder, tmp_path / "run"))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_network_defined_in_the_script_is_searched(workers: int, tmp_path: Path) -> None:
    code = SCRIPT.replace("WORKERS", str(workers))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "found" in ended.stdout
    assert read_json(tmp_path / "policy.json", "a policy")["units"]
    assert (tmp_path / "small.onnx").stat().st_size > 0
    assert (tmp_path / "run" / "report.html").exists()


def test_the_same_call_goes_on_with_a_run(found: Result, run: Path, tmp_path: Path) -> None:
    task = make_task()
    whole = amc.search(task, out=tmp_path / "whole", **QUICK | {"episodes": 8})
    assert found.record["episodes"] == 4
    longer = amc.search(task, out=run, **QUICK | {"episodes": 8})
    assert (run / "episodes.jsonl").read_bytes() == (tmp_path / "whole" / "episodes.jsonl").read_bytes()
    assert longer.reports["found"].accuracy == whole.reports["found"].accuracy


def test_a_run_of_an_object_says_what_resuming_it_needs(run: Path) -> None:
    with pytest.raises(ValueError, match="run the script that made them again"):
        resume_run(run, 4, NoScreen())


def test_nothing_is_kept_without_a_folder_and_a_reward_of_ones_own_is_used() -> None:
    seen: list[Evaluation] = []

    def reward(evaluation: Evaluation) -> float:
        seen.append(evaluation)
        return evaluation.accuracy

    result = amc.search(make_task(), reward=reward, **QUICK)
    assert seen
    assert result.folder is None
    assert "found" in result._repr_html_()
    assert isinstance(result.network(torch.zeros(1, 1, 16, 16)), torch.Tensor)


def test_an_inspection_says_and_shows_what_can_be_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    found = amc.inspect(make_task(), rules={"round_to": 2})
    assert found.units
    assert {cost.name for cost in found.costs} >= {"macs", "params"}
    found.show()
    assert found.units[0].name in capsys.readouterr().out
    assert found.units[0].name in found._repr_html_()
    with pytest.raises(ValueError, match="round"):
        amc.inspect(make_task(), rules={"round_too": 2})


def test_what_was_found_is_written_without_naming_its_task(found: Result, tmp_path: Path) -> None:
    amc.save_program(found, tmp_path / "small.pt2")
    assert amc.export_onnx(found, tmp_path / "small.onnx") < 1e-4
    example = found.task.example_input
    assert isinstance(example, torch.Tensor)
    x = torch.randn(3, *example.shape[1:])
    with torch.no_grad():
        got = torch.export.load(tmp_path / "small.pt2").module()(x)
        assert torch.allclose(got, found.network(x), atol=1e-5)
    with pytest.raises(ValueError, match="written with its task, but got none"):
        amc.save_program(found.network, tmp_path / "other.pt2")


def test_public_names_are_few_sorted_and_there() -> None:
    assert amc.__all__ == sorted(amc.__all__)
    assert all(getattr(amc, name) is not None for name in amc.__all__)
    with pytest.raises(AttributeError, match=r"it has .*Result, Task"):
        amc.nothing  # noqa: B018


def test_a_run_that_has_ended_is_read_and_not_confirmed_again(
    found: Result, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.runs.runner.search", None)
    task = make_task()
    for again in (
        amc.search(task, out=run, **QUICK),
        amc.resume(run, task=task, progress=False),
    ):
        assert again.record["episodes"] == 4
        assert again.reports["found"].costs == found.reports["found"].costs
        assert set(again.networks) == {"dense", "found"}
        x = torch.randn(2, 1, 16, 16)
        torch.testing.assert_close(again.network(x), found.network(x))
        assert "found" in again._repr_html_()


def test_resume_goes_on_with_the_objects_of_the_run(found: Result, run: Path) -> None:
    with pytest.raises(ValueError, match=r"needs objects that no file can hold: task \(small\): run the script"):
        amc.resume(run, 4, progress=False)
    longer = amc.resume(run, 4, task=make_task(), progress=False)
    assert longer.record["episodes"] == 8


def test_a_policy_is_applied_to_an_object(found: Result, run: Path) -> None:
    small = amc.apply(run, make_task())
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(small(x), found.network(x))
    with pytest.raises(ValueError, match=r"task \(small\)"):
        amc.apply(found.policy)


def test_a_policy_is_saved_as_it_is_read(found: Result, tmp_path: Path) -> None:
    found.policy.save(tmp_path / "policy.json")
    assert json.loads((tmp_path / "policy.json").read_text()) == found.policy.to_json()


def test_a_run_goes_on_with_its_own_search_only(tmp_path: Path) -> None:
    task = make_task()
    amc.search(task, out=tmp_path / "run", reward=lambda e: e.accuracy, **QUICK)
    with pytest.raises(ValueError, match=r"one of them has changed"):
        amc.search(task, out=tmp_path / "run", reward=lambda e: e.accuracy / 2, **QUICK)
    with pytest.raises(ValueError, match=r"goes on with its own configuration, but .* seed is 0, not 1"):
        amc.search(task, out=tmp_path / "run", reward=lambda e: e.accuracy, seed=1, **QUICK)


def test_a_run_knows_its_objects_again_by_what_they_do(tmp_path: Path) -> None:
    def first(unit: Unit, evidence: Evidence) -> torch.Tensor:
        return torch.arange(unit.channels)

    def last(unit: Unit, evidence: Evidence) -> torch.Tensor:
        return -torch.arange(unit.channels)

    first.__name__ = last.__name__ = "mine"
    task = make_task()
    amc.search(task, out=tmp_path / "run", importance=first, **QUICK)
    with pytest.raises(ValueError, match=r"objects that it began with, but one of them has changed"):
        amc.search(task, out=tmp_path / "run", importance=last, **QUICK | {"episodes": 6})
