"""Two workers against one core, and one worker against none, alternating in one session on a quiet machine.

Command: python -m experiments.bench.workers --data DIR --weights DIR [--searches 3] [--pairs 20] [--episodes 60]
    [--json]
DIR holds cifar10_*.npz and resnet56_cifar10.safetensors; writes experiments/results/workers.md. Searches are whole
commands, timed from outside with nothing cached, from import to report; both must write the same episodes and policy.
Pairs are single episodes of the same plan.
"""

from __future__ import annotations

import argparse
import hashlib
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

from agents.random_search import RandomSearch
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.pool.pool import InProcess, Pool
from amc.pool.ray import RayPool, connected
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.search.loop import make_rollout, play
from amc.search.rollout import Rollout, Round
from envs.parallel import THREADS
from hw_profiles.device import cpu_model

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
        "compression": {"repair": "sequential"},
    }


class Whole(NamedTuple):
    """Seconds of a whole command, and of the search in it; digest of its episodes and policy."""

    command: float
    search: float
    digest: str


def whole(options: argparse.Namespace, workers: int) -> Whole:
    """One command with an empty cache; without workers on one core."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, out = Path(folder) / "recipe.toml", Path(folder) / "run"
        recipe.write_text(SearchConfig(**settings(options)).to_toml())
        command = [sys.executable, "-m", "amc.cli", "search", str(recipe), "--out", str(out), "--workers", str(workers)]
        environment = {**os.environ, "AMC_CACHE": str(Path(folder) / "cache")}
        cores = os.sched_getaffinity(0)

        def one_core() -> None:
            os.sched_setaffinity(0, cores if workers else {min(cores)})

        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=one_core)
        seconds = time.perf_counter() - began
        written = b"".join((out / name).read_bytes() for name in ("episodes.jsonl", "policy.json"))
        search = float(json.loads((out / "result.json").read_text())["measured"]["seconds"])
        return Whole(seconds, search, hashlib.sha256(written).hexdigest())


def pairs(options: argparse.Namespace) -> tuple[list[float], list[float], float]:
    """Seconds per episode in process on one core, and on one worker, plan by plan; the worker's peak memory in MB."""
    prepared = prepare(set_up(SearchConfig(**settings(options))))
    in_process = InProcess()
    round_ = Round(known={})
    plans = RandomSearch(len(prepared.setup.sites), seed=0).propose(options.pairs + 1)
    here, there = list[float](), list[float]()
    os.environ[THREADS] = "1"  # here and, because it is hired after this, in the worker
    with connected(None, 1):
        one = RayPool(WorkersConfig(workers=1), 1)
        sides: list[tuple[Pool, Rollout, list[float]]] = [
            (in_process, make_rollout(prepared, in_process), here),
            (one, make_rollout(prepared, one), there),
        ]
        for number, plan in enumerate(plans):
            for pool, rollout, seconds in sides[:: -1 if number % 2 else 1]:
                began = time.perf_counter()
                list(pool.map(play, rollout, round_, [plan]))
                if number:  # the first pair warms up
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
        print(
            json.dumps(
                {
                    **about,
                    "searches": [
                        {side: one._asdict() for side, one in found._asdict().items()} for found in searches(options)
                    ],
                }
            )
        )
        return
    text = [
        "# Workers against one core",
        "",
        f"`python -m {__spec__.name} {' '.join(sys.argv[1:])}`, commit {commit.stdout.strip()}, {cpu_model()},",
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
    """In process on one core, and on two workers."""

    alone: Whole
    both: Whole


def searches(options: argparse.Namespace) -> Iterator[Pair]:
    """Whole searches, alternating.

    Raises:
        RuntimeError: If two workers find anything else than one core.
    """
    for _ in range(options.searches):
        pair = Pair(whole(options, 0), whole(options, 2))
        if pair.alone.digest != pair.both.digest:
            raise RuntimeError("two workers must write the same episodes and policy as one core, but did not")
        yield pair


def table(options: argparse.Namespace) -> list[str]:
    """Markdown of the whole searches, printed as they end."""
    lines = [
        f"Whole searches of {options.episodes} episodes, rounds of {options.round}, learning {options.learning!r}, "
        "nothing cached:",
        "",
        "| | in process, one core: command / search, s | 2 workers: command / search, s | throughput of the command |",
        "|---|---|---|---|",
    ]
    ratios = []
    for number, found in enumerate(searches(options), start=1):
        ratios.append(found.alone.command / found.both.command)
        cells = [f"{one.command:.0f} / {one.search:.0f}" for one in found]
        lines.append(f"| {number} | {' | '.join(cells)} | {ratios[-1]:.2f} x |")
        print(lines[-1], flush=True)
    return [*lines, "", f"Median: **{statistics.median(ratios):.2f} x**."]


if __name__ == "__main__":
    main()
