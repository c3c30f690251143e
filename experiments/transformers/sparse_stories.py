"""A language model at half of its weights, unstructured and 2:4, beside its rivals: experiments/results/stories.md.

Command: python -m experiments.transformers.sparse_stories --data DIR [--seeds 3] [--only unstructured patterns ...]
Half of the weights of all linear layers go; embedding (which is the classifier) and normalizations stay. The model is
calibrated on what it wrote itself, and judged once by the nine stories. Every network leaves the losses of all tokens
in runs/stories, and is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.config.search import load_config
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.search.allocation.baselines import allocate, wherever_legal
from amc.search.starts import best_knapsack
from amc.search.tools import Tools
from amc.storage.files import write_json, write_text
from amc.tasks.metrics import token_losses
from amc.tasks.task import Task
from envs.regression.rows import weight_of
from envs.regression.statistics import input_moments, totals
from envs.space.assignment import Assignment
from envs.space.pattern_sites import PatternSite
from experiments.chain import commit, processor
from experiments.transformers import owl
from experiments.transformers.stories import storyteller
from hw_profiles.patterns import parse_pattern

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "stories", ROOT / "experiments" / "results" / "stories.md"
DENSITIES = tuple(k / 100 for k in range(5, 100, 5))
RESAMPLES = 2000
FloatArray = NDArray[np.float64]
Choose = Callable[[Prepared], Assignment]
BASE: Mapping[str, Any] = {
    "task": "experiments.transformers.stories:stories",
    "backend": {"name": "fp32"},
    "knapsack": {"images": 32, "audition_images": 32},
}


def uniform(prepared: Prepared) -> Assignment:
    """Every layer as dense as the others, or as wide."""
    setup = prepared.setup
    if setup.config.choose == "channels":
        return setup.uniform()
    return setup.assignment(allocate(setup.constraint, setup.task.network, "uniform"))


def wherever(prepared: Prepared) -> Assignment:
    """2:4 in every layer."""
    return prepared.setup.assignment(wherever_legal(prepared.setup.sites, "2:4"))


def by_outliers(prepared: Prepared) -> Assignment:
    """OWL's densities, each as near as the choices let it be."""
    setup, dense = prepared.setup, prepared.compressor.dense
    sites = [site for site in setup.sites if isinstance(site, PatternSite)]
    layers = [site.layer for site in sites]
    moments = totals(input_moments(dense.network, layers, dense.chunks, dense.sampling))
    wanted = owl.densities(dense.network, layers, moments, 0.5)
    while True:  # rounding may exceed the budget
        values = [
            int(site.values()[np.abs(_own(site) - one).argmin()]) for site, one in zip(sites, wanted, strict=True)
        ]
        if bool(setup.constraint.keeps(np.asarray([values]))[0]):
            return setup.assignment(values)
        wanted = wanted - 0.005


def _own(site: PatternSite) -> FloatArray:
    return np.asarray([parse_pattern(pattern).density for pattern in site.patterns()])


def knapsack(prepared: Prepared) -> Assignment:
    """Our ratios."""
    return best_knapsack(prepared, InProcess(), Tools.of(prepared, InProcess()))


UNSTRUCTURED: Mapping[str, tuple[str, str, Choose]] = {
    "magnitude, uniform": ("magnitude", "none", uniform),
    "Wanda, uniform": ("wanda", "none", uniform),
    "SparseGPT, uniform": ("sparsegpt", "none", uniform),
    "SparseGPT and sequential repair, uniform": ("sparsegpt", "sequential", uniform),
    "SparseGPT and sequential repair, OWL": ("sparsegpt", "sequential", by_outliers),
    "SparseGPT and sequential repair, our ratios": ("sparsegpt", "sequential", knapsack),
}
PATTERNS: Mapping[str, tuple[str, str, Choose]] = {
    "magnitude, 2:4": ("magnitude", "none", wherever),
    "Wanda, 2:4": ("wanda", "none", wherever),
    "SparseGPT, 2:4": ("sparsegpt", "none", wherever),
    "SparseGPT and sequential repair, 2:4": ("sparsegpt", "sequential", wherever),
    "SparseGPT and sequential repair, our choice of 1:4, 2:4, 3:4": ("sparsegpt", "sequential", knapsack),
}
CHANNELS: Mapping[str, tuple[str, str, Choose]] = {
    "uniform, no repair": ("magnitude", "none", uniform),
    "uniform": ("magnitude", "sequential", uniform),
    "our widths": ("magnitude", "sequential", knapsack),
}
PARTS = {"unstructured": UNSTRUCTURED, "patterns": PATTERNS, "channels": CHANNELS}


