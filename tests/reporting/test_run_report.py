"""The report that a run leaves in its folder, resumed or not, shows all its episodes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc.cli.commands import run_resume, run_search
from amc.config.search import load_config
from amc.runs.folder import REPORT, RESULT

SETTINGS = {
    "task": "tests.tasks.small:make_task",
    "agent": "random",
    "constraint": {"macs": 0.5},
    "reward_images": 64,
    "confirm": 1,
    "episodes": 2,
    "round_size": 2,
    "compression": {"images": 64, "quick_images": 64, "importance": "l1", "repair": "none"},
    "backend": {"name": "fp32"},
}


def test_a_run_that_stopped_after_its_last_episode_still_reports_all(
    untimed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parse: Callable[[str], Any]
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    run, console = tmp_path / "run", Console(file=io.StringIO())
    run_search(load_config(None, SETTINGS), run, console)
    whole = parse((run / REPORT).read_text(encoding="utf-8"))
    for name in (REPORT, RESULT):  # as if the process had ended before it wrote them
        (run / name).unlink()
    run_resume(run, 0, console, given={"task": "tests.tasks.small:make_task"})
    resumed = parse((run / REPORT).read_text(encoding="utf-8"))
    (said, _) = resumed.sections["The search"].findall("p")
    assert "Reward of each of 2 episodes" in said.text
    assert said.text == whole.sections["The search"].find("p").text
