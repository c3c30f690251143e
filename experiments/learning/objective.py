"""Which cheap reward predicts the confirmed accuracy? Policies around the knapsack's, every reward on each of them.

Command: python -m experiments.learning.objective --data DIR --weights DIR [--policies 40] [--network resnet56]
Every policy is repaired in full (2,000 images x 16 positions) and with less, and scored on images of both kinds:
validation images, and training images that repair does not see. What each reward would say is compared, by rank
(Spearman), with the accuracy of the fully repaired network on the rest of the validation images, which no reward
saw. Logits are kept under runs/objective, so that a stopped run goes on. Writes experiments/results/objective.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from amc.config.search import SearchConfig
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring.scorer import read
from amc.search.starts import best_knapsack
from amc.search.tools import Tools
from amc.storage.files import write_bytes
from envs.compression.damage import output_error
from envs.regression.statistics import Sampling
from envs.repair.targets import Targets, record_targets
from envs.repair.walk import RepairWalk
from envs.space.assignment import Assignment
from envs.units.slicing import kept_axes
from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parents[2]
RUNS, PAGE = ROOT / "runs" / "objective", ROOT / "experiments" / "results" / "objective.md"
FULL = "2000 x 16"
REPAIRS = {FULL: (2000, 16)} | {
    f"{k} x {n}": (k, n) for k, n in [(1000, 16), (1000, 8), (500, 16), (500, 8), (250, 16)]
}
"""Calibration images and positions per image."""
SIGMAS = (0.03, 0.06, 0.1)
IMAGES = 2000
"""Images that a reward sees."""


class Seen(NamedTuple):
    """What a reward sees: logits of the pruned network and of the dense one, and classes."""

    logits: Tensor
    dense: Tensor
    targets: Tensor


def accuracy(seen: Seen) -> float:
    return float((seen.logits.argmax(1) == seen.targets).double().mean())


def loss(seen: Seen) -> float:
    return -float(F.cross_entropy(seen.logits, seen.targets))


def softened_loss(seen: Seen) -> float:
    return -float(F.cross_entropy(seen.logits / 4, seen.targets))


def probability(seen: Seen) -> float:
    return float(seen.logits.softmax(1).gather(1, seen.targets[:, None]).mean())


def softened_probability(seen: Seen) -> float:
    return float((seen.logits / 2).softmax(1).gather(1, seen.targets[:, None]).mean())


def divergence(temperature: float) -> Callable[[Seen], float]:
    def reward(seen: Seen) -> float:
        new, old = (F.log_softmax(x.double() / temperature, dim=1) for x in (seen.logits, seen.dense))
        return -float((old.exp() * (old - new)).sum(1).mean())

    return reward


def squared_error(seen: Seen) -> float:
    return -float(output_error(seen.logits, seen.dense, seen.targets).double().mean())


REWARDS: dict[str, Callable[[Seen], float]] = {
    "accuracy": accuracy,
    "-loss": loss,
    "-loss, T = 4": softened_loss,
    "mean probability of the class": probability,
    "the same, T = 2": softened_probability,
    "-KL to dense": divergence(1),
    "-KL to dense, T = 4": divergence(4),
    "-squared error of the outputs": squared_error,
}


def logits(prepared: Prepared, network: nn.Module, split: str, indices: Sequence[int]) -> Tensor:
    """[N, K] outputs on some images."""
    task = prepared.setup.task
    data = task.validation if split == "validation" else task.calibration
    return torch.cat(prepared.setup.scorer.outputs(network, data, indices))


def recorded(prepared: Prepared) -> dict[str, Targets]:
    """What each repair aims at."""
    compressor, seed = prepared.compressor, prepared.config.seed
    return {
        name: record_targets(
            compressor.network,
            compressor.graph,
            compressor.dense.chunks[: -(-images // 125)],
            Sampling(positions=positions, seed=seed),
        )
        for name, (images, positions) in REPAIRS.items()
    }


def repaired(prepared: Prepared, assignment: Assignment, targets: Targets) -> nn.Module:
    """The network of some widths, repaired toward these targets."""
    compressor, policy = prepared.compressor, prepared.policy(assignment)
    small = compressor.compress(policy, "none").network
    repair = RepairWalk(
        network=compressor.network, graph=compressor.graph, ridge=compressor.settings.ridge, targets=targets
    )
    repair(small, kept_axes(compressor.network, compressor.units, policy.kept()))
    return small


def draw(prepared: Prepared, start: Assignment, index: int) -> Assignment:
    """The start, then policies around it at several distances, scaled back to the budget."""
    if index == 0:
        return start
    generator = np.random.default_rng([7, index])
    setup = prepared.setup
    ratios = start.values / setup.constraint.costing.dense()
    moved = ratios + SIGMAS[index % len(SIGMAS)] * generator.standard_normal(len(ratios))
    return setup.assignment(setup.constraint.scaled(np.clip(moved, 0.05, 1.0)))


def play(
    prepared: Prepared, start: Assignment, index: int, path: Path, targets: Mapping[str, Targets]
) -> dict[str, Tensor]:
    """Logits of one policy under every repair; from disk what is there."""
    found = safetensors.torch.load_file(path) if path.exists() else {}
    missing = [name for name in REPAIRS if f"{name}|validation" not in found]
    if not missing:
        return found
    assignment = draw(prepared, start, index)
    setup = prepared.setup
    for name in missing:
        network = repaired(prepared, assignment, targets[name])
        whole = range(len(setup.task.validation)) if name == FULL else range(IMAGES)
        found[f"{name}|validation"] = logits(prepared, network, "validation", whole)
        found[f"{name}|training"] = logits(prepared, network, "training", setup.draws.audition()[1][:IMAGES])
    write_bytes(path, safetensors.torch.save(found))
    return found


def main() -> None:
    """Plays every policy, correlates, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--policies", type=int, default=40)
    options = parser.parse_args()
    config = SearchConfig(
        task=f"cifar10-{options.network}",
        data=options.data,
        checkpoint=options.weights / f"{options.network}_cifar10.safetensors",
        agent="knapsack",
    )
    prepared = prepare(set_up(config))
    task = prepared.setup.task
    unseen = prepared.setup.draws.audition()[1][:IMAGES]
    folder = RUNS / options.network
    folder.mkdir(parents=True, exist_ok=True)
    start = best_knapsack(prepared, InProcess(), Tools.of(prepared, InProcess()))
    aims = recorded(prepared)
    whole_split = range(len(task.validation))
    targets = {
        "validation": read(task.validation, whole_split)[1],
        "training": read(task.calibration, unseen)[1],
    }
    dense = {
        "validation": logits(prepared, task.network, "validation", whole_split),
        "training": logits(prepared, task.network, "training", unseen),
    }
    rows: list[dict[str, float]] = []
    whole: list[Seen] = []
    for index in range(options.policies):
        began = time.perf_counter()
        found = play(prepared, start, index, folder / f"{index}.safetensors", aims)
        rest = slice(IMAGES, None)
        whole.append(Seen(found[f"{FULL}|validation"], dense["validation"], targets["validation"]))
        row = {
            "confirmed": accuracy(
                Seen(found[f"{FULL}|validation"][rest], dense["validation"][rest], targets["validation"][rest])
            )
        }
        for key, values in found.items():
            split = key.split("|")[1]
            seen = Seen(values[:IMAGES], dense[split][:IMAGES], targets[split][:IMAGES])
            row |= {f"{key}|{name}": reward(seen) for name, reward in REWARDS.items()}
        rows.append(row)
        print(f"{index + 1} of {options.policies}: {row['confirmed']:.4f}, {time.perf_counter() - began:.0f} s")
    write_page(rows, halves(whole), options.network)