def settings(part: str, choose: Choose, data: Path) -> dict[str, Any]:
    """What a part decides, and under which budget."""
    if part == "channels":
        return {"constraint": {"macs": 0.8}}
    network = storyteller(data / "model.safetensors")
    linear = sum(weight_of(one).numel() for one in network.modules() if isinstance(one, nn.Linear))
    half = {"params": float(sum(one.numel() for one in network.parameters()) - linear // 2)}
    if part == "unstructured":
        return {"choose": "unstructured", "densities": DENSITIES, "constraint": half}
    if choose is wherever:
        return {"choose": "patterns", "constraint": {"params": 1.0, "sparsity": "2:4@multiple-of-4"}}
    return {"choose": "patterns", "patterns": ("1:4", "2:4", "3:4"), "constraint": half}


def token_nats(task: Task, network: nn.Module) -> list[float]:
    """Losses of all tokens of the test, in nats."""
    found = []
    for start in range(0, len(task.test), 8):
        inputs, targets = task.test.batch(range(start, min(start + 8, len(task.test))))
        with torch.no_grad():
            losses, counted = token_losses(network(inputs), targets)
        found += losses[counted].tolist()
    return found


def measured(part: str, method: str, seed: int, data: Path) -> dict[str, Any]:
    """Losses of all tokens and costs of one network, from runs/stories if it was measured before."""
    name = "".join(letter if letter.isalnum() else "_" for letter in f"{part} {method} {seed}")
    path = RUNS / f"{name}.json"
    if not path.exists():
        selection, repair, choose = PARTS[part][method]
        began = time.perf_counter()
        compression = {"selection": selection, "repair": repair, "images": 96}
        given = {**BASE, **settings(part, choose, data), "data": data, "seed": seed, "compression": compression}
        prepared = prepare(set_up(load_config(None, given)))
        policy = prepared.policy(choose(prepared))
        small = prepared.compressor.compress(policy).network
        RUNS.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "losses": token_nats(prepared.setup.task, small),
                "dense": token_nats(prepared.setup.task, prepared.setup.task.network),
                "zeros": _zeros(small),
                "macs": prepared.setup.real_costs(small, policy.patterns())["macs"],
                "seconds": time.perf_counter() - began,
                "commit": commit(),
            },
        )
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _zeros(network: nn.Module) -> float:
    """Share of the weights of linear layers that are zero."""
    weights = [weight_of(one) for one in network.modules() if isinstance(one, nn.Linear)]
    return float(sum((one == 0).sum() for one in weights)) / sum(one.numel() for one in weights)


def ratio(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> str:
    """Perplexity of the second over that of the first with its 95 % interval; tokens are drawn, seeds averaged."""
    gains = np.mean(
        [np.asarray(b["losses"]) - np.asarray(a["losses"]) for a, b in zip(first, second, strict=True)], axis=0
    )
    draws = np.random.default_rng(0).integers(0, len(gains), (RESAMPLES, len(gains)))
    low, high = np.exp(np.percentile(gains[draws].mean(axis=1), [2.5, 97.5]))
    return f"{math.exp(gains.mean()):.3f} [{low:.3f}, {high:.3f}]"


def table(part: str, found: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """One line for each method, each compared with the line before."""
    rows, before = [], None
    for method, results in found.items():
        each = [math.exp(statistics.mean(one["losses"])) for one in results]
        cells = [
            *(method, f"**{statistics.mean(each):.3f}**", " / ".join(f"{one:.3f}" for one in each)),
            "" if before is None or len(before) != len(results) else ratio(results, before),
            *(f"{results[0]['zeros']:.1%}", f"{results[0]['macs']:,.0f}", results[0]["commit"]),
        ]
        rows.append("| " + " | ".join(cells) + " |")
        before = results
    head = "| how | perplexity | each seed | that of the line above over this one | zeros | MACs | commit |"
    return f"## {part}\n\n{head}\n|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


def main() -> None:
    """Measures what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--page", type=Path, default=TABLE, help="where the page is written")
    options = parser.parse_args()
    data = options.data.resolve()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(options.seeds):
        for part in options.only:
            for method in PARTS[part]:
                found.setdefault(part, {}).setdefault(method, []).append(measured(part, method, seed, data))
                first = next(iter(found.values()))
                dense = math.exp(statistics.mean(next(iter(first.values()))[0]["dense"]))
                write_text(options.page, page(dense, [table(part, results) for part, results in found.items()]))


def page(dense: float, tables: Sequence[str]) -> str:
    """The page of results."""
    return f"""# stories260K, a Llama-style language model, no fine-tuning

`python -m experiments.transformers.sparse_stories --data DIR` on {processor()}. Perplexity of 3,188 tokens of nine
stories, by windows of 128 words of which the last 64 count (from a story's start all); dense: {dense:.3f}.
Calibration: 96 texts of 128 words that the model wrote. Half of the weights of all linear layers go, or 20 % of all
MACs of 128 words. Intervals are over tokens (bootstrap, paired).

{chr(10).join(tables)}"""


if __name__ == "__main__":
    main()
