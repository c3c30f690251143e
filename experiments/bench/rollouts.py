"""What one driver sustains: the real search on workers of several nodes, with an evaluation that only sleeps.

Command: python -m experiments.bench.rollouts [--quick] [--json]; writes experiments/results/rollouts.md. With
--episodes one line is measured and printed: --agent ddpg (light learning) or random, --round, --workers. The network is
ResNet-56 (27 sites), untrained. The nodes are `ray.cluster_utils.Cluster`'s, all on this machine: they
share its cores, so what counts is the driver's own CPU time per episode, not the episodes per second. It holds all that
a round takes: proposing, sending, writing down, learning, the run folder. Rounds that start workers or end the warm-up
(the first two, or the first where there are only two) are left out; the last round stands by itself, to show growth.
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
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.pool.ray import RayPool
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.runs.folder import RunFolder
from amc.scoring.evaluate import Measurement
from amc.search.loop import search
from amc.search.state import Snapshot
from amc.tasks.models import resnet_cifar
from amc.tasks.task import Task
from envs.reward import Evaluation
from envs.space.assignment import Assignment
from hw_profiles.device import cpu_model

TABLE = Path(__file__).resolve().parent.parent / "results" / "rollouts.md"
ROUND, LARGE_ROUND = 64, 1024


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Stub(Measurement):
    """An evaluation that takes its time and prefers even widths.

    Attributes:
        seconds: How long.
    """

    seconds: float

    def __call__(self, assignment: Assignment) -> Evaluation:
        """A made-up accuracy."""
        time.sleep(self.seconds)
        value = float(1 - np.std(assignment.actions))
        return Evaluation(metric=value, loss=None, costs={"macs": 1.0}, images=1, image_forwards=1)

    @classmethod
    def of(cls, measurement: Measurement, seconds: float) -> Stub:
        """In the place of a real one."""
        return cls(**{own.name: getattr(measurement, own.name) for own in fields(measurement)}, seconds=seconds)


class Line(NamedTuple):
    """One measurement."""

    agent: str
    learning: str
    nodes: int
    workers: int
    seconds: float
    rounds: int
    round_size: int = ROUND


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
    found += [Line(agent, how, 2, 2, 0.0, 10, LARGE_ROUND) for agent, how in (("ddpg", "light"), ("random", "-"))]
    sizes = (1, 1), (2, 4), (4, 8), (4, 16)
    return found + [Line("ddpg", "light", nodes, workers, 0.5, 6) for nodes, workers in sizes]


def asked(arguments: argparse.Namespace) -> Line:
    """The one line that the options describe."""
    learning = "light" if arguments.agent == "ddpg" else "-"
    rounds = arguments.episodes // arguments.round
    return Line(arguments.agent, learning, 1, arguments.workers, 0.0, rounds, arguments.round)


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
    """What one line came to: CPU milliseconds of the driver per episode, over all rounds that count and in the last;
    episodes per second, and those of ideal.
    """

    milliseconds: float
    last: float
    rate: float
    ideal: float | None


def measure(line: Line) -> Sustained:
    """One line of the table."""
    learning = {"learning": "light"} if line.learning == "light" else {}
    config = SearchConfig(
        task="experiments.bench.rollouts:stub_task",
        agent=line.agent,
        starts=("uniform",),
        round_size=line.round_size,
        episodes=line.round_size * line.rounds,
        warmup=line.round_size // 2,
        confirm=1,
        reward="accuracy",
        compression={"importance": "l1", "repair": "none", "images": 16},
        **learning,
    )
    prepared = prepare(set_up(config))
    clock = Clock()
    prepared = replace(prepared, measurement=Stub.of(prepared.measurement, line.seconds))
    with cluster(line.nodes, line.workers), tempfile.TemporaryDirectory() as folder:
        pool = RayPool(WorkersConfig(workers=line.workers), line.workers)
        run = RunFolder.create(Path(folder) / "run", prepared.config)
        search(prepared, Both(run, clock), pool=pool)
        pool.close()
    # The first round starts the workers, and the second begins with the end of warm-up.
    first = min(2, line.rounds - 1)
    episodes = line.round_size * (line.rounds - first)
    cpu, wall = clock.cpu[-1] - clock.cpu[first - 1], clock.wall[-1] - clock.wall[first - 1]
    return Sustained(
        milliseconds=1000 * cpu / episodes,
        last=1000 * (clock.cpu[-1] - clock.cpu[-2]) / line.round_size,
        rate=episodes / wall,
        ideal=line.workers / line.seconds if line.seconds else None,
    )


def row(line: Line, found: Sustained) -> str:
    """One line of the table in Markdown."""
    share = f"{found.rate / found.ideal:.0%}" if found.ideal else "-"
    return (
        f"| {line.agent} | {line.learning} | {line.round_size:,} | {line.round_size * line.rounds:,} | {line.nodes} | "
        f"{line.workers} | {line.seconds:g} | **{found.milliseconds:.1f}** | {found.last:.1f} | {found.rate:.1f} | "
        f"{share} |"
    )


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one line, printed and not written")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead, write nothing")
    parser.add_argument("--episodes", type=int, help="measure one line of so many episodes, at least two rounds")
    parser.add_argument("--round", type=int, default=LARGE_ROUND, help="episodes per round of that line")
    parser.add_argument("--agent", choices=("ddpg", "random"), default="ddpg", help="of that line; ddpg learns lightly")
    parser.add_argument("--workers", type=int, default=2, help="of that line, on one node")
    arguments = parser.parse_args()
    if arguments.episodes is not None and arguments.episodes < 2 * arguments.round:
        parser.error(f"--episodes must be at least two rounds of {arguments.round}, but is {arguments.episodes}")
    wanted = lines(arguments.quick) if arguments.episodes is None else [asked(arguments)]
    if arguments.json:
        found = [{**line._asdict(), **measure(line)._asdict()} for line in wanted]
        print(json.dumps({"processor": cpu_model(), "lines": found}))
        return
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    written = [
        "# What one driver sustains",
        "",
        f"`python -m experiments.bench.rollouts`, commit {commit.stdout.strip()}, {cpu_model()}, {os.cpu_count()}",
        f"cores, Python {platform.python_version()}. {(__doc__ or '').splitlines()[0]}",
        "",
        "| agent | learning | round | episodes | nodes | workers | evaluation, s | driver, CPU ms per episode | "
        "in the last round | episodes/s | of ideal |",
        f"|{'---|' * 11}",
    ]
    print("\n".join(written), flush=True)
    for line in wanted:
        written.append(row(line, measure(line)))
        print(written[-1], flush=True)
    if not arguments.quick and arguments.episodes is None:
        TABLE.write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    from experiments.bench import rollouts  # workers find its classes there, not in __main__

    rollouts.main()
