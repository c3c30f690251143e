"""What rounding of widths costs in accuracy and gains in time, at equal multiply-accumulates: uniform widths.

Command: python -m experiments.compression.rounding --data DIR --weights DIR [--photos DIR]
Each network is pruned to the largest uniform widths within its budget under several roundings, repaired with the
defaults, scored on all validation and test images, and timed through onnxruntime beside the dense one (one thread,
batch 1, interleaved rounds). Timing wants a quiet machine; the page says where it was not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import nn

from amc.config.search import load_config
from amc.problem.prepare import calibrate
from amc.problem.setup import Setup, set_up
from amc.profiling.timing import latency_ms, timing_remarks
from amc.storage.files import write_json
from envs.space.constraint import InfeasibleBudget
from experiments.chain import ROOT, commit, processor

RUNS, PAGE = ROOT / "runs" / "rounding", ROOT / "experiments" / "results" / "rounding.md"
NETWORKS = {"digits": 0.3, "resnet20": 0.5, "resnet56": 0.5, "lite0": 0.75}
"""Name -> share of the MACs."""
ROUNDINGS: dict[str, int | None] = {"every width": 1, "4": 4, "8": 8, "16": 16, "default": None}


def setup_of(name: str, rounding: int | None, options: argparse.Namespace) -> Setup:
    """One network under one rounding."""
    cifar = name.startswith("resnet")
    tasks = {"digits": "digits", "lite0": "experiments.vision.photos:lite0"}
    return set_up(
        load_config(
            None,
            {
                "task": tasks.get(name, f"cifar10-{name}"),
                "agent": "uniform",
                "constraint": {"macs": NETWORKS[name]},
                "data": options.data if cifar else options.photos if name == "lite0" else None,
                "checkpoint": options.weights / f"{name}_cifar10.safetensors" if cifar else None,
                "rules.round_to": rounding,
            },
        )
    )


def rows(name: str, options: argparse.Namespace) -> list[str]:
    """The table's lines of one network, and what has to be said of the times."""
    networks: dict[str, nn.Module] = {}
    facts: dict[str, list[str]] = {}
    for label, rounding in ROUNDINGS.items():
        try:
            setup = setup_of(name, rounding, options)
        except InfeasibleBudget:
            continue
        compressor = calibrate(setup)
        decided = setup.uniform().decisions
        policy = compressor.policy(decided.kept, decided.patterns)
        networks.setdefault("dense", setup.task.network)
        networks[label] = compressor.compress(policy, "none").network  # widths decide the time, not weights
        path = RUNS / f"{name}-{label}.json"
        if not path.exists():
            write_json(path, scored(setup, compressor.compress(policy).network))
        facts[label] = json.loads(path.read_text())
        print(name, label, facts[label], flush=True)
    timings = latency_ms(networks, setup.task.example_input, seconds=20.0)
    dense = timings["dense"].median_ms
    lines = [f"| {name}, {NETWORKS[name]:.0%} | dense | | | | {dense:.3f} ± {timings['dense'].mad_ms:.3f} | 1 |"]
    for label, found in facts.items():
        time = timings[label]
        cells = [name, label, *found, f"{time.median_ms:.3f} ± {time.mad_ms:.3f}", f"{time.median_ms / dense:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    remarks: tuple[Any, ...] = timing_remarks(timings, "default", threads=1, cures=["a latency budget"])
    return [*lines, *(f"| {name} | remark | {remark} | | | | |" for remark in remarks)]


def scored(setup: Setup, network: nn.Module) -> list[str]:
    """Validation and test accuracy, and the share of the MACs."""
    splits = setup.task.validation, setup.task.test
    accuracy = [f"{100 * setup.scorer(network, split, range(len(split))).value:.2f}" for split in splits]
    macs = setup.real_costs(network)["macs"] / setup.real_costs(setup.task.network)["macs"]
    return [*accuracy, f"{macs:.1%}"]


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--photos", type=Path, help="folder of photos.npz (experiments.vision.photos)")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    lines = [line for name in NETWORKS if options.photos or name != "lite0" for line in rows(name, options)]
    PAGE.write_text(
        f"""# Rounded widths: accuracy and time at equal multiply-accumulates

`python -m experiments.compression.rounding --data DIR --weights DIR --photos DIR` at {commit()} on {processor()}.
Uniform widths
within the budget, repaired, no fine-tuning; per cent on all validation and test images. Times: onnxruntime, one thread,
batch 1, median ± median absolute deviation of interleaved rounds. *default*: multiples of 8 in units of 96 channels and
more, every width in narrower ones. A rounding that cannot keep the budget is left out.

| network, budget | widths | validation | test | MACs | ms | of dense |
|---|---|---|---|---|---|---|
"""
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
