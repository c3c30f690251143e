"""Does what wins before fine-tuning win after it? And what fine-tuning on two cores reaches.

Command: python -m experiments.learning.finetuned PART --data DIR [--epochs N] [--threads N] [--seeds N]
DIR holds cifar10_*.npz and resnet{20,56}_cifar10.safetensors. PART is one of
  speed    images per second of a training step of both networks at half of their MACs, and epochs per 90 minutes
  ranking  ten policies of ResNet-20 at 50 % of its MACs between random widths and the knapsack's, and DDPG's, uniform
           widths, the knapsack's from random weights and rewound, each trained alike with several seeds
  accept   ResNet-20 and -56 at 50 %, searched and trained at length: `amc search` and `amc finetune`
  page     writes experiments/results/finetuned.md of what is there (every part does so at its end)
Finished pieces (JSON under runs/finetuned) are not repeated; a training that was stopped goes on with its last epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import amc
from agents.searcher import keyed_generator
from amc.config.search import load_config
from amc.export.applied import load_applied, read_policy
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.runs.finetuning.settings import FinetuneConfig
from amc.runs.finetuning.subject import Subject
from amc.runs.finetuning.trainer import finetune
from amc.search.confirm import confirmed
from amc.search.starts import best_knapsack
from amc.search.tools import Tools
from amc.storage.files import read_json, write_json, write_text
from amc.tasks.models.resnet_cifar import resnet20, resnet56
from envs.space.assignment import Assignment
from envs.space.policy import Policy, UnitPolicy, structure_fingerprint, weights_fingerprint
from envs.units.anatomy import dissect
from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parents[2]
RUNS, PAGE = ROOT / "runs" / "finetuned", ROOT / "experiments" / "results" / "finetuned.md"
POLICIES, BUDGET, SEED, MINUTES = 10, 0.5, 0, 90
NETWORKS = {"resnet20": resnet20, "resnet56": resnet56}
REWOUND_RATE, EARLY_EPOCHS = 0.1, 2
"""Highest learning rate where training begins anew, and epochs of the early checkpoint (trained here, from scratch)."""
LEGEND = """ResNet-20 at half of its MACs, repaired in full, then trained alike: mean ± standard deviation over seeds,
the epoch chosen on validation. "mixed-0" has random widths, "mixed-9" the knapsack's, those between are shares of both;
"scratch", "rewind-rate" and "rewind-weights" have the knapsack's widths. Confirmed: on images that no reward saw,
before training; of ddpg on all of validation. Learning rate 0.05, where training begins anew 0.1, falling to 0."""


class Candidate(NamedTuple):
    """A network to be trained, and what was known of it before."""

    label: str
    subject: Subject
    changes: dict[str, Any]
    before: dict[str, float]


def options_of(network: str, data: Path) -> dict[str, Any]:
    """Task and data of a network."""
    return {
        "task": f"cifar10-{network}",
        "data": str(data),
        "checkpoint": str(data / f"{network}_cifar10.safetensors"),
        "constraint": {"macs": BUDGET},
        "seed": SEED,
    }


def speed(options: argparse.Namespace) -> None:
    """Times a step of 128 images, teacher included, on widths of about half of the MACs."""
    for name, make in NETWORKS.items():
        dense = make().eval()
        units = dissect(dense, torch.zeros(1, 3, 32, 32), None).units
        kept = tuple(UnitPolicy(unit=unit, indices=tuple(range(int(0.7 * unit.channels)))) for unit in units)
        policy = Policy(structure=structure_fingerprint(dense), weights=weights_fingerprint(dense), units=kept)
        rate = images_per_second(policy.apply(dense).train(), dense, options.threads)
        epochs = int(MINUTES * 60 / (50_000 / rate + 5_000 / (2 * rate)))
        write_json(RUNS / f"speed-{name}.json", {"images_per_second": rate, "threads": options.threads})
        print(f"{name}: {rate:.0f} images per second, {epochs} epochs in {MINUTES} minutes", flush=True)


def images_per_second(small: nn.Module, dense: nn.Module, threads: int) -> float:
    """The best of ten steps."""
    torch.set_num_threads(threads)
    small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    classes, best = torch.randint(10, (128,)), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = small(images)
            with torch.no_grad():
                dense(images)
        torch.autograd.backward(F.cross_entropy(outputs.float(), classes))
        best = min(best, time.perf_counter() - began)
    return len(images) / best


def ranking(options: argparse.Namespace) -> None:
    """Trains every candidate with every seed, and keeps what came of it."""
    prepared = prepare(set_up(load_config(None, options_of("resnet20", options.data))))
    for candidate in candidates(prepared, options):
        for seed in range(options.seeds):
            path = RUNS / f"{candidate.label}-{seed}.json"
            if path.exists():
                continue
            settings = {"epochs": options.epochs, "threads": options.threads, "seed": seed, "learning_rate": 0.05}
            config = FinetuneConfig(**{**settings, **candidate.changes})
            state = RUNS / f"{candidate.label}-{seed}.safetensors"
            trained = finetune(candidate.subject, config, state)
            after = {split: score(prepared, trained.network, split) for split in ("validation", "test")}
            known = {"label": candidate.label, "seed": seed, "epochs": options.epochs, **candidate.before}
            write_json(path, {**known, **after})
            state.unlink()
            print(path.stem, after, flush=True)


def score(prepared: Prepared, network: nn.Module, split: str) -> float:
    """Accuracy on a whole split."""
    samples = getattr(prepared.setup.task, split)
    return prepared.setup.scorer(network, samples, range(len(samples))).value


def candidates(prepared: Prepared, options: argparse.Namespace) -> Iterator[Candidate]:
    """Policies from random to the knapsack's, then others and other beginnings."""
    pool = InProcess()
    tools = Tools.of(prepared, pool)
    best = best_knapsack(prepared, pool, tools)
    several = {f"mixed-{k}": assignment for k, assignment in enumerate(between(prepared, best))}
    several |= {"uniform": prepared.setup.uniform(), "knapsack": best}
    for label, assignment in several.items():
        yield candidate(prepared, tools, label, assignment)
    whole = candidate(prepared, tools, "knapsack", best)
    yield whole._replace(label="scratch", changes={"init": "scratch", "learning_rate": REWOUND_RATE})
    yield whole._replace(label="rewind-rate", changes={"learning_rate": REWOUND_RATE})
    early = early_checkpoint(prepared, options)
    rewind = replace(whole.subject, early=early)
    yield Candidate("rewind-weights", rewind, {"init": "rewind", "learning_rate": REWOUND_RATE}, whole.before)
    yield searched(prepared, options)


