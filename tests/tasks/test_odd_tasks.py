"""Tasks that are no classification in fp32: they go through the same chain."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.config.search import SearchConfig, load_config
from amc.export.onnx import write_onnx
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.search.loop import search
from amc.tasks.task import Task


class Net(nn.Module):
    def __init__(self, outputs: int, squeeze: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, outputs),
        ).to(dtype)
        self.squeeze, self.dtype = squeeze, dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.to(self.dtype)).float()
        return y.squeeze(1) if self.squeeze else y


def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.exp(-(outputs - targets).reshape(len(outputs), -1).square().mean(dim=1))


class Encoder(nn.Module):
    """Embeds words, mixes them by one block of linear layers, scores the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        words = self.words(x)
        words = words + self.narrow(torch.relu(self.wide(self.norm(words))))
        logits: Tensor = self.head(words.mean(dim=1))
        return logits


def reading() -> Task:
    torch.manual_seed(0)
    x, network = torch.randint(20, (96, 6), dtype=torch.int32), Encoder().eval()
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    parts: dict[str, Any] = {
        name: (x[k : k + 32], y[k : k + 32]) for k, name in ((0, "calibration"), (32, "validation"), (64, "test"))
    }
    return Task(name="reading", network=network, example_input=x[:1].long(), **parts)


class Spectral(nn.Module):
    """Scores pixels and their spectrum, which no formula counts."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.spectrum = nn.Linear(64, 24), nn.Linear(24, 3), nn.Linear(33, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y: Tensor = self.narrow(torch.relu(self.wide(x))) + self.spectrum(torch.fft.rfft(x).abs())
        return y


def task(outputs: int, squeeze: bool, dtype: torch.dtype) -> Task:
    torch.manual_seed(0)
    return copying(Net(outputs, squeeze, dtype))


def copying(network: nn.Module) -> Task:
    """The task to say what the network says."""
    x, network = torch.randn(96, 1, 8, 8), network.eval()
    with torch.no_grad():
        y = network(x)
    parts: dict[str, Any] = {
        name: (x[k : k + 32], y[k : k + 32]) for k, name in ((0, "calibration"), (32, "validation"), (64, "test"))
    }
    return Task(name="odd", network=network, example_input=x[:1], metric=closeness, **parts)


@pytest.mark.parametrize(
    ("outputs", "squeeze", "dtype"),
    [(1, False, torch.float32), (1, True, torch.float32), (3, False, torch.float64), (3, False, torch.bfloat16)],
)
def test_regression_and_other_precisions_are_searched(
    outputs: int, squeeze: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "odd", SimpleNamespace(make_task=lambda: task(outputs, squeeze, dtype)))
    config = SearchConfig(task="odd:make_task", agent="knapsack", constraint={"macs": 0.5}, knapsack={"widths": 4})
    result = search(prepare(set_up(config)))
    dense, found = result.reports["dense"], result.reports["found"]
    assert dense.accuracy["test"] == pytest.approx(1.0, abs=1e-3)
    # Half the budget is used, not thrown away: damage must see outputs that are no class scores.
    assert 0.3 < found.costs["macs"] / dense.costs["macs"] <= 0.5


@pytest.mark.parametrize("agent", ["knapsack", "random"])
def test_an_encoder_of_words_is_searched_and_exported(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "odd", SimpleNamespace(make_task=lambda: reading()))
    config = load_config(
        None,
        {
            "task": "odd:make_task",
            "agent": agent,
            "episodes": 4,
            "constraint": {"macs": 0.6},
            "knapsack.widths": 3,
        },
    )
    setup = set_up(config)
    result = search(prepare(setup))
    assert result.reports["dense"].accuracy["test"] == 1.0
    assert result.reports["found"].costs["macs"] <= 0.6 * result.reports["dense"].costs["macs"]
    inputs, _ = setup.task.test.batch(range(8))
    assert inputs.dtype == torch.int64
    write_onnx(result.networks["found"], setup.task.example_input, inputs, tmp_path / "found.onnx")


def test_operators_that_no_cost_counts_are_named_once_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    torch.manual_seed(0)
    spectral = copying(Spectral())
    monkeypatch.setitem(sys.modules, "odd", SimpleNamespace(make_task=lambda: spectral))
    config = SearchConfig(task="odd:make_task", agent="uniform", constraint={"macs": 0.6})
    result = search(prepare(set_up(config)))
    stored = result.to_json({}, {})
    assert stored["uncounted"] == ["aten._fft_r2c"]
    assert sum("aten._fft_r2c" in remark for remark in stored["remarks"]) == 1
    monkeypatch.setitem(sys.modules, "odd", SimpleNamespace(make_task=lambda: task(3, False, torch.float32)))
    plain = search(prepare(set_up(config)))
    assert plain.to_json({}, {})["uncounted"] == []
    assert not any("operators" in remark for remark in plain.remarks)
