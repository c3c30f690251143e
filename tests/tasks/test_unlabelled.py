"""Calibration samples without labels: a search is the same, and what needs labels is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amc
from amc.tasks.metrics import IGNORED
from amc.tasks.splits import ArraySplit
from tests.tasks.small import make_task

SETTINGS: dict[str, Any] = {
    "searcher": "knapsack",
    "reward_images": 64,
    "knapsack": {"widths": 3, "images": 64},
    "compression": {"images": 64, "quick_images": 64},
    "progress": False,
}


def without_labels() -> amc.Task:
    task = make_task()
    inputs, targets = task.calibration.batch(range(len(task.calibration)))
    nothing = ArraySplit(inputs.numpy(), np.full(len(targets), IGNORED))
    return replace(task, calibration=nothing)


def test_labels_of_calibration_samples_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.runs.runner.write_report", lambda path, _: path.touch())
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})
    found = [
        amc.search(task, {"macs": 0.5}, out=tmp_path / str(place), **SETTINGS).record
        for place, task in enumerate((make_task(), without_labels()))
    ]
    for name in ("choices", "accuracy", "costs"):
        assert found[0]["found"][name] == found[1]["found"][name]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"knapsack": {"damages": ["loss"]}}, "the damage 'loss' needs labels"),
        ({"reward_split": "calibration"}, "reward_split=calibration needs labels"),
    ],
)
def test_what_needs_labels_is_refused_without_them(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        amc.search(without_labels(), {"macs": 0.5}, out=tmp_path / "run", **{**SETTINGS, **settings})


def test_samples_that_are_scored_need_labels(tmp_path: Path) -> None:
    task = without_labels()
    with pytest.raises(ValueError, match="validation: 0 <= class < 10"):
        amc.search(replace(task, validation=task.calibration), {"macs": 0.5}, out=tmp_path / "run", **SETTINGS)
