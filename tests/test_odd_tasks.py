"""Tasks that are no classification in fp32: they go through the same chain."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc.config import SearchConfig
from amc.problem import Problem
from amc.search import search
from amc.tasks import Task


class Net(nn.Module):
    def __init__(self, outputs: int, squeeze: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, outputs),
        ).to(dtype)  # fmt: skip
        self.squeeze, self.dtype = squeeze, dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.to(self.dtype)).float()
        return y.squeeze(1) if self.squeeze else y


def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.exp(-(outputs - targets).reshape(len(outputs), -1).square().mean(dim=1))


def task(outputs: int, squeeze: bool, dtype: torch.dtype) -> Task:
    torch.manual_seed(0)
    x = torch.randn(96, 1, 8, 8)
    network = Net(outputs, squeeze, dtype).eval()
    with torch.no_grad():
        y = network(x)
    parts = {name: (x[k : k + 32], y[k : k + 32]) for k, name in ((0, "calibration"), (32, "validation"), (64, "test"))}
    return Task(name="odd", network=network, example_input=x[:1], metric=closeness, **parts)


@pytest.mark.parametrize(
    ("outputs", "squeeze", "dtype"),
    [(1, False, torch.float32), (1, True, torch.float32), (3, False, torch.float64), (3, False, torch.bfloat16)],
)
def test_regression_and_other_precisions_are_searched(
    outputs: int, squeeze: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setattr("amc.problem.load_task", lambda *_, **__: task(outputs, squeeze, dtype))
    config = SearchConfig(task="odd", agent="knapsack", constraint={"macs": 0.5}, knapsack={"widths": 4})
    result = search(Problem(config))
    dense, found = result.reports["dense"], result.reports["found"]
    assert dense.accuracy["test"] == pytest.approx(1.0, abs=1e-3)
    # Half the budget is used, not thrown away: damage must see outputs that are no class scores.
    assert 0.3 < found.costs["macs"] / dense.costs["macs"] <= 0.5
