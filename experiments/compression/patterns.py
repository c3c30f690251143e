"""Sparsity patterns on real data without fine-tuning, writes experiments/results/patterns.md.

Command: python -m experiments.compression.patterns --data DIR --weights DIR [--only PART] [--seeds 3] [--ddpg]
Selections: 2:4 on every legal layer of ResNet-56 (rules multiple-of-4), each way of choosing weights with re-estimated
batch norm and with sequential repair. Allocations: 80 % unstructured sparsity, every allocation of the field and the
knapsack. Mixed: widths and 2:4 at 35 % effective MACs against either by itself. With --ddpg a search from the knapsack
too. Every finished line is kept in runs/patterns and not repeated.
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

from amc.config.search import SearchConfig, load_config
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring.paired import paired_difference
from amc.search.allocation.baselines import ALLOCATIONS, allocate, narrowed, wherever_legal
from amc.search.loop import search
from amc.search.starts import best_knapsack
from amc.search.tools import Tools, score_whole
from amc.storage.files import write_json, write_text
from envs.compression.names import SELECTIONS
from envs.space.assignment import Assignment
from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "patterns", ROOT / "experiments" / "results" / "patterns.md"
REPAIRS: dict[str, dict[str, Any]] = {
    "re-estimated batch norm": {"repair": "none", "reestimate_images": 1000},
    "sequential repair": {"repair": "sequential"},
}
MIXED_HEAD = """Effective MACs: zeros of 2:4 are not counted. The difference is paired over the test images and seeds.

| how | effective MACs | 2:4 layers | validation | test | each seed | our search is better by | commit |
|---|---|---|---|---|---|---|---|
"""
DENSITIES = tuple(k / 100 for k in range(1, 100))


Choose = Callable[[Prepared], Assignment]


def searched(prepared: Prepared) -> Assignment:
    """What the configured agent finds."""
    return prepared.setup.assignment(search(prepared).reports["found"].key)


def solved(prepared: Prepared) -> Assignment:
    """The knapsack's solution."""
    return best_knapsack(prepared, InProcess(), Tools.of(prepared, InProcess()))


def solved_everywhere(prepared: Prepared) -> Assignment:
    """The knapsack's solution with 2:4 in every layer that may have it."""
    narrow = narrowed(prepared.setup.constraint, "2:4")
    return best_knapsack(prepared, InProcess(), Tools.of(prepared, InProcess()), narrow)


def uniform_everywhere(prepared: Prepared) -> Assignment:
    """Uniform widths with 2:4 in every layer that may have it."""
    return prepared.setup.assignment(narrowed(prepared.setup.constraint, "2:4").uniform())


def wherever(prepared: Prepared) -> Assignment:
    """2:4 in every layer that may have it, all channels."""
    return prepared.setup.assignment(wherever_legal(prepared.setup.sites, "2:4"))


def measured(name: str, config: SearchConfig, choose: Choose, *, test: bool = False) -> dict[str, Any]:
    """Validation accuracy and costs of one policy, from runs/patterns if it was measured before.

    Args:
        name: Of the file in runs/patterns.
        config: Task, budgets, repair and seed.
        choose: Makes the policy.
        test: Look at the test images, too; `each` then holds every one.
    """
    path = RUNS / f"{name}.json"
    if not path.exists():
        began = time.perf_counter()
        prepared = prepare(set_up(config))
        setup, tools = prepared.setup, Tools.of(prepared, InProcess())
        policy = prepared.policy(choose(prepared))
        small = prepared.compressor.compress(policy).network
        score, dense = (score_whole(tools, None, network, "validation") for network in (small, setup.task.network))
        RUNS.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "accuracy": score.value,
                "dense": dense.value,
                "costs": setup.real_costs(small, policy.patterns()),
                "layers": len(policy.patterns()),
                "seconds": time.perf_counter() - began,
                "commit": commit(),
                "each": score_whole(tools, None, small, "test").each.tolist() if test else [],
            },
        )
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
                config = load_config(
                    None,
                    {
                        **base,
                        "seed": seed,
                        "choose": "patterns",
                        "compression": {"selection": selection, **settings},
                        "constraint": {"params": 1.0, "sparsity": "2:4@multiple-of-4"},
                    },
                )
                name = f"2-4-{selection}-{settings['repair']}-{seed}"
                results.append(measured(name, config, wherever))
            rows.append(row(f"{selection}, {repair}", results))
    return rows


