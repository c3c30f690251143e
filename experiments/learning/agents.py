"""Agents at equal effort on ResNet-20; ddpg, knapsack and the paper's preset on ResNet-56. No fine-tuning.

Command: python -m experiments.learning.agents --data DIR --weights DIR [--only LABEL]
Resumable: finished runs under runs/agents are kept, stopped ones go on. Writes experiments/results/agents.md and the
plots beside it after every part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parents[2]
RUNS, RESULTS = ROOT / "runs" / "agents", ROOT / "experiments" / "results"
PAPER = "resnet56-paper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One comparison: agents with the same effort over the same seeds."""

    label: str
    network: str
    macs: float
    agents: tuple[str, ...]
    effort: int
    seeds: int = 3


PARTS = (
    Part(label="resnet56-50", network="resnet56", macs=0.5, agents=("ddpg", "knapsack"), effort=600_000),
    Part(
        label="resnet20-50",
        network="resnet20",
        macs=0.5,
        agents=("ddpg", "cmaes", "swap", "knapsack"),
        effort=490_000,
    ),
    Part(
        label="resnet56-30",
        network="resnet56",
        macs=0.3,
        agents=("ddpg", "swap", "cmaes", "knapsack"),
        effort=600_000,
    ),
    Part(
        label="resnet20-30", network="resnet20", macs=0.3, agents=("ddpg", "cmaes", "swap", "knapsack"), effort=490_000
    ),
)
"""120 episodes of 2,500 scored and 500 repaired images are 360,000 image-forwards; sensitivities (140,000 and 46,000)
and confirmation take the rest."""


def amc(*arguments: str) -> None:
    """The command line, as a person would call it."""
    subprocess.run([str(Path(sys.executable).parent / "amc"), *arguments], check=True, cwd=ROOT)


def task(network: str, macs: float, data: Path, weights: Path) -> list[str]:
    """Options that name task and budget."""
    checkpoint = weights / f"{network}_cifar10.safetensors"
    return [
        "--task",
        f"cifar10-{network}",
        "--data",
        str(data),
        "--checkpoint",
        str(checkpoint),
        "--constraint",
        f"macs={macs}",
    ]


def compare(part: Part, data: Path, weights: Path) -> None:
    """One comparison, or what is missing of it."""
    amc(
        "compare",
        *task(part.network, part.macs, data, weights),
        "--agents",
        *part.agents,
        "--effort",
        str(part.effort),
        "--seeds",
        str(part.seeds),
        "--out",
        str(RUNS / part.label),
    )


def paper(data: Path, weights: Path) -> None:
    """The paper's preset, full length."""
    folder = RUNS / PAPER
    if (folder / "result.json").exists():
        return
    if (folder / "config.toml").exists():
        amc("resume", str(folder))
    else:
        amc("search", *task("resnet56", 0.5, data, weights), "--preset", "paper", "--out", str(folder))


def paper_section() -> str:
    """What the paper's preset found."""
    result: dict[str, Any] = json.loads((RUNS / PAPER / "result.json").read_text())
    names = [name for name in ("dense", "uniform", "found") if name in result]
    cells = [[f"{100 * result[name]['accuracy'][split]:.2f}" for name in names] for split in ("validation", "test")]
    return "\n".join(
        [
            "## ResNet-56, 50 % MACs, `--preset paper` (layer-wise repair, no starts)",
            "",
            f"{result['episodes']} episodes, {result['measured']['seconds']:.0f} s, seed 0.",
            "",
            f"| | {' | '.join(names)} |",
            "|---|" + "---|" * len(names),
            f"| validation | {' | '.join(cells[0])} |",
            f"| test | {' | '.join(cells[1])} |",
        ]
    )


def write_page(labels: Sequence[str]) -> None:
    """The committed page: every comparison that is there, its plot beside it."""
    sections = []
    for label in labels:
        page, picture = RUNS / label / "compare.md", RUNS / label / "compare.svg"
        if page.exists():
            shutil.copyfile(picture, RESULTS / f"agents_{label}.svg")
            sections.append("#" + page.read_text().replace("compare.svg", f"agents_{label}.svg"))
    if (RUNS / PAPER / "result.json").exists():
        sections.append(paper_section())
    head = (
        "# The agents\n\n`python -m experiments.learning.agents --data DIR --weights DIR`, "
        f"commit {commit()}, on {processor()}.\nDense: ResNet-56 92.96 / 93.82, ResNet-20 91.48 / 91.98 "
        "(validation / test). Seconds were taken on a machine that did other work as well.\n\n"
    )
    (RESULTS / "agents.md").write_text(head + "\n\n".join(sections) + "\n")


def main() -> None:
    """Runs what is missing and rewrites the page after every part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    data, weights = options.data.resolve(), options.weights.resolve()
    labels = [part.label for part in PARTS]
    for part in PARTS:
        if options.only in part.label:
            compare(part, data, weights)
            write_page(labels)
    if options.only in PAPER:
        paper(data, weights)
        write_page(labels)


if __name__ == "__main__":
    main()
