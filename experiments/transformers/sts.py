"""MiniLM on STS-B under budgets of its multiply-accumulates, beside its rivals; writes experiments/results/minilm.md.

Command: python -m experiments.transformers.sts --data DIR [--budgets 0.5 0.35 0.25] [--seeds 3] [--only knapsack kwon]
All 1,250 dev pairs are the test and are looked at once for each network. Calibration and the reward see pairs of the
training set. Every finished network leaves its cosines in runs/sts, and is not made again; searches that were stopped
go on. What is counted: linear layers of the encoder and both products of attention, for two sentences of 32 words.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc.config.search import SearchConfig, load_config
from amc.export.rebuild import load
from amc.problem.prepare import calibrate, calibration_plan
from amc.problem.setup import Setup, set_up
from amc.scoring.draws import read_batches
from amc.storage.files import read_json, write_json, write_text
from envs.compression.compress import Compressor
from envs.network.inputs import Inputs, call
from envs.regression.statistics import input_moments, totals
from envs.space.policy import Policy, UnitPolicy
from experiments.chain import commit, processor
from experiments.transformers import flap, kwon
from experiments.transformers.minilm import HEAD_WIDTH, SentenceEncoder, cosines

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "sts", ROOT / "experiments" / "results" / "minilm.md"
RECIPE = ROOT / "experiments" / "recipes" / "minilm_half.toml"
TASK = "experiments.transformers.minilm:stsb"
FISHER_PAIRS = 2048
"""Pairs that Kwon et al. look at, as in the paper."""
RESAMPLES = 2000
PEAK, POLL_SECONDS = "peak.json", 0.2
FloatArray = NDArray[np.float64]
PLAIN: Mapping[str, Mapping[str, str]] = {
    "uniform": {},
    "magnitude": {"importance": "l1", "repair": "none"},
    "flap": {"importance": "fluctuation", "repair": "none"},
    "kwon": {"importance": "l1", "repair": "none"},
}
"""How networks that are not searched are made, by what differs from the recipe."""
OF_HEADS = "knapsack over heads"
METHODS = ("knapsack", "ddpg", OF_HEADS, "uniform widths", *PLAIN)


def config_of(method: str, budget: float, seed: int, data: Path) -> SearchConfig:
    """The recipe at another budget, with what one method needs."""
    base = load_config(RECIPE, {}).model_dump(mode="json")
    if method in PLAIN:
        base["rules"]["attention"] = "heads"
    compression = {**base["compression"], **PLAIN.get(method, {})}
    return load_config(
        None, {**base, "data": data, "constraint": {"macs": budget}, "seed": seed, "compression": compression}
    )


def run_of(method: str, budget: float, seed: int) -> Path:
    """Where the search of a method is stored."""
    return RUNS / f"{method}-{budget:g}-{seed}".replace(" ", "-")


def found_network(method: str, budget: float, seed: int, data: Path) -> nn.Module:
    """What `amc search` finds, in a process of its own, whose peak of memory is written beside the run."""
    run = run_of(method, budget, seed)
    if not (run / "result.json").exists():
        options = ["--set", f"constraint.macs={budget:g}", "--seed", str(seed), "--data", str(data)]
        options += ["--agent", "knapsack", "--attention", "heads"] if method == OF_HEADS else ["--agent", method]
        words = ["resume", str(run)] if (run / "config.toml").exists() else ["search", str(RECIPE), "--out", str(run)]
        words += ["--task", TASK, *(options if words[0] == "search" else [])]
        peak = peak_of([sys.executable, "-m", "amc.cli", *words])
        write_json(run / PEAK, {"kib": peak})
    return load(run)


def peak_of(command: Sequence[str]) -> int:
    """The peak of memory of a process that is waited for, in KiB, as Linux counts it.

    `getrusage` would give that of this process, too: a child begins with its parent's.

    Raises:
        subprocess.CalledProcessError: If the process fails.
    """
    peak = 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        status = Path("/proc", str(process.pid), "status")
        while process.poll() is None:
            lines = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            peak = max([peak, *(int(line.split()[1]) for line in lines)])
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def of_channels(compressor: Compressor, kept: Mapping[str, Sequence[int]]) -> Policy:
    """The policy that keeps these channels."""
    policy = compressor.policy({})
    units = (UnitPolicy(unit=entry.unit, indices=tuple(kept[entry.unit.name])) for entry in policy.units)
    return replace(policy, units=tuple(units))


def spending(setup: Setup) -> tuple[dict[str, float], float]:
    """Multiply-accumulates of one channel of each unit, and what all channels together may cost."""
    constraint, dense = setup.constraint, setup.constraint.costing.dense()
    whole = constraint.costs(dense)["macs"]
    costs = {}
    for place, site in enumerate(setup.sites):
        less = dense.copy()
        less[place] -= 1
        costs[site.name] = whole - constraint.costs(less)["macs"]
    spent = sum(costs[site.name] * site.size for site in setup.sites)
    return costs, constraint.limits()["macs"] - (whole - spent)


def flap_network(setup: Setup, compressor: Compressor) -> nn.Module:
    """What FLAP keeps, means in the biases."""
    costs, budget = spending(setup)
    dense, readers = compressor.dense, [unit.role("consumer")[0].module for unit in compressor.units]
    moments = totals(input_moments(dense.network, readers, dense.chunks, dense.sampling))
    scores = flap.standardized(dense.network, compressor.units, moments)
    return compressor.compress(of_channels(compressor, flap.within(scores, costs, budget))).network


def kwon_network(setup: Setup, compressor: Compressor) -> nn.Module:
    """What Kwon et al. keep, masks tuned; the loss is that of the cosines from the scores, which labels tell."""
    costs, budget = spending(setup)
    batches = read_batches(setup.task.calibration, setup.draws.calibration()[:FISHER_PAIRS], 32)
    gradients = kwon.mask_gradients(compressor.network, compressor.units, batches, squared_distances)
    fisher = {name: np.square(rows).mean(axis=0) for name, rows in gradients.items()}
    kept = kwon.rearranged(kwon.search_masks(fisher, costs, budget), gradients)
    small = compressor.compress(of_channels(compressor, kept)).network
    tuning = read_batches(setup.task.calibration, setup.draws.repair()[: calibration_plan(setup).images], 32)
    assert isinstance(compressor.network, SentenceEncoder)
    assert isinstance(small, SentenceEncoder)
    return kwon.tuned(compressor.network, small, tuning, HEAD_WIDTH)


def squared_distances(embeddings: Tensor, scores: Tensor) -> Tensor:
    """[B] squared difference of cosines from scores in [0, 1]."""
    return (cosines(embeddings) - scores / 5).square()


def uniform_network(setup: Setup, compressor: Compressor) -> nn.Module:
    """The same share of everything that is decided: heads or their widths, and neurons."""
    return compressor.compress(compressor.policy_of(setup.uniform())).network


MAKERS: Mapping[str, Callable[[Setup, Compressor], nn.Module]] = {
    "uniform": uniform_network,
    "uniform widths": uniform_network,
    "magnitude": uniform_network,
    "flap": flap_network,
    "kwon": kwon_network,
}


def counted_macs(network: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates as torch counts them, attention as two products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(network, example)
    return int(counter.get_total_flops()) // 2


def measured(method: str, budget: float, seed: int, data: Path) -> dict[str, Any]:
    """Cosines of all dev pairs and costs of one network, from runs/sts if it was measured before."""
    run = run_of(method, budget, seed)
    path = run.parent / f"{run.name}.json"
    if not path.exists():
        began = time.process_time(), time.perf_counter()
        setup = set_up(config_of(method, budget, seed, data))
        if method == "dense":
            small = setup.task.network
        else:
            made = MAKERS.get(method)
            small = made(setup, calibrate(setup)) if made else found_network(method, budget, seed, data)
        seconds = time.process_time() - began[0], time.perf_counter() - began[1]
        test = setup.task.test
        score = setup.scorer(small, test, range(len(test)))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        usage = read_json(run / PEAK, "a peak")["kib"] if (run / PEAK).exists() else own
        RUNS.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "cosines": score.statistics[0].tolist(),
                "scores": score.statistics[1].tolist(),
                "macs": counted_macs(small, setup.task.example_input),
                "parameters": sum(one.numel() for one in small.parameters()),
                "cpu_seconds": seconds[0],
                "seconds": seconds[1],
                "peak_gb": usage * 1024 / 1e9,
                "commit": commit(),
            },
        )
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def spearman_of(rows: FloatArray, scores: FloatArray) -> FloatArray:
    """[R] rank correlations times 100 of [R, N] cosines and scores."""
    ranks = [rankdata(values, axis=1) for values in (rows, scores)]
    centred = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    norms = [np.sqrt(np.square(one).sum(axis=1)) for one in centred]
    return np.asarray(100 * (centred[0] * centred[1]).sum(axis=1) / (norms[0] * norms[1]))


def value(result: Mapping[str, Any]) -> float:
    """Spearman's rank correlation of one network, times 100."""
    return float(spearman_of(*(np.asarray([result[key]]) for key in ("cosines", "scores")))[0])


def difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Mean over seeds of first - second in points, and its 95 % interval: pairs and seeds are drawn, both jointly."""
    generator = np.random.default_rng(0)
    scores = np.asarray(first[0]["scores"])
    draws = generator.integers(0, len(scores), (RESAMPLES, len(scores)))
    gains = np.empty((len(first), RESAMPLES))
    for seed, (a, b) in enumerate(zip(first, second, strict=True)):
        values = [spearman_of(np.asarray(one["cosines"])[draws], scores[draws]) for one in (a, b)]
        gains[seed] = values[0] - values[1]
    seeds = generator.integers(0, len(first), (RESAMPLES, len(first)))
    resampled = gains[seeds, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    mean = statistics.mean(value(a) - value(b) for a, b in zip(first, second, strict=True))
    return mean, *np.percentile(resampled, [2.5, 97.5]).tolist()


def lines(results: Mapping[tuple[str, float], Sequence[dict[str, Any]]], dense: dict[str, Any]) -> list[str]:
    """One line for each method and budget: of the seeds that are there."""
    rows = []
    for (method, budget), found in results.items():
        own = [value(one) for one in found]
        ours = results.get(("knapsack", budget), ())[: len(found)]
        gain = ""
        if method != "knapsack" and len(ours) == len(found):
            gain = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*difference(ours, found))
        cells = [
            *(f"{budget:.0%}", method, f"**{statistics.mean(own):.2f}**", " / ".join(f"{one:.2f}" for one in own)),
            f"{statistics.mean(own) - value(dense):+.2f}",
            gain,
            f"{statistics.mean(one['macs'] for one in found) / dense['macs']:.2%}",
            f"{statistics.mean(one['seconds'] for one in found):.0f}",
            f"{max(one['peak_gb'] for one in found):.2f}",
            found[0]["commit"],
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def page(results: Mapping[tuple[str, float], Sequence[dict[str, Any]]], dense: dict[str, Any]) -> str:
    """The page of results."""
    return f"""# MiniLM on STS-B, no fine-tuning

