"""What one driver sustains: the real search on workers of several nodes, with an evaluation that only sleeps.

Command: python -m experiments.bench.rollouts [--quick] [--json]; writes experiments/results/rollouts.md. The network is
ResNet-56 (27 sites), untrained; rounds hold 64 episodes. The nodes are `ray.cluster_utils.Cluster`'s, all on this
machine: they share its cores, so what counts is the driver's own CPU time per episode, not the episodes per second.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from amc.search.setup import Problem

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.pool.ray import RayRollouts
from amc.pool.worker import processor
from amc.runs.folder import RunFolder
from amc.scoring.evaluate import Evaluator
from amc.search.loop import search
from amc.search.state import Snapshot
from amc.tasks.models import resnet_cifar
from amc.tasks.task import Task
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation, accuracy
from envs.space.policy import Policy

TABLE = Path(__file__).resolve().parent.parent / "results" / "rollouts.md"
ROUND = 64


def stub_task() -> Task:
    """ResNet-56 without training and with hardly any data."""
    torch.manual_seed(0)
    data = torch.zeros(16, 3, 32, 32), torch.zeros(16, dtype=torch.long)
    return Task(
        name="stub",
        network=resnet_cifar.resnet56(),
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=data,
        validation=data,
        test=data,
    )


@dataclass(frozen=True)
class Stub:
    """An evaluation that takes its time and prefers even widths.

    Attributes:
        seconds: How long.
    """

    seconds: float

    def __call__(self, policy: Policy) -> Evaluation:
        """A made-up accuracy."""
        time.sleep(self.seconds)
        ratios = np.array([len(entry.indices) / entry.unit.channels for entry in policy.units])
        value = float(1 - ratios.std())
        return Evaluation(accuracy=value, loss=None, costs={"macs": 1.0}, images=1, image_forwards=1)


class Line(NamedTuple):
    """One measurement."""

    agent: str
    learning: str
    nodes: int
    workers: int
    seconds: float
    rounds: int


@dataclass
class Clock:
    """CPU and wall time at the end of every round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def round(self, snapshot: Snapshot) -> None:
        """Looks at both clocks."""
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())


class Both(NamedTuple):
    """A run folder, as in any search, and the clock."""

    folder: RunFolder
    clock: Clock

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        self.folder.round(snapshot)
        self.clock.round(snapshot)


def lines(quick: bool) -> list[Line]:
    """What is measured."""
    if quick:
        return [Line("ddpg", "light", 2, 4, 0.05, 5)]
    found = [
        Line("ddpg", "light", 2, 2, 0.0, 12),
        Line("random", "-", 2, 2, 0.0, 12),
        Line("ddpg", "default", 2, 2, 0.0, 4),
    ]
    sizes = (1, 1), (2, 4), (4, 8), (4, 16)
    return found + [Line("ddpg", "light", nodes, workers, 0.5, 6) for nodes, workers in sizes]


@contextmanager
def cluster(nodes: int, workers: int) -> Iterator[None]:
    """A cluster of a driver's node without CPUs and some nodes with workers, all on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        made.add_node(num_cpus=workers // nodes)
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
        made.shutdown()  # type: ignore[no-untyped-call]


class Sustained(NamedTuple):
    """What one line came to: CPU milliseconds of the driver per episode, episodes per second, and those of ideal."""

    milliseconds: float
    rate: float
    ideal: float | None


def measure(line: Line) -> Sustained:
    """One line of the table."""
    learning = {"learning": "light"} if line.learning == "light" else {}
    problem = Problem(
        SearchConfig(
            task="experiments.bench.rollouts:stub_task",
            agent=line.agent,
            starts=("uniform",),
            round_size=ROUND,
            episodes=ROUND * line.rounds,
            warmup=ROUND // 2,
            confirm=1,
            reward="accuracy",
            compression={"importance": "l1", "repair": "none", "images": 16},
            **learning,
        )
    )
    stub, clock = Stub(line.seconds), Clock()
    environment = PruningEnv(problem.constraint, problem.compressor.policy, stub, accuracy)
    config = WorkersConfig(workers=line.workers)
    with cluster(line.nodes, line.workers), tempfile.TemporaryDirectory() as folder:
        rollouts = RayRollouts(environment, Evaluator(stub, problem.effort), config, line.workers)
        run = RunFolder.create(Path(folder) / "run", problem.config)
        search(problem, Both(run, clock), None, rollouts)
        rollouts.close()
    # The first round starts the workers, and the second begins with the end of warm-up.
    episodes = ROUND * (line.rounds - 2)
    cpu, wall = 1000 * (clock.cpu[-1] - clock.cpu[1]) / episodes, clock.wall[-1] - clock.wall[1]
    return Sustained(cpu, episodes / wall, line.workers / line.seconds if line.seconds else None)


def row(line: Line, found: Sustained) -> str:
    """One line of the table in Markdown."""
    share = f"{found.rate / found.ideal:.0%}" if found.ideal else "-"
    return (
        f"| {line.agent} | {line.learning} | {line.nodes} | {line.workers} | {line.seconds:g} | "
        f"**{found.milliseconds:.1f}** | {found.rate:.1f} | {share} |"
    )


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one line, printed and not written")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead, write nothing")
    arguments = parser.parse_args()
    if arguments.json:
        found = [{**line._asdict(), **measure(line)._asdict()} for line in lines(arguments.quick)]
        print(json.dumps({"processor": processor(), "lines": found}))
        return
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    written = [
        "# What one driver sustains",
        "",
        f"`python -m experiments.bench.rollouts`, commit {commit.stdout.strip()}, {processor()}, {os.cpu_count()}",
        f"cores, Python {platform.python_version()}. {(__doc__ or '').splitlines()[0]}",
        "",
        "| agent | learning | nodes | workers | evaluation, s | driver, CPU ms per episode | episodes/s | of ideal |",
        f"|{'---|' * 8}",
    ]
    print("\n".join(written), flush=True)
    for line in lines(arguments.quick):
        written.append(row(line, measure(line)))
        print(written[-1], flush=True)
    if not arguments.quick:
        TABLE.write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    main()
