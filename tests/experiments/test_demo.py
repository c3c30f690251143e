"""The demo: its parts on small things, and the whole from end to end."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from amc.config.search import load_config
from amc.pool.pool import InProcess
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.profiling.timing import Timing
from amc.search.allocation.curves import damage_curves
from amc.search.allocation.knapsack import knapsack
from amc.search.result import NetworkReport
from amc.search.tools import Tools
from envs.space.constraint import Budget, Constraint
from experiments.demo.run import Row, macs_at, record, sentence, table_of
from hw_profiles.cost import Macs

ROOT = Path(__file__).resolve().parents[2]


def row(right: int, latency: float) -> Row:
    """A network that classifies so many of a hundred test images correctly."""
    each = np.asarray([1.0] * right + [0.0] * (100 - right), dtype=np.float32)
    report = NetworkReport(
        metric={"validation": right / 100, "test": right / 100},
        costs={"macs": 1e6 * latency, "latency_ms": latency},
        key=(1, 2),
        each={"test": each},
    )
    return Row(report=report, timing=Timing(median_ms=latency, mad_ms=0.01, rounds=40))


ROWS = {"dense": row(98, 0.8), "uniform": row(90, 0.39), "by MACs": row(94, 0.41), "found": row(96, 0.4)}


def test_the_sentence_says_how_much_faster_found_is_and_what_it_keeps() -> None:
    said = sentence(ROWS)
    assert said.startswith("2.00 times as fast as dense (0.400 ± 0.010 against 0.800 ± 0.010 ms, measured) at 96.0%")
    assert "+6.00 ± " in said.partition("over uniform")[0]
    assert "+2.00 ± " in said.partition("over uniform")[2]


def test_the_table_and_the_record_hold_every_network() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of(ROWS))
    content = json.loads(json.dumps(record(ROWS, seed=3, seconds=1.0)))
    assert list(content["networks"]) == list(ROWS)
    assert content["networks"]["found"]["timing"]["median_ms"] == 0.4
    assert content["gains"]["by MACs"]["mean"] == pytest.approx(0.02)
    assert (content["seed"], content["sentence"]) == (3, sentence(ROWS))
    text = console.export_text()
    assert all(name in text for name in ROWS)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "0.390 ± 0.010" in text


def test_the_budget_of_macs_is_the_least_whose_solution_takes_the_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    values = {
        "task": "digits",
        "agent": "knapsack",
        "profile": "amd-epyc-onnxruntime-t1-b1",
        "constraint": {"latency": 0.8},
        "compression": {"images": 64, "positions": 8},
        "knapsack": {"images": 32, "widths": 3},
        "backend": {"name": "fp32"},
    }
    prepared = prepare(set_up(load_config(None, values)))
    costing, table = prepared.setup.constraint.costing, prepared.setup.table
    assert table is not None
    curves = next(iter(damage_curves(prepared, InProcess(), Tools.of(prepared, InProcess())).values()))
    dense = costing.one(Macs(), costing.dense())

    def latency_at(fraction: float) -> float:
        return costing.one(table, knapsack(Constraint.create(costing, [Budget(Macs(), fraction * dense)]), curves))

    wanted = 0.8 * costing.one(table, costing.dense())
    fraction = macs_at(wanted, prepared)
    assert 0 < fraction < 1
    assert latency_at(fraction) >= wanted
    assert latency_at(fraction - 2**-8) < wanted


@pytest.mark.slow
def test_the_demo_halves_the_latency_from_end_to_end_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "experiments.demo.run", "--out", str(tmp_path / "demo")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    dense, found = (written["networks"][name] for name in ("dense", "found"))
    assert found["costs"]["latency_ms"] <= 0.5 * dense["costs"]["latency_ms"]
    assert found["timing"]["median_ms"] < dense["timing"]["median_ms"]
    assert written["networks"]["found"]["accuracy"]["test"] >= written["networks"]["uniform"]["accuracy"]["test"] - 0.02
    assert "times as fast as dense" in first.stdout
    assert (tmp_path / "demo" / "found.onnx").stat().st_size > 0
    assert (tmp_path / "demo" / "report.html").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert repeated["networks"]["found"]["widths"] == found["widths"]