`python -m experiments.transformers.sts --data DIR` on {processor()}. Spearman's rank correlation x 100 of the cosines
of all 1,250 dev pairs (MSRpar left out) with their scores; dense: {value(dense):.2f}, {dense["macs"]:,} MACs for two
sentences of 32 words: linear layers of the encoder and both products of attention, counted by `FlopCounterMode`.
Calibration and reward: pairs of the training set; only Kwon et al. look at their scores. Seeds draw the calibration.
The gain is the knapsack's over the line's method, paired over pairs and seeds, with its 95 % interval (bootstrap).
The knapsack decides widths of heads, cut between principal channels, and neurons; `uniform widths` gives all of them
one share. `knapsack over heads` and the other methods drop whole heads, and neurons.
Peaks of memory: the knapsack's is of its own process; the others are made in one process, whose peak only grows.

| MACs allowed | method | mean | each seed | loss | gain of the knapsack | MACs counted | seconds | peak, GB | commit |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines(results, dense))}
"""


def main() -> None:
    """Measures what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.35, 0.25])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=METHODS, nargs="+", default=[one for one in METHODS if one != "ddpg"])
    parser.add_argument("--page", type=Path, default=TABLE, help="where the page is written")
    options = parser.parse_args()
    data = options.data.resolve()
    dense = measured("dense", 1.0, 0, data)
    results: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for budget in options.budgets:
            for method in options.only:
                results.setdefault((method, budget), []).append(measured(method, budget, seed, data))
            write_text(options.page, page(dict(sorted(results.items())), dense))


if __name__ == "__main__":
    main()
