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

from amc.search.result import NetworkReport
from experiments.demo.run import BUDGET, BY_TIME, Row, record, sentences, table_of

ROOT = Path(__file__).resolve().parents[2]


def row(right: int, latency: float) -> Row:
    """A network that classifies so many of a hundred test images correctly."""
    each = np.asarray([1.0] * right + [0.0] * (100 - right), dtype=np.float32)
    report = NetworkReport(
        metric={"validation": right / 100, "test": right / 100},
        costs={"macs": 1e6 * latency},
        key=(1, 2),
        each={"test": each},
    )
    return Row(report=report, latency_ms=latency, share=latency / 0.8)


ROWS = {"dense": row(98, 0.8), "uniform": row(70, 0.2), "knapsack": row(74, 0.2), "DDPG": row(76, 0.2)}
ROWS["by time"] = row(90, 0.19)


def test_the_sentences_say_what_the_agent_found_and_what_the_table_did() -> None:
    learned, timed = sentences(ROWS)
    assert "DDPG found +2.00 ± " in learned.partition("over the knapsack")[0]
    assert "+6.00 ± " in learned.partition("over the knapsack")[2]
    assert "4.0 times as fast as dense" in learned
    assert "90.0% of test images right in 0.24 of the dense latency, at 0.25 allowed" in timed


def test_what_the_table_did_is_left_out_where_no_widths_in_blocks_are_as_fast() -> None:
    rows = {name: row for name, row in ROWS.items() if name != BY_TIME}
    assert sentences(rows) == sentences(ROWS)[:1]


def test_the_table_and_the_record_hold_every_network() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of(ROWS))
    content = json.loads(json.dumps(record(ROWS, seed=3, seconds=1.0)))
    assert list(content["networks"]) == list(ROWS)
    assert content["networks"]["DDPG"]["measured_ms"] == 0.2
    assert content["gains"]["knapsack"]["mean"] == pytest.approx(0.02)
    assert (content["seed"], content["said"]) == (3, sentences(ROWS))
    text = console.export_text()
    assert all(name in text for name in ROWS)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "0.190" in text


@pytest.mark.slow
def test_the_demo_finds_more_than_its_start_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "experiments.demo.run", "--out", str(tmp_path / "demo")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    dense, found, timed = (written["networks"][name] for name in ("dense", "DDPG", "by time"))
    assert found["costs"]["macs"] <= BUDGET * dense["costs"]["macs"]
    assert timed["costs"]["latency_ms"] <= found["share_of_dense"] * written_dense(tmp_path)
    assert found["measured_ms"] < dense["measured_ms"]
    gains = written["gains"]["knapsack"]
    assert gains["mean"] > gains["half_width"]
    assert "times as fast as dense" in first.stdout
    assert (tmp_path / "demo" / "found.onnx").stat().st_size > 0
    assert (tmp_path / "demo" / "report.html").exists()
    policy = (tmp_path / "demo" / "policy.json").read_bytes()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "demo" / "policy.json").read_bytes() == policy


def written_dense(folder: Path) -> float:
    """What the table says of the dense network, in milliseconds."""
    result = json.loads((folder / "demo" / "by_time" / "result.json").read_text())
    return float(result["dense"]["costs"]["latency_ms"])
