"""The chain on real data: runs `amc search` for each line of the table and writes experiments/results/chain.md.

Command: python -m experiments.chain --data DIR --weights DIR [--photos DIR] [--only TEXT]
DIR holds cifar10_*.npz and resnet{20,56}_cifar10.safetensors; --photos is of experiments.vision.photos, for lite0.
Every run is timed from outside, sensitivities, repair and test included, with an empty cache. Finished runs (a
result.json under runs/chain) are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hw_profiles.device import cpu_model

ROOT = Path(__file__).resolve().parent.parent
RUNS, TABLE = ROOT / "runs" / "chain", ROOT / "experiments" / "results" / "chain.md"


class Line(NamedTuple):
    """One line of the table: a search repeated over seeds of the calibration draw."""

    network: str
    macs: float
    agent: str
    seeds: tuple[int, ...] = (0, 1, 2)
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the run folders."""
        return f"{self.network}-{self.macs:g}-{self.agent}"


LINES = (
    Line("resnet56", 0.5, "knapsack"),
    Line("resnet20", 0.5, "knapsack"),
    Line("resnet56", 0.3, "knapsack"),
    Line("resnet20", 0.3, "knapsack"),
    Line("lite0", 0.75, "knapsack", seeds=(0,)),
    Line("lite0", 0.6, "knapsack", seeds=(0,)),
    Line("resnet56", 0.5, "ddpg", seeds=(0,), options=("--episodes", "60")),
)


def task_options(network: str, options: argparse.Namespace) -> list[str]:
    """What names task, data and weights on the command line."""
    if network == "lite0":
        return ["--task", "experiments.vision.photos:lite0", "--data", str(options.photos.resolve())]
    weights = options.weights.resolve() / f"{network}_cifar10.safetensors"
    return ["--task", f"cifar10-{network}", "--data", str(options.data.resolve()), "--checkpoint", str(weights)]


def run(line: Line, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One search by the command line, as a person would call it; returns its result with the wall time."""
    folder = RUNS / f"{line.label}-{seed}"
    summary = folder / "outside.json"
    if not summary.exists():
        command = [
            str(Path(sys.executable).parent / "amc"),
            "search",
            *task_options(line.network, options),
            "--constraint",
            f"macs={line.macs}",
            "--agent",
            line.agent,
            "--seed",
            str(seed),
            *line.options,
            "--out",
            str(folder),
            "--fresh",
        ]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as cache:
            subprocess.run(command, check=True, env={**os.environ, "AMC_CACHE": cache}, cwd=ROOT)
        summary.write_text(json.dumps({"seconds": time.perf_counter() - began, "commit": commit()}))
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result | {"outside": json.loads(summary.read_text())}


def commit() -> str:
    """The commit that is being measured, marked if anything but results and measured profiles differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/results", ":!hw_profiles/data"
    )
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def processor() -> str:
    """CPU model and number of cores."""
    return f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"


def row(line: Line, results: Sequence[dict[str, Any]]) -> str:
    """One line of the Markdown table."""

    def cell(name: str, split: str) -> str:
        values = [100 * result[name]["accuracy"][split] for result in results]
        each = " / ".join(f"{value:.2f}" for value in values)
        return f"**{statistics.mean(values):.2f}** ({each})" if len(values) > 1 else each

    dense = " / ".join(f"{100 * results[0]['dense']['accuracy'][split]:.2f}" for split in ("validation", "test"))
    share = max(result["found"]["costs"]["macs"] / result["dense"]["costs"]["macs"] for result in results)
    seconds = " / ".join(f"{result['outside']['seconds']:.0f}" for result in results)
    cells = [
        f"{line.network}, {line.macs:.0%}",
        line.agent,
        dense,
        *(cell("uniform", s) for s in ("validation", "test")),
        *(cell("found", s) for s in ("validation", "test")),
        f"{share:.2%}",
        seconds,
        results[0]["outside"]["commit"],
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Runs what is missing and rewrites the table after every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    rows: list[str] = []
    for line in LINES:
        if options.only not in line.label or (line.network == "lite0" and options.photos is None):
            continue
        results = [run(line, seed, options) for seed in line.seeds]
        rows.append(row(line, results))
        write_table(rows)


def write_table(rows: Sequence[str]) -> None:
    """The committed page."""
    text = f"""# The chain: no fine-tuning, sequential repair

`python -m experiments.chain --data DIR --weights DIR` on {processor()}.
Accuracies in %, mean (one per seed of the calibration draw); dense: validation / test. Validation is the first half of
the official test images, test the second half, seen once per reported network. The standard error of one accuracy is
about 0.4 points. lite0 is EfficientNet-Lite0 at 224 on photographs: 250 for calibration, 175 and 175 (standard error 2
points). Seconds are the whole command with an empty cache. MACs: the largest share of dense over the seeds,
recounted on the real network.

| network, budget | agent | dense | uniform val | uniform test | found val | found test | MACs | seconds | commit |
|---|---|---|---|---|---|---|---|---|---|
"""
    TABLE.write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