def between(prepared: Prepared, best: Assignment) -> Iterator[Assignment]:
    """Ratios that are shares of a random draw and of the best solution's, cut to the budget."""
    setup = prepared.setup
    for k in range(POLICIES):
        share = k / (POLICIES - 1)
        drawn = keyed_generator(SEED, "finetuned", k).uniform(0.1, 1.0, len(best.actions))
        yield setup.assignment(setup.constraint.scaled(share * np.asarray(best.actions) + (1 - share) * drawn))


def candidate(prepared: Prepared, tools: Tools, label: str, assignment: Assignment) -> Candidate:
    """A policy repaired in full, with its reward and its accuracy on images that no reward saw."""
    reward = float(prepared.setup.reward(prepared.evaluate(assignment)))
    one = next(confirmed(prepared, InProcess(), tools, None, [assignment.key]))
    unseen = one.score.at(prepared.setup.draws.confirm()).value
    subject = Subject(
        task=prepared.setup.task,
        policy=prepared.policy(assignment),
        network=one.network,
        score=lambda network: score(prepared, network, "validation"),
        channels_last=prepared.setup.anatomy.graph.channels_last,
    )
    return Candidate(label, subject, {}, {"reward": reward, "confirmed": unseen})


def early_checkpoint(prepared: Prepared, options: argparse.Namespace) -> nn.Module:
    """The dense network after two epochs from random weights: how the published one began is not known."""
    task = prepared.setup.task
    units = tuple(UnitPolicy(unit=one, indices=tuple(range(one.channels))) for one in prepared.setup.anatomy.units)
    whole = Policy(
        structure=structure_fingerprint(task.network), weights=weights_fingerprint(task.network), units=units
    )
    subject = Subject(
        task=task,
        policy=whole,
        network=task.network,
        score=lambda network: score(prepared, network, "validation"),
        channels_last=prepared.setup.anatomy.graph.channels_last,
    )
    config = FinetuneConfig(
        epochs=EARLY_EPOCHS,
        init="scratch",
        learning_rate=REWOUND_RATE,
        distillation=0.0,
        average=0.0,
        threads=options.threads,
    )
    return finetune(subject, config, RUNS / "early.safetensors").network


