"""One agent for a range of budgets against the knapsack solved again and against searches at every budget.

Command: python -m experiments.learning.ranges --data DIR --weights DIR [--only LABEL] [--seeds N] [--agents ...]
Resumable: finished runs under runs/ranges are kept, stopped ones go on. Writes experiments/results/ranges.md after
every seed, of whatever has ended. DIR holds cifar10_*.npz, resnet{20,56}_cifar10.safetensors and the folder
kwt1-speech-commands.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from amc.scoring.paired import Difference, paired_difference
from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parents[2]
RUNS, PAGE = ROOT / "runs" / "ranges", ROOT / "experiments" / "results" / "ranges.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One network and cost.

    Attributes:
        label: For people and folders.
        network: Of `TASKS`.
        cost: What is bounded.
        span: The range that is learned.
        budgets: Where agents are asked; none of them is drawn exactly.
        rivals: Agents that search at each budget by itself, beside the knapsack, which all are measured by.
        agent_from: Label of the part whose agent goes on here; a part without it starts anew.
        episodes: Of the search over the range.
        options: Further options of every search.
    """

    label: str
    network: str
    cost: str
    span: str
    budgets: tuple[float, ...]
    rivals: tuple[str, ...] = ()
    agent_from: str = ""
    episodes: int = 600
    options: tuple[str, ...] = ()

    @property
    def alone(self) -> Path:
        """Folder of the searches at one budget, which parts of the same network and cost share."""
        return RUNS / f"{self.network}-{self.cost}-alone"


KNAPSACK = "knapsack"
START = "start"
"""The knapsack solved again on the curves as measured or as the range corrected them, whichever has the better reward;
answers of the first agent are compared with it.
"""
PROFILE = ("--profile", "amd-epyc-onnxruntime-t1-b1")


def beginnings(network: str, span: str, budgets: tuple[float, ...]) -> tuple[Part, Part]:
    """20 episodes, after the 12 of the knapsack, of a new agent and of one that is carried over."""
    anew = Part(label=f"{network}-anew", network=network, cost="macs", span=span, budgets=budgets, episodes=32)
    return anew, replace(anew, label=f"{network}-carried", agent_from="resnet20")


PARTS = (
    Part(
        label="resnet20",
        network="resnet20",
        cost="macs",
        span="0.2:0.7",
        budgets=(0.25, 0.35, 0.45, 0.55, 0.65),
        rivals=("swap", "cmaes", "ddpg-alone"),
    ),
    Part(label="resnet56", network="resnet56", cost="macs", span="0.15:0.45", budgets=(0.2, 0.3, 0.4)),
    Part(
        label="resnet56-latency",
        network="resnet56",
        cost="latency",
        span="0.45:0.85",
        budgets=(0.5, 0.65, 0.8),
        options=PROFILE,
    ),
    *beginnings("resnet56", "0.15:0.45", (0.2, 0.3, 0.4)),
    *beginnings("cluttered", "0.06:0.2", (0.08, 0.15)),
    *beginnings("kwt1", "0.3:0.6", (0.35, 0.5)),
)
TASKS = {
    "resnet20": "cifar10-resnet20",
    "resnet56": "cifar10-resnet56",
    "cluttered": "cluttered-digits",
    "kwt1": "experiments.transformers.speech:kwt1",
}
LAST = 20
"""Episodes whose mean reward is shown: all but the 12 of the knapsack, where an agent is carried over."""


def amc(*arguments: str) -> None:
    """The command line, as a person would call it."""
    subprocess.run([sys.executable, "-m", "amc.cli", *arguments], check=True, cwd=ROOT)


def going(folder: Path, *arguments: str) -> Path:
    """A run that has ended: begun, gone on with, or kept."""
    if (folder / "result.json").exists():
        return folder
    if (folder / "snapshot.safetensors").exists():
        amc("resume", str(folder))
    else:
        amc(*arguments, "--out", str(folder), "--fresh")
    return folder


def source(network: str, data: Path, weights: Path) -> list[str]:
    """Options that name a task, where its data is, and its weights."""
    task = ["--task", TASKS[network]]
    if network.startswith("resnet"):
        task += ["--data", str(data), "--checkpoint", str(weights / f"{network}_cifar10.safetensors")]
    elif network == "kwt1":
        task += ["--data", str(data / "kwt1-speech-commands")]
    return task


def won_back(folder: Path) -> float:
    """The share of the knapsack's loss that the last episodes of a search over a range won back, in the mean."""
    lines = (folder / "episodes.jsonl").read_text().splitlines()[-LAST:]
    return float(np.mean([json.loads(line)["reward"] for line in lines]))


