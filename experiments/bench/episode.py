"""Where an episode's time goes: milliseconds of each part, and the whole against the floor (`floor.py`), in one run.

Command: python -m experiments.bench.episode [--task digits] [--data DIR --weights DIR] [--repair layerwise,sequential]
    [--images 1000] [--rounds 3] [--threads 1] [--json]
Every repair plays the same rounds of one real search (agent, memory of evaluations, run folder), and after each
episode the floor is timed on that episode's own network, so that a busy machine slows both alike. Times are CPU
time of the process. The floor is one pass over the reward's images by the backend that scores, and one over the
images of sequential repair by the arithmetic in which repair runs; both in the fastest of three batches.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import envs.compression.compress
from agents.searcher import Searcher, Trajectory
from amc.config.search import SearchConfig
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.runs.folder import RunFolder
from amc.scoring.scorer import Outputs, Score, Scorer, read
from amc.search.episode import Episode
from amc.search.loop import make_rollout, play, written_down
from amc.search.rollout import Rollout, Round
from amc.search.searchers import make_searcher
from amc.search.state import Progress
from amc.search.stopping import bar_to_pass
from amc.tasks.splits import Split
from envs.parallel import THREADS
from envs.repair.layerwise import LayerwiseRepair
from envs.repair.sequential import SequentialRepair
from experiments.bench.floor import forward_seconds, ready
from experiments.bench.stopwatch import Stopwatch
from experiments.chain import commit
from hw_profiles.device import cpu_model

BATCHES = (50, 125, 250)
"""Batches of the floor: the fastest counts."""
PARTS = ("slicing", "repair", "re-estimation", "evaluation", "agent", "bookkeeping")


@dataclass
class Bench:
    """One search whose parts are timed.

    Attributes:
        prepared: What is searched.
        searcher: The agent.
        rollout: What its plans are played on.
        folder: Where the run is written down.
        watch: Time of each part.
        played: What was played so far.
        networks: Networks of the last round.
        floors: Seconds of the floor of every timed episode, by part.
    """

    prepared: Prepared
    searcher: Searcher
    rollout: Rollout
    folder: RunFolder
    watch: Stopwatch
    played: Progress
    networks: list[nn.Module]
    floors: list[float]

    def round(self) -> None:
        """One round, as `amc.search.loop.search` has it."""
        prepared, played = self.prepared, self.played
        self.networks.clear()
        plans = self.searcher.propose(prepared.config.round_size)
        round_ = Round(known=prepared.ledger.known, bar=bar_to_pass(prepared, played.lines))
        trajectories: list[Trajectory | None] = []
        for plan, answer in zip(plans, InProcess().map(play, self.rollout, round_, plans), strict=True):
            line, trajectory = written_down(prepared, self.rollout, plan, answer)
            played.add(line, answer.timing)
            trajectories.append(trajectory)
        self.searcher.tell(trajectories)
        self.folder.round(played.snapshot(prepared, {}, self.searcher.state(), 0.0))


def make_bench(options: argparse.Namespace, repair: str, folder: Path) -> Bench:
    """A search that is past its warm-up."""
    prepared = prepare(set_up(config_of(options, repair)))
    searcher = make_searcher(prepared, {"uniform": prepared.setup.uniform().key})
    rollout = make_rollout(prepared, InProcess())
    run = RunFolder.create(folder / repair, prepared.config)
    bench = Bench(prepared, searcher, rollout, run, Stopwatch(), Progress(), [], [])
    for _ in range(2):  # the start and warm-up; at the end of the second round the actor is cloned
        bench.round()
    return bench


def config_of(options: argparse.Namespace, repair: str) -> SearchConfig:
    """The search that is timed: the defaults, but for the images and an early end of warm-up."""
    cifar = options.task.startswith("cifar10-")
    weights = options.weights / f"{options.task.removeprefix('cifar10-')}_cifar10.safetensors" if cifar else None
    repairing = {"repair": repair, "images": max(options.images, 1000)}
    return SearchConfig(
        task=options.task,
        data=options.data,
        checkpoint=weights,
        reward_images=options.images,
        warmup=4,
        starts=("uniform",),
        compression=repairing,
        backend={"name": options.backend, "half_repair": options.backend == "bf16" or None},
    )


def watched(bench: Bench) -> Callable[[], None]:
    """Times the parts of the bench from now on; the returned function ends it."""
    watch, networks = bench.watch, bench.networks
    watch.wrap(envs.compression.compress, "slice_axes", "slicing")
    watch.wrap(envs.compression.compress, "kept_axes", "slicing")
    for repair in (SequentialRepair, LayerwiseRepair):
        watch.wrap(repair, "__call__", "repair")
    watch.wrap(envs.compression.compress, "reestimate_batch_norm", "re-estimation")
    watch.wrap(Scorer, "__call__", "evaluation")
    for name in ("propose", "tell"):
        watch.wrap(type(bench.searcher), name, "agent")
    scored = Scorer.__call__

    def noting(
        self: Scorer, network: nn.Module, split: Split, indices: Sequence[int], dense: Outputs | None = None
    ) -> Score:
        networks.append(network)
        return scored(self, network, split, indices, dense)

    watch.replace(Scorer, "__call__", noting)
    return watch.restore


def timed_round(bench: Bench) -> None:
    """One timed round, then the floor of its episodes."""
    restore = watched(bench)
    try:
        with bench.watch.timing("bookkeeping"):
            bench.round()
    finally:
        restore()
    for network in bench.networks:
        bench.floors.append(floor_seconds(bench.prepared, network))


def floor_seconds(prepared: Prepared, network: nn.Module) -> float:
    """Forward passes over the images of the reward and of repair."""
    compressor, setup = prepared.compressor, prepared.setup
    images = read(setup.task.validation, setup.draws.reward())[0]
    seconds = _pass(network, images, prepared.config.backend.name)
    if compressor.quick_forwards:
        walks = "bf16" if prepared.measurement.half else "fp32"
        seconds += _pass(network, read(setup.task.calibration, range(compressor.quick_forwards))[0], walks)
    return seconds


def _pass(network: nn.Module, images: Tensor, backend: str) -> float:
    """One pass over the images, in the batch that was fastest on the first of them."""
    fast, inputs = ready(network, images, backend)
    part = inputs[: max(BATCHES)]
    return forward_seconds(fast, inputs, min(BATCHES, key=lambda batch: forward_seconds(fast, part, batch)))


def summary(repair: str, bench: Bench) -> dict[str, Any]:
    """Milliseconds per episode by part, the floor, and their ratio."""
    config = bench.prepared.config
    episodes = [line for line in bench.played.lines[2 * config.round_size :] if isinstance(line, Episode)]
    parts = {part: 1000 * bench.watch.seconds.get(part, 0.0) / len(episodes) for part in PARTS}
    whole, floor = sum(parts.values()), 1000 * sum(bench.floors) / len(episodes)
    return {
        "repair": repair,
        "episodes": len(episodes),
        "remembered": len(episodes) - len(bench.floors),
        "backend": config.backend.name,
        "milliseconds": parts,
        "whole": whole,
        "floor": floor,
        "ratio": whole / floor,
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Parts below each other, repairs side by side."""
    rows = [["CPU ms per episode", *(one["repair"] for one in found)]]
    rows += [[part, *(f"{one['milliseconds'][part]:.1f}" for one in found)] for part in PARTS]
    rows += [[name, *(f"{one[name]:.1f}" for one in found)] for name in ("whole", "floor")]
    rows += [["whole / floor", *(f"{one['ratio']:.2f}" for one in found)]]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks of this folder share."""
    parser.add_argument("--task", default="digits", help="digits, cifar10-resnet20, cifar10-resnet56")
    parser.add_argument("--data", type=Path, help="folder of cifar10_*.npz")
    parser.add_argument("--weights", type=Path, help="folder of resnet*_cifar10.safetensors")
    parser.add_argument("--backend", default="auto", help="auto, bf16, fp32, eager")
    parser.add_argument("--images", type=int, default=1000, help="of the reward, and of sequential repair")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task(parser)
    parser.add_argument("--repair", default="layerwise,sequential", help="none, layerwise, sequential")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of four episodes")
    parser.add_argument("--threads", type=int, default=1, help="threads over chunks of images")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Plays the rounds of all repairs in turn."""
    os.environ[THREADS] = str(options.threads)
    repairs = options.repair.split(",")
    with tempfile.TemporaryDirectory() as folder:
        benches = {repair: make_bench(options, repair, Path(folder)) for repair in repairs}
        for _ in range(options.rounds):
            for bench in benches.values():
                timed_round(bench)
        for bench in benches.values():
            bench.folder.close()
    return [summary(repair, bench) for repair, bench in benches.items()]


def main() -> None:
    """Prints the table or the line."""
    options = options_of()
    found = measure(options)
    about = {"commit": commit(), "processor": cpu_model(), "torch": torch.__version__, "threads": options.threads}
    if options.json:
        print(json.dumps({"task": options.task, "images": options.images, **about, "repairs": found}))
        return
    print(f"{options.task}, {options.images} images, {about}, backend {found[0]['backend']}\n\n{table(found)}")


if __name__ == "__main__":
    main()