def halves(policies: Sequence[Seen], splits: int = 100) -> list[str]:
    """Lines of a table: what a reward on one half of validation says of the other half (mean correlation)."""
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in REWARDS}
    for split in range(splits):
        order = torch.randperm(len(policies[0].targets), generator=torch.Generator().manual_seed(split))
        for half in order.chunk(2):
            parts = [Seen(*(tensor[half] for tensor in seen)) for seen in policies]
            for name, reward in REWARDS.items():
                values[name].append(np.asarray([reward(part) for part in parts]))
    lines = []
    for name in REWARDS:
        pairs = [(values[name][k], values[name][k ^ 1], values["accuracy"][k ^ 1]) for k in range(2 * splits)]
        itself, other = (np.mean([np.corrcoef(p[0], p[k])[0, 1] for p in pairs]) for k in (1, 2))
        lines.append(f"| {name} | {itself:.2f} | {other:.2f} |")
    return lines


def write_page(rows: Sequence[dict[str, float]], by_halves: Sequence[str], network: str) -> None:
    """Rank correlations with the confirmed accuracy, with bootstrap standard errors over policies."""
    confirmed = np.asarray([row["confirmed"] for row in rows])
    lines = []
    for name in REWARDS:
        cells = []
        for split in ("validation", "training"):
            for repair in REPAIRS:
                values = np.asarray([row[f"{repair}|{split}|{name}"] for row in rows])
                cells.append(f"{spearmanr(values, confirmed).statistic:.2f} ± {spread(values, confirmed):.2f}")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    heads = [f"{split}, {repair}" for split in ("validation", "training") for repair in REPAIRS]
    text = f"""# Which reward predicts the confirmed accuracy

`python -m experiments.learning.objective --data DIR --weights DIR --network {network} --policies {len(rows)}`, commit
{commit()}, on {processor()}.

{len(rows)} policies of {network}, CIFAR-10, 50 % MACs: the knapsack's, and others around it (preserve ratios moved by
{", ".join(map(str, SIGMAS))}, scaled back to the budget). A reward sees {IMAGES:,} images: of the validation split, or
training images that repair does not use; after repair on that many calibration images x positions. Numbers are rank
correlations (Spearman, ± bootstrap standard error) with the accuracy on the other {5000 - IMAGES:,} validation images
after full repair, which range from {confirmed.min():.2%} to {confirmed.max():.2%}.

| reward | {" | ".join(heads)} |
|---|{"---|" * len(heads)}
"""
    text += (
        "\n".join(lines)
        + """

The same policies, fully repaired: correlation (Pearson) of a reward on a random half of the validation images with
itself, and with the accuracy, on the other half; mean over 100 halvings. A reward that does not even agree with itself
is noise.

| reward | with itself | with accuracy |
|---|---|---|
"""
    )
    PAGE.write_text(text + "\n".join(by_halves) + "\n")


def spread(values: NDArray[np.float64], confirmed: NDArray[np.float64]) -> float:
    """Bootstrap standard error of the rank correlation over policies."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(values), size=(300, len(values)))
    return float(np.std([spearmanr(values[pick], confirmed[pick]).statistic for pick in picks]))


if __name__ == "__main__":
    main()