def play(part: Part, agents: Sequence[str], seed: int, options: argparse.Namespace) -> None:
    """All runs of one part with one seed."""
    task = source(part.network, options.data.resolve(), options.weights.resolve())
    common = [*task, *part.options, "--seed", str(seed)]
    for agent in agents:
        taught = ["--set", f"agent_from={RUNS / part.agent_from / agent / str(seed)}"] if part.agent_from else []
        range_ = ["--constraint", f"{part.cost}={part.span}", "--episodes", str(part.episodes), "--agent", agent]
        folder = going(RUNS / part.label / agent / f"{seed}", "search", *common, *range_, *taught)
        for budget in part.budgets:
            asked = ["--constraint", f"{part.cost}={budget}"]
            going(RUNS / part.label / agent / f"{seed}-{budget}", "policy", str(folder), *task[:2], *asked)
    for rival in (KNAPSACK, *part.rivals):
        for budget in part.budgets:
            asked = ["--constraint", f"{part.cost}={budget}", "--agent", rival.partition("-")[0]]
            going(part.alone / rival / f"{seed}-{budget}", "search", *common, *asked)


def each(folder: Path, network: str) -> NDArray[np.float32]:
    """[N] whether every validation and test image is right."""
    scores = safetensors.numpy.load_file(folder / "scores.safetensors")
    return np.concatenate([scores[f"{network}|{split}"] for split in ("validation", "test")])


def rows(part: Part, agents: Sequence[str]) -> Iterator[str]:
    """A line of the table per agent and budget, and one of the mean over budgets."""
    for agent in (START, *agents, *part.rivals):
        pairs: dict[int, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
        searched, network = (agents[0], "start") if agent == START else (agent, "found")
        folder, plain = (part.alone if agent in part.rivals else RUNS / part.label) / searched, part.alone / KNAPSACK
        for budget in part.budgets:
            made = sorted(folder.glob(f"*-{budget}"))
            ended = [f for f in made if all((one / "result.json").exists() for one in (f, plain / f.name))]
            if not ended:
                continue
            found = [each(one, network) for one in ended]
            start = [each(plain / one.name, "found") for one in ended]
            for place, pair in enumerate(zip(found, start, strict=True)):
                pairs.setdefault(place, []).append(pair)
            accuracy = np.mean([100 * one.mean() for one in found])
            gain = text(paired_difference(found, start))
            yield f"| {agent} | {budget} | {len(ended)} | {accuracy:.2f} | {gain} | {effort(ended):,} |"
        whole = [own for own in pairs.values() if len(own) == len(part.budgets)]
        if whole:
            means = [[np.mean([pair[side] for pair in own], axis=0) for own in whole] for side in (0, 1)]
            yield f"| {agent} | mean | {len(whole)} | | {text(paired_difference(*means))} | |"


def text(difference: Difference) -> str:
    """Points, with half of the 95 % interval."""
    return f"{100 * difference.mean:+.2f} ± {100 * difference.half_width:.2f}"


def effort(folders: Sequence[Path]) -> int:
    """Mean image-forwards."""
    results: list[dict[str, Any]] = [json.loads((folder / "result.json").read_text()) for folder in folders]
    return round(float(np.mean([result["image_forwards"] for result in results])))


def write(parts: Sequence[Part], agents: Sequence[str]) -> None:
    """The page, of all runs that have ended."""
    lines = [
        "# One agent for a range of budgets",
        "",
        f"`python -m experiments.learning.ranges`, commit {commit()}, {processor()}.",
        "",
        "Accuracy, and gain over the knapsack solved again at this budget, paired over all 10,000 images, ± half of",
        "the 95 % interval. `start`: the knapsack on the curves as measured or as the range corrected them, whichever",
        "has the better reward.",
        "Effort is image-forwards of the run itself: an answer comes on top of the search over the range, which is in",
        "the line above each table, with the share of the knapsack's loss that its last episodes won back, in the mean",
        "and by the reward. `ddpg-alone` is ddpg at this budget only.",
    ]
    for part in parts:
        body = list(rows(part, agents))
        if not body:
            continue
        searched = [
            f for agent in agents for f in (RUNS / part.label / agent).glob("[0-9]") if (f / "result.json").exists()
        ]
        paid = f"{effort(searched):,} image-forwards" if searched else "not ended"
        if searched:
            paid += f"; won back by the last {LAST}: {np.mean([won_back(folder) for folder in searched]):.2%}"
        lines += ["", f"## {part.label}: {part.cost} {part.span}, {part.episodes} episodes ({paid})", ""]
        lines += [
            "| agent | budget | seeds | accuracy, % | gain, points | image-forwards |",
            "|---|---|---|---|---|---|",
        ]
        lines += body
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Runs what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agents", nargs="+", default=["ddpg", "cmaes"], help="agents that learn for the range")
    options = parser.parse_args()
    parts = [part for part in PARTS if options.only in part.label]
    for seed in range(options.seeds):
        for part in parts:
            agents = [agent for agent in options.agents if not part.agent_from or agent != "cmaes"]
            play(part, agents, seed, options)
            write(PARTS, options.agents)


if __name__ == "__main__":
    main()
