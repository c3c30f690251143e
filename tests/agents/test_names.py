"""An agent is one file and one line: it can be configured, searches, and its labels are in the records."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from agents.names import AGENTS
from amc.cli.commands import run_search
from amc.config.keys import keys_of
from amc.config.search import SINGLE, SearchConfig, load_config

SWEEP = '''
from agents.searcher import FixedPlan, SearcherState


class Sweep:
    """The same ratio everywhere, less of it in every episode."""

    def __init__(self, steps, starts):
        self.steps, self.told = steps, 0

    def propose(self, count):
        return [FixedPlan((1 / (1 + self.told + k),) * self.steps, "sweep") for k in range(count)]

    def tell(self, trajectories):
        self.told += len(trajectories)

    def state(self):
        return SearcherState({}, {"told": self.told})

    def load(self, state):
        self.told = state.numbers["told"]


def sweep(inputs):
    return Sweep(inputs.steps, inputs.starts)
'''


def test_agents_of_the_configuration_are_those_of_the_dict() -> None:
    chosen = {key.name: key.type for key in keys_of(SearchConfig)}["agent"]
    assert chosen == ", ".join((*AGENTS, *SINGLE))


def test_a_new_agent_searches(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agent_of_sweeps.py").write_text(SWEEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(AGENTS, "sweep", "agent_of_sweeps:sweep")
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    config = load_config(
        None,
        {
            "task": "tests.tasks.small:make_task",
            "agent": "sweep",
            "starts": (),
            "episodes": 3,
            "compression": {"images": 64, "quick_images": 64, "positions": 8},
        },
    )
    run_search(config, tmp_path / "run", Console(file=io.StringIO()))
    lines = (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["searcher"] for line in lines] == ["sweep"] * 3
