"""Workers, a node and the driver are killed during searches: every one ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from amc.config.search import SearchConfig

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SETTINGS: dict[str, Any] = {
    "task": "mortal:make_task",
    "constraint": {"macs": 0.3},
    "reward_images": 100,
    "round_size": 4,
    "episodes": 32,
    "warmup": 8,
    "confirm": 1,
    "compression": {"images": 48, "positions": 4},
    "knapsack": {"images": 32, "widths": 3, "damages": ["kl"]},
}
OWN = ("--task", "mortal:make_task")
"""A file may not choose code."""
SAME = ("episodes.jsonl", "policy.json", "network.safetensors", "scores.safetensors")

MORTAL = '''
"""The digits; what a file named `kills` in the current directory counts, workers do not survive."""
import os, signal, time
from dataclasses import replace
from pathlib import Path
from amc.tasks.metrics import top1
from amc.tasks.task import Task, load_task

calls = 0

def metric(outputs, targets):
    global calls
    time.sleep(0.02)  # so that whoever is killed is killed within an episode
    calls += 1
    left = Path(os.environ["MORTAL"], "kills")
    if "AMC_THREADS" in os.environ and left.exists() and calls == 4:
        count = int(left.read_text())
        if count:
            left.write_text(str(count - 1))
            os.kill(os.getpid(), signal.SIGKILL)
    return top1(outputs, targets)

def make_task():
    digits = load_task("digits")
    return Task(name="mortal", network=digits.network, example_input=digits.example_input, metric=metric,
                calibration=digits.calibration, validation=digits.validation, test=digits.test)
'''

CLUSTER = '''
"""Runs a search on a cluster of two nodes; removes one in the middle of a round, and adds another later."""
import os, sys, tempfile, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from amc.runs.runner import NoScreen, new_run
from amc.config.search import load_config
from amc.config.parts import WorkersConfig

Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
out = Path(sys.argv[2])

def trouble():
    wait_for(8, 300)
    cluster.remove_node(nodes[1], allow_graceful=False)
    wait_for(12, 30)  # the other node goes on, or waits for this one
    cluster.add_node(num_cpus=1)

def wait_for(episodes, seconds):
    path, deadline = out / "episodes.jsonl", time.monotonic() + seconds
    while time.monotonic() < deadline and (not path.exists() or len(path.read_text().splitlines()) < episodes):
        time.sleep(0.05)

threading.Thread(target=trouble, daemon=True).start()
workers = WorkersConfig(workers=2, address=cluster.address)
new_run(load_config(Path(sys.argv[1]), {}), out, NoScreen(), workers=workers)
cluster.shutdown()
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of its own, a recipe, and what the search gives without any trouble."""
    (tmp_path / "mortal.py").write_text(MORTAL)
    (tmp_path / "cluster.py").write_text(CLUSTER)
    (tmp_path / "recipe.toml").write_text(SearchConfig(**SETTINGS).to_toml())
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MORTAL", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.delenv("AMC_THREADS", raising=False)
    run(tmp_path, "search", "recipe.toml", *OWN, "--out", "alone")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "amc.cli", *arguments]


def run(home: Path, *arguments: str) -> None:
    subprocess.run(command(*arguments), cwd=home, check=True, stdout=subprocess.DEVNULL)


def assert_same(home: Path, other: str) -> None:
    for name in SAME:
        assert (home / "alone" / name).read_bytes() == (home / other / name).read_bytes(), name


def test_workers_killed_in_mid_episode_change_nothing(home: Path) -> None:
    (home / "kills").write_text("5")
    run(home, "search", "recipe.toml", *OWN, "--out", "killed", "--workers", "2")
    assert (home / "kills").read_text() == "0"
    assert_same(home, "killed")
    assert '"retries": 1' in (home / "killed" / "timings.jsonl").read_text()


def test_a_node_lost_and_another_joined_change_nothing(home: Path) -> None:
    arguments = [sys.executable, "cluster.py", "recipe.toml", "lost"]
    subprocess.run(arguments, cwd=home, check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert_same(home, "lost")


def test_a_driver_killed_twice_and_resumed_changes_nothing(home: Path) -> None:
    arguments = command("search", "recipe.toml", *OWN, "--out", "stopped", "--workers", "2")
    for rounds in (2, 5):
        process = subprocess.Popen(arguments, cwd=home, stdout=subprocess.DEVNULL)
        while process.poll() is None and lines(home / "stopped" / "episodes.jsonl") < 4 * rounds:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        arguments = command("resume", "stopped", *OWN, "--workers", "2")
    run(home, "resume", "stopped", *OWN, "--workers", "1")
    assert_same(home, "stopped")


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0
