"""Whole heads against the widths of all heads, on a vision transformer; writes experiments/results/heads_or_widths.md.

Command: python -m experiments.transformers.heads_or_widths --data DIR --checkpoint FILE [--seeds 3]
DIR holds CIFAR-10; FILE comes from `python -m experiments.vision.vit`. The knapsack at some shares of the MACs,
deciding one or the other, and uniform widths of the same sites beside it. Finished searches (runs/heads_or_widths) are
not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import amc
from amc.scoring.paired import paired_difference
from amc.storage.files import write_text
from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "heads_or_widths", ROOT / "experiments" / "results" / "heads_or_widths.md"
TASK = "experiments.vision.vit:vit"
BUDGETS = (0.6, 0.45, 0.3)


def searched(decided: str, budget: float, seed: int, options: argparse.Namespace) -> amc.Result:
    """The knapsack's network; one that is there is read."""
    values: dict[str, Any] = {"data": str(options.data), "checkpoint": str(options.checkpoint), "seed": seed}
    values |= {"rules.attention": decided, "backend.name": "fp32"}
    return amc.search(TASK, {"macs": budget}, searcher="knapsack", out=RUNS / f"{decided}-{budget:g}-{seed}", **values)


def rows(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table, a budget after the other."""
    for budget in BUDGETS:
        runs = {
            kind: [searched(kind, budget, s, options) for s in range(options.seeds)] for kind in ("heads", "widths")
        }
        each = {kind: [all_samples(one.reports["found"]) for one in some] for kind, some in runs.items()}
        gain = paired_difference(each["widths"], each["heads"])
        for kind, some in runs.items():
            uniform, found = (said([one.reports[name] for one in some]) for name in ("uniform", "found"))
            shares = [one.reports["found"].costs["macs"] / one.reports["dense"].costs["macs"] for one in some]
            ahead = f"{100 * gain.mean:+.2f} ± {100 * gain.half_width:.2f}" if kind == "widths" else ""
            yield f"| {budget:.0%} | {kind} | {uniform} | {found} | {np.mean(shares):.1%} | {ahead} |"


def all_samples(report: Any) -> Any:
    """[N] whether each sample of validation and test is right."""
    return np.concatenate([report.each[split] for split in ("validation", "test")])


def said(reports: list[Any]) -> str:
    """Mean accuracy on validation and test, in per cent."""
    means = (100 * np.mean([one.accuracy[split] for one in reports]) for split in ("validation", "test"))
    return " / ".join(f"{mean:.2f}" for mean in means)


def main() -> None:
    """Searches what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    lines = "\n".join(rows(options))
    dense = said([searched("heads", BUDGETS[0], 0, options).reports["dense"]])
    write_text(
        TABLE,
        f"""# Whole heads, or the widths of all heads

`python -m experiments.transformers.heads_or_widths --data DIR --checkpoint FILE`, commit {commit()}, {processor()},
{options.seeds} seeds. A vision transformer of 158,218 parameters on CIFAR-10 (4 blocks, 4 heads of 16, trained by
`python -m experiments.vision.vit`; dense: {dense} %), no fine-tuning, the knapsack. Accuracy on validation / test,
mean of the seeds; gain in points over all 10,000 images, paired, ± half of the 95 % interval.

| MACs allowed | decided | uniform, % | found, % | MACs of found | widths - heads |
|---|---|---|---|---|---|
{lines}
""",
    )


if __name__ == "__main__":
    main()
