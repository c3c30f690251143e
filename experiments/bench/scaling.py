"""How an episode's cost grows with images, depth and width: a table with fitted exponents.

Command: python -m experiments.bench.scaling [--quick] [--repair sequential] [--json]
Residual networks of CIFAR's shape with random weights and images, uniform at half the MACs; CPU time of
compression and of scoring, one thread. An exponent is the slope of log(cost) over log(size).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from amc.config.search import SearchConfig
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.tasks.models.resnet_cifar import ResNetCifar
from amc.tasks.task import Task
from envs.parallel import THREADS

NAME = "experiments.bench.scaling:synthetic_task"


class Size(NamedTuple):
    """One network and how many images it sees."""

    images: int = 1000
    depth: int = 20
    width: int = 16


class Cost(NamedTuple):
    """CPU seconds of one episode's compression and scoring."""

    compression: float
    scoring: float


SIZE = Size()
"""What `synthetic_task` makes; set before each measurement."""


def synthetic_task() -> Task:
    """A network without training, and noise."""
    torch.manual_seed(0)
    network = ResNetCifar(blocks=(SIZE.depth - 2) // 6, width=SIZE.width)
    inputs, targets = torch.randn(2 * SIZE.images, 3, 32, 32), torch.zeros(2 * SIZE.images, dtype=torch.long)
    part = inputs[: SIZE.images], targets[: SIZE.images]
    return Task(
        name="synthetic",
        network=network,
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=part,
        validation=(inputs, targets),
        test=part,
    )


def sweeps(quick: bool) -> dict[str, list[Size]]:
    """What is varied, the rest staying at 1,000 images, ResNet-20, 16 channels."""
    if quick:
        return {"images": [Size(100), Size(200)], "width": [Size(100), Size(100, width=32)]}
    return {
        "images": [Size(1000), Size(5000), Size(10000)],
        "depth": [Size(), Size(depth=56), Size(depth=110)],
        "width": [Size(), Size(width=32), Size(width=64)],
    }


def measure(size: Size, repair: str, backend: str) -> Cost:
    """One episode of that size, the second one: the first records what all share."""
    from experiments.bench import scaling  # the task is found there, not in __main__

    scaling.SIZE = size
    images = {
        "images": size.images,
        "quick_images": size.images,
        "importance": "l1",
        "repair": repair,
        "memory_gb": 64.0,
    }
    config = SearchConfig(
        task=NAME,
        reward_images=size.images,
        reward="accuracy",
        compression=images,
        backend={"name": backend},
    )
    prepared = prepare(set_up(config))
    setup, compressor = prepared.setup, prepared.compressor
    policy = prepared.policy(setup.uniform())
    indices = setup.draws.reward()
    scorer, half = prepared.measurement.scorer, backend == "bf16"
    forwards = compressor.compress(policy, quick=True, half=half).image_forwards
    if repair == "sequential" and forwards != size.images:
        raise ValueError(f"repair must see {size.images} images, but saw {forwards}: give it more memory")
    began = time.process_time()
    small = compressor.compress(policy, quick=True, half=half).network
    between = time.process_time()
    scorer(small, setup.task.validation, indices)
    return Cost(between - began, time.process_time() - between)


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute")
    parser.add_argument("--repair", default="sequential", help="none, layerwise, sequential")
    parser.add_argument("--backend", default="fp32", help="bf16, fp32, eager")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    options = parser.parse_args()
    os.environ[THREADS] = "1"
    found: dict[str, dict[str, Any]] = {}
    if not options.json:
        print("| what grows | size | compression, CPU s | scoring, CPU s |\n|---|---|---|---|")
    for what, sizes in sweeps(options.quick).items():
        costs = [measure(size, options.repair, options.backend) for size in sizes]
        ran = [int(getattr(size, what)) for size in sizes]
        found[what] = {
            "sizes": ran,
            "costs": costs,
            "compression": exponent(ran, [cost.compression for cost in costs]),
            "scoring": exponent(ran, [cost.scoring for cost in costs]),
        }
        if not options.json:
            for size, cost in zip(ran, costs, strict=True):
                print(f"| {what} | {size:,} | {cost.compression:.2f} | {cost.scoring:.2f} |")
            print(f"| **exponent** | | **{found[what]['compression']:.2f}** | **{found[what]['scoring']:.2f}** |")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