def searched(prepared: Prepared, options: argparse.Namespace) -> Candidate:
    """What a DDPG search finds."""
    settings = options_of("resnet20", options.data)
    out = RUNS / "ddpg"
    task, budgets = settings.pop("task"), settings.pop("constraint")
    result = amc.search(task, budgets, searcher="ddpg", out=out, progress=False, **settings)
    subject = Subject(
        task=prepared.setup.task,
        policy=read_policy(out / "policy.json"),
        network=load_applied(prepared.setup.task.network, out),
        score=lambda network: score(prepared, network, "validation"),
        channels_last=prepared.setup.anatomy.graph.channels_last,
    )
    validation = result.reports["found"].metric["validation"]
    return Candidate("ddpg", subject, {}, {"confirmed": validation})


def accept(options: argparse.Namespace) -> None:
    """Searches and trains both networks, as the command line does."""
    for name in options.networks:
        settings = options_of(name, options.data)
        task, budgets = settings.pop("task"), settings.pop("constraint")
        for seed in range(options.seeds):
            out, began = RUNS / f"accept-{name}-{seed}", time.perf_counter()
            settings["seed"] = seed
            found = amc.search(task, budgets, searcher="knapsack", out=out, **settings)
            amc.finetune(found, epochs=options.epochs, threads=options.threads, learning_rate=0.05, seed=seed)
            path = out / "minutes.json"
            spent = read_json(path, "minutes")["minutes"] if path.exists() else 0.0
            write_json(path, {"minutes": spent + (time.perf_counter() - began) / 60})


def page() -> str:
    """experiments/results/finetuned.md."""
    lines = ["# What fine-tuning makes of what was found", ""]
    lines += [f"`python -m experiments.learning.finetuned PART --data DIR` at {commit()} on {processor()}.", ""]
    return "\n".join([*lines, *_ranking_lines(), *_accept_lines()]) + "\n"


def _ranking_lines() -> list[str]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RUNS.glob("*-[0-9].json")):
        one = json.loads(path.read_text())
        found.setdefault(one["label"], []).append(one)
    head = ["| policy | reward | confirmed | test after fine-tuning | epochs | seeds |", "|---|---|---|---|---|---|"]
    lines = [LEGEND, "", *head]
    for label, ones in found.items():
        tests = [one["test"] for one in ones]
        reward = f"{ones[0]['reward']:.4f}" if "reward" in ones[0] else "-"
        lines.append(
            f"| {label} | {reward} | {ones[0]['confirmed']:.2%} | {np.mean(tests):.2%} ± {np.std(tests):.2%} | "
            f"{ones[0]['epochs']} | {len(ones)} |"
        )
    mixed = [ones for label, ones in found.items() if label.startswith("mixed")]
    if len(mixed) < 3:
        return lines if found else []
    after = [np.mean([one["test"] for one in ones]) for ones in mixed]
    ranks = {key: spearmanr([ones[0][key] for ones in mixed], after).statistic for key in ("reward", "confirmed")}
    said = " and ".join(f"{key} {value:.2f}" for key, value in ranks.items())
    return [*lines, "", f"Rank correlation (Spearman) of the {len(mixed)} mixed policies with the test after: {said}."]


def _accept_lines() -> list[str]:
    lines = []
    for path in sorted(RUNS.glob("accept-*/result.json")):
        result = read_json(path, "a result")
        if "fine-tuned" in result:
            tests = ", ".join(
                f"{name} {result[name]['accuracy']['test']:.2%}" for name in ("dense", "found", "fine-tuned")
            )
            minutes = read_json(path.with_name("minutes.json"), "minutes")["minutes"]
            epochs = result["fine-tuned"]["settings"]["epochs"]
            lines.append(f"- {path.parent.name}: {tests}; {epochs} epochs, {minutes:.0f} minutes with the search")
    return ["", "At 50 % of the MACs, test accuracy:", "", *lines] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "ranking", "accept", "page"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    options = parser.parse_args()
    options.data = options.data.resolve()
    RUNS.mkdir(parents=True, exist_ok=True)
    parts = {"speed": speed, "ranking": ranking, "accept": accept}
    if options.part in parts:
        parts[options.part](options)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
