"""Whole residual branches allowed, against channels and heads alone; writes experiments/results/branches.md.

Command: python -m experiments.compression.branches NETWORK --data DIR [--seeds 3]
NETWORK is one of
  resnet56  at half of its latency by a table measured here; DIR holds cifar10_*.npz and resnet56_cifar10.safetensors
  kwt1      at 40 % of its MACs; DIR is that of the keyword spotter
Both networks of a seed are timed side by side. Finished searches (runs/branches) are not repeated. Needs a quiet
machine.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import amc
from amc.profiling.timing import latency_ms
from amc.scoring.paired import paired_difference
from amc.storage.files import read_json, write_json, write_text
from amc.tasks.task import load_task
from experiments.chain import commit, processor
from experiments.transformers.latency import SETTINGS as LIGHTER
from experiments.transformers.latency import amc as command

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "branches", ROOT / "experiments" / "results" / "branches.md"
TIMING_SECONDS = 6.0


class Case(NamedTuple):
    """A network with its budget."""

    title: str
    task: str
    checkpoint: str | None
    budget: dict[str, float]
    settings: dict[str, Any]


CASES = {
    "resnet56": Case("ResNet-56", "cifar10-resnet56", "resnet56_cifar10.safetensors", {"latency": 0.5}, {}),
    "kwt1": Case("KWT-1", "experiments.transformers.speech:kwt1", None, {"macs": 0.4}, LIGHTER),
}


def checkpoint_of(name: str, data: Path) -> Path | None:
    """Weights, where the task does not know them."""
    file = CASES[name].checkpoint
    return data / file if file else None


def measured_profile(name: str, data: Path) -> Path:
    """A table of this machine with the kernels that are left where branches go."""
    path, checkpoint = RUNS / f"{name}.json", checkpoint_of(name, data)
    if not path.exists():
        options = ["--task", CASES[name].task, "--data", data, "--branches", "--out", path]
        options += ["--checkpoint", checkpoint] if checkpoint else []
        command("profile", "measure", *options)
    return path


def searched(name: str, data: Path, seed: int, *, branches: bool) -> amc.Result:
    """The knapsack's network; one that is there is read."""
    case = CASES[name]
    values: dict[str, Any] = {"data": str(data), "branches": branches, "seed": seed, **case.settings}
    if checkpoint := checkpoint_of(name, data):
        values["checkpoint"] = str(checkpoint)
    if "latency" in case.budget:
        values["profile"] = str(measured_profile(name, data))
    out = RUNS / f"{name}-{'branches' if branches else 'channels'}-{seed}"
    return amc.search(case.task, case.budget, searcher="knapsack", out=out, **values)


def compared(name: str, data: Path, seed: int) -> dict[str, Any]:
    """Accuracies, costs and times of both networks of a seed."""
    found = {kind: searched(name, data, seed, branches=kind == "branches") for kind in ("channels", "branches")}
    one = next(iter(found.values()))
    networks = {"dense": one.networks["dense"], **{kind: result.network for kind, result in found.items()}}
    task = load_task(CASES[name].task, data=data, checkpoint=checkpoint_of(name, data))
    times = latency_ms(networks, task.example_input, seconds=TIMING_SECONDS)
    reports = {"dense": one.reports["dense"], **{kind: result.reports["found"] for kind, result in found.items()}}
    each = [np.concatenate([reports[kind].each[split] for split in ("validation", "test")]) for kind in found]
    gain = paired_difference([each[1]], [each[0]])
    return {
        "seed": seed,
        "gain": [gain.mean, gain.half_width],
        "removed": [branch.name for branch in found["branches"].policy.branches],
        **{
            kind: {
                "accuracy": report.accuracy,
                "costs": report.costs,
                "ms": times[kind].median_ms,
                "mad_ms": times[kind].mad_ms,
            }
            for kind, report in reports.items()
        },
    }


def page() -> str:
    """The page of results, of what is there."""
    rows, gains = [], []
    for name, case in CASES.items():
        seeds = [read_json(path, "a result of this experiment") for path in sorted(RUNS.glob(f"{name}-seed-*.json"))]
        for one in seeds:
            for kind in ("dense", "channels", "branches"):
                found = one[kind]
                accuracy = " / ".join(f"{100 * found['accuracy'][split]:.2f}" for split in ("validation", "test"))
                removed = str(len(one["removed"])) if kind == "branches" else ""
                macs = f"{found['costs']['macs'] / one['dense']['costs']['macs']:.1%}"
                timed = f"{found['ms']:.3f} ± {found['mad_ms']:.3f}"
                rows.append(f"| {case.title} | {one['seed']} | {kind} | {accuracy} | {macs} | {timed} | {removed} |")
        if seeds:
            mean = statistics.mean(one["gain"][0] for one in seeds)
            each = ", ".join("{:+.2f} ± {:.2f}".format(*(100 * part for part in one["gain"])) for one in seeds)
            budget = ", ".join(f"{cost} {share:g}" for cost, share in case.budget.items())
            gains.append(f"- {case.title}, {budget}: branches - channels {100 * mean:+.2f} points on average ({each}).")
    header = "| network | seed | decided | validation / test, % | MACs | measured, ms | branches removed |"
    return f"""# Whole residual branches, no fine-tuning

`python -m experiments.compression.branches NETWORK --data DIR`, commit {commit()}, {processor()}, onnxruntime, one
thread, batch 1, the knapsack. ResNet-56: `amc profile measure --branches` on this machine, then latency 0.5 by that
table; KWT-1: 40 % of its MACs. Points over all samples of validation and test, paired, ± half of the 95 % interval.

{header}
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{chr(10).join(gains)}
"""


def main() -> None:
    """Measures what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for seed in range(options.seeds):
        path = RUNS / f"{options.network}-seed-{seed}.json"
        if not path.exists():
            write_json(path, compared(options.network, options.data.resolve(), seed))
        write_text(TABLE, page())


if __name__ == "__main__":
    main()
