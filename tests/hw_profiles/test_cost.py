"""A cost is one class and one line: everything else reads what it has to know from the class."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from amc.cli.commands import run_search
from amc.config.search import SearchConfig
from hw_profiles.cost import COSTS, Display, FloatArray, display_of
from hw_profiles.layers import Layout, Widths


@dataclass(frozen=True, slots=True)
class Widest:
    """Channels of the widest layer."""

    name: str = "widest"
    unit: str = "channels"
    display: ClassVar[Display] = Display(label="widest layer")
    needs_edges: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        weighted = np.asarray([layer.has_weight for layer in layout.layers])
        return np.asarray((widths.outputs * weighted).max(axis=1), dtype=np.float64)


def test_names_are_those_of_the_costs() -> None:
    assert all(name == cost.name for name, cost in COSTS.items())


def test_what_is_no_cost_of_ours_is_shown_under_its_name() -> None:
    assert display_of("uncovered").label == "uncovered"
    assert display_of("latency_ms").text(2.3304) == "2.330 ms"


def test_a_search_keeps_and_reports_a_budget_on_a_new_cost(
    untimed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COSTS, "widest", Widest())
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    config = SearchConfig(
        task="tests.tasks.small:make_task",
        constraint={"widest": 0.9},
        agent="uniform",
        compression={"images": 64, "positions": 8},
    )
    run_search(config, tmp_path / "run", Console(file=io.StringIO()))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["found"]["costs"]["widest"] <= 0.9 * result["dense"]["costs"]["widest"]
    assert "widest layer at most" in (tmp_path / "run" / "report.html").read_text()
