"""Sparsity patterns on real data without fine-tuning, writes experiments/results/patterns.md.

Command: python -m experiments.patterns --data DIR --weights DIR [--only selections|allocations] [--seeds 3]
Selections: 2:4 on every legal layer of ResNet-56 (rules multiple-of-4), each way of choosing weights with re-estimated
batch norm and with sequential repair. Allocations: 80 % unstructured sparsity, every allocation of the field. Every
finished line is kept in runs/patterns and not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amc.allocate_patterns import ALLOCATIONS, allocate, wherever_legal
from amc.config import SearchConfig, load_config
from amc.files import write_json, write_text
from amc.problem import Problem
from envs.sparsify import SELECTIONS
from experiments.chain import commit, processor
from hw_profiles.layers import IntArray

ROOT = Path(__file__).resolve().parent.parent
RUNS, TABLE = ROOT / "runs" / "patterns", ROOT / "experiments" / "results" / "patterns.md"
REPAIRS: dict[str, dict[str, Any]] = {
    "re-estimated batch norm": {"repair": "none", "reestimate_images": 1000},
    "sequential repair": {"repair": "sequential"},
}
DENSITIES = tuple(k / 100 for k in range(1, 100))


def measured(name: str, config: SearchConfig, choose: Callable[[Problem], IntArray]) -> dict[str, Any]:
    """Validation accuracy and costs of one policy, from runs/patterns if it was measured before."""
    path = RUNS / f"{name}.json"
    if not path.exists():
        began, problem = time.perf_counter(), Problem(config)
        policy = problem.policy(choose(problem))
        small = problem.compressor.compress(policy).network
        score, dense = problem.score(small, "validation"), problem.score(problem.task.network, "validation")
        RUNS.mkdir(parents=True, exist_ok=True)
        write_json(path, {
            "accuracy": score.accuracy, "dense": dense.accuracy, "costs": problem.real_costs(small, policy.patterns()),
            "layers": len(policy.patterns()), "seconds": time.perf_counter() - began, "commit": commit(),
        })  # fmt: skip
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def row(label: str, results: Sequence[dict[str, Any]]) -> str:
    """One line of a table: mean over the seeds, each seed, loss in points."""
    each = [100 * result["accuracy"] for result in results]
    loss = 100 * results[0]["dense"] - statistics.mean(each)
    seconds = statistics.mean(result["seconds"] for result in results)
    values = " / ".join(f"{value:.2f}" for value in each)
    cells = [label, f"**{statistics.mean(each):.2f}**", values, f"{loss:+.2f}", f"{seconds:.0f}", results[0]["commit"]]
    return "| " + " | ".join(cells) + " |"


def selections(base: dict[str, Any], seeds: int) -> list[str]:
    """2:4 on every legal layer."""
    rows = []
    for selection in SELECTIONS:
        for repair, settings in REPAIRS.items():
            results = []
            for seed in range(seeds):
                config = load_config(None, {
                    **base, "seed": seed, "choose": "patterns", "compression": {"selection": selection, **settings},
                    "constraint": {"params": 1.0, "sparsity": "2:4@multiple-of-4"},
                })  # fmt: skip
                name = f"2-4-{selection}-{settings['repair']}-{seed}"
                results.append(measured(name, config, lambda problem: wherever_legal(problem.sites, "2:4")))
            rows.append(row(f"{selection}, {repair}", results))
    return rows


def allocations(base: dict[str, Any], seeds: int) -> list[str]:
    """80 % of all parameters away."""
    rows = []
    for name in ALLOCATIONS:
        for repair, settings in REPAIRS.items():

            def choose(problem: Problem, name: str = name) -> IntArray:
                return np.asarray(allocate(problem.constraint, problem.task.network, name))

            results = []
            for seed in range(seeds):
                config = load_config(None, {
                    **base, "seed": seed, "choose": "unstructured", "densities": DENSITIES, "compression": settings,
                    "constraint": {"params": 0.2},
                })  # fmt: skip
                results.append(measured(f"80-{name}-{settings['repair']}-{seed}", config, choose))
            rows.append(row(f"{name}, {repair}", results))
    return rows


def main() -> None:
    """Measures what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", choices=("selections", "allocations"), default=None)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    base = {
        "task": "cifar10-resnet56", "data": options.data.resolve(), "backend": {"name": "fp32"},
        "checkpoint": options.weights.resolve() / "resnet56_cifar10.safetensors",
    }  # fmt: skip
    head = "| how | mean | each seed | loss, points | seconds | commit |\n|---|---|---|---|---|---|\n"
    text = f"""# Sparsity patterns on ResNet-56, CIFAR-10, no fine-tuning

`python -m experiments.patterns --data DIR --weights DIR` on {processor()}. Validation accuracy in % (5,000
images), seeds of the calibration draw. Standard error of one accuracy: about 0.4 points.
"""
    if options.only in (None, "selections"):
        lines = "\n".join(selections(base, options.seeds))
        text += f"\n## 2:4 on every legal layer (rules multiple-of-4)\n\n{head}{lines}\n"
    if options.only in (None, "allocations"):
        lines = "\n".join(allocations(base, options.seeds))
        text += f"\n## Unstructured, 20 % of the parameters left\n\n{head}{lines}\n"
    write_text(TABLE, text)


if __name__ == "__main__":
    main()