def allocations(base: dict[str, Any], seeds: int, ddpg: bool) -> list[str]:
    """80 % of all parameters away."""
    rows = []
    for name in ALLOCATIONS:
        for repair, settings in REPAIRS.items():

            def choose(prepared: Prepared, name: str = name) -> Assignment:
                setup = prepared.setup
                return setup.assignment(allocate(setup.constraint, setup.task.network, name))

            results = []
            for seed in range(seeds):
                config = load_config(
                    None,
                    {
                        **base,
                        "seed": seed,
                        "choose": "unstructured",
                        "densities": DENSITIES,
                        "compression": settings,
                        "constraint": {"params": 0.2},
                    },
                )
                results.append(measured(f"80-{name}-{settings['repair']}-{seed}", config, choose))
            rows.append(row(f"{name}, {repair}", results))
    own: dict[str, Choose] = {"knapsack": solved, **({"ddpg": searched} if ddpg else {})}
    for name, find in own.items():
        results = []
        for seed in range(seeds):
            config = load_config(
                None,
                {
                    **base,
                    "seed": seed,
                    "choose": "unstructured",
                    "densities": DENSITIES,
                    "starts": ("knapsack",),
                    "compression": REPAIRS["sequential repair"],
                    "constraint": {"params": 0.2},
                    "reward": "error_log_params",
                },
            )
            results.append(measured(f"80-{name}-sequential-{seed}", config, find))
        rows.append(row(f"**{name}**, sequential repair", results))
    return rows


MIXED: dict[str, tuple[str, Choose]] = {
    "channels only, knapsack": ("channels", solved),
    "2:4 wherever legal, uniform channels": ("mixed", uniform_everywhere),
    "2:4 wherever legal, knapsack channels": ("mixed", solved_everywhere),
    "mixed, knapsack": ("mixed", solved),
    "mixed, ddpg from the knapsack": ("mixed", searched),
}
"""How the budget is spent: what is decided, and by which agent."""


def mixed(base: dict[str, Any], seeds: int, ddpg: bool) -> list[str]:
    """Widths and 2:4 at 35 % of the MACs that are left to do, and what patterns add to widths."""
    found: dict[str, list[dict[str, Any]]] = {}
    for label, (choose, find) in MIXED.items():
        if find is searched and not ddpg:
            continue
        found[label] = []
        for seed in range(seeds):
            constraint: dict[str, Any] = {"macs": 0.35}
            if choose == "mixed":
                constraint["sparsity"] = "2:4@multiple-of-4"
            config = load_config(
                None,
                {
                    **base,
                    "seed": seed,
                    "choose": choose,
                    "constraint": constraint,
                    "starts": ("knapsack",),
                    "compression": {"selection": "sparsegpt", **REPAIRS["sequential repair"]},
                },
            )
            name = f"35-{label.replace(', ', '-').replace(' ', '_').replace(':', '-')}-{seed}"
            found[label].append(measured(name, config, find, test=True))
    each = {label: [np.asarray(r["each"], dtype=np.float32) for r in results] for label, results in found.items()}
    ours = each["mixed, ddpg from the knapsack" if ddpg else "mixed, knapsack"]
    rows = []
    for label, results in found.items():
        macs = statistics.mean(result["costs"]["macs"] for result in results)
        validation = statistics.mean(100 * result["accuracy"] for result in results)
        values = " / ".join(f"{100 * float(own.mean()):.2f}" for own in each[label])
        mean = statistics.mean(100 * float(own.mean()) for own in each[label])
        gain = "" if each[label] is ours else str(paired_difference(ours, each[label]))
        layers = " / ".join(str(result["layers"]) for result in results)
        cells = [label, f"{macs / 1e6:.2f} M", layers, f"{validation:.2f}", f"**{mean:.2f}**", values, gain]
        rows.append("| " + " | ".join([*cells, results[0]["commit"]]) + " |")
    return rows


def main() -> None:
    """Measures what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", choices=("selections", "allocations", "mixed"), default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ddpg", action="store_true", help="search from the knapsack as well")
    options = parser.parse_args()
    base = {
        "task": "cifar10-resnet56",
        "data": options.data.resolve(),
        "backend": {"name": "fp32"},
        "checkpoint": options.weights.resolve() / "resnet56_cifar10.safetensors",
    }
    head = "| how | mean | each seed | loss, points | seconds | commit |\n|---|---|---|---|---|---|\n"
    text = f"""# Sparsity patterns on ResNet-56, CIFAR-10, no fine-tuning

`python -m experiments.compression.patterns --data DIR --weights DIR` on {processor()}. Validation accuracy in % (5,000
images), seeds of the calibration draw. Standard error of one accuracy: about 0.4 points.
"""
    if options.only in (None, "selections"):
        lines = "\n".join(selections(base, options.seeds))
        text += f"\n## 2:4 on every legal layer (rules multiple-of-4)\n\n{head}{lines}\n"
    if options.only in (None, "allocations"):
        lines = "\n".join(allocations(base, options.seeds, options.ddpg))
        text += f"\n## Unstructured, 20 % of the parameters left\n\n{head}{lines}\n"
    if options.only in (None, "mixed"):
        lines = "\n".join(mixed(base, options.seeds, options.ddpg))
        text += f"\n## 35 % effective MACs (rules multiple-of-4)\n\n{MIXED_HEAD}{lines}\n"
    write_text(TABLE, text)


if __name__ == "__main__":
    main()
