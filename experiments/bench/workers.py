"""Two workers against one core, and one worker against none, alternating in one session on a quiet machine.

Command: python -m experiments.bench.workers --data DIR --weights DIR [--searches 3] [--pairs 20] [--episodes 60]
    [--json]
DIR holds cifar10_*.npz and resnet56_cifar10.safetensors; writes experiments/results/workers.md. Searches are whole
commands, timed from outside with a warm cache of sensitivities; pairs are single episodes of the same plan.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from amc.search.setup import Problem

from agents.random_search import RandomSearch
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.pool.ray import RayRollouts, connected
from amc.pool.worker import processor
from amc.scoring.evaluate import Effort, Evaluator
from amc.search.episode import Rollouts, SerialRollouts
from envs.parallel import THREADS

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = ROOT / "experiments" / "results" / "workers.md"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The search that is measured."""
    return {
        "task": "cifar10-resnet56",
        "data": options.data.resolve(),
        "constraint": {"macs": 0.5},
        "checkpoint": options.weights.resolve() / "resnet56_cifar10.safetensors",
        "episodes": options.episodes,
        "round_size": options.round,
        "learning": options.learning,
    }


def whole(options: argparse.Namespace, workers: int, cache: Path) -> tuple[float, float]:
    """Seconds of the whole command, and of the search in it; without workers on one core."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, out = Path(folder) / "recipe.toml", Path(folder) / "run"
        recipe.write_text(SearchConfig(**settings(options)).to_toml())
        command = [sys.executable, "-m", "amc.cli", "search", str(recipe), "--out", str(out), "--workers", str(workers)]
        environment = {**os.environ, "AMC_CACHE": str(cache)}
        cores = os.sched_getaffinity(0)

        def one_core() -> None:
            os.sched_setaffinity(0, cores if workers else {min(cores)})

        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=one_core)
        seconds = time.perf_counter() - began
        return seconds, float(json.loads((out / "result.json").read_text())["measured"]["seconds"])


def pairs(options: argparse.Namespace) -> tuple[list[float], list[float], float]:
    """Seconds per episode in process on one core, and on one worker, plan by plan; the worker's peak memory in MB."""
    problem = Problem(SearchConfig(**settings(options)))
    plans = RandomSearch(len(problem.sites), seed=0).propose(options.pairs + 1)
    serial = SerialRollouts(problem.environment(problem.measurement), Evaluator(problem.measurement, Effort()))
    here, there = list[float](), list[float]()
    os.environ[THREADS] = "1"  # here and, because it is hired after this, in the worker
    with connected(None, 1):
        one = RayRollouts(
            problem.portable_environment(), Evaluator(problem.measurement, Effort()), WorkersConfig(workers=1), 1
        )
        serial.play(plans[:1])  # warm
        one.play(plans[:1])
        for number, plan in enumerate(plans[1:]):
            order: list[tuple[Rollouts, list[float]]] = [(serial, here), (one, there)]
            for rollouts, seconds in order[:: -1 if number % 2 else 1]:
                began = time.perf_counter()
                rollouts.play([plan])
                seconds.append(time.perf_counter() - began)
        megabytes = one.peak_megabytes()
        one.close()
    del os.environ[THREADS]  # whole searches use all cores
    return here, there, megabytes


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--round", type=int, default=16)
    parser.add_argument("--learning", default="light")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead, write nothing")
    options = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    here, there, megabytes = pairs(options)
    more = statistics.median(b / a for a, b in zip(here, there, strict=True)) - 1
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.json:
        about = {"one_worker": more, "worker_megabytes": megabytes, "driver_megabytes": own}
        print(json.dumps({**about, "searches": [found._asdict() for found in searches(options)]}))
        return
    text = [
        "# Workers against one core",
        "",
        f"`python -m {__spec__.name} {' '.join(sys.argv[1:])}`, commit {commit.stdout.strip()}, {processor()},",
        f"{os.cpu_count()} cores. ResNet-56 on CIFAR-10, 50 % MACs, sequential repair.",
        "",
        f"One worker against in process on one core: {100 * more:+.1f} % time per episode (median of {len(here)}",
        f"pairs; {statistics.median(here):.2f} s and {statistics.median(there):.2f} s). The worker's peak memory is",
        f"{megabytes:.0f} MB beyond what it shares; the driver's {own:.0f} MB.",
        "",
    ]
    print("\n".join(text), flush=True)
    if options.searches:
        text += table(options)
        TABLE.write_text("\n".join(text) + "\n")


class Pair(NamedTuple):
    """(command, search) seconds in process on one core, and on two workers."""

    alone: tuple[float, float]
    both: tuple[float, float]


def searches(options: argparse.Namespace) -> Iterator[Pair]:
    """Whole searches, alternating."""
    with tempfile.TemporaryDirectory() as cache:
        if options.searches:
            whole(argparse.Namespace(**{**vars(options), "episodes": 4}), 0, Path(cache))  # fills the cache
        for _ in range(options.searches):
            yield Pair(whole(options, 0, Path(cache)), whole(options, 2, Path(cache)))


def table(options: argparse.Namespace) -> list[str]:
    """Markdown of the whole searches, printed as they end."""
    lines = [
        f"Whole searches of {options.episodes} episodes, rounds of {options.round}, learning {options.learning!r}:",
        "",
        "| | in process, one core: command / search, s | 2 workers: command / search, s | throughput of the command |",
        "|---|---|---|---|",
    ]
    ratios = []
    for number, found in enumerate(searches(options), start=1):
        ratios.append(found.alone[0] / found.both[0])
        cells = [f"{command:.0f} / {search:.0f}" for command, search in found]
        lines.append(f"| {number} | {' | '.join(cells)} | {ratios[-1]:.2f} x |")
        print(lines[-1], flush=True)
    return [*lines, "", f"Median: **{statistics.median(ratios):.2f} x**."]


if __name__ == "__main__":
    main()
