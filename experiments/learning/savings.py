"""Images saved (`savings.images`) against all images scored: the same decisions, and the same quality?

Command: python -m experiments.learning.savings --data DIR --weights DIR [--only decisions|searches] [--run FOLDER]
Decisions: policies of a recorded search on ResNet-56 (at most 200, --run) are scored on all images of the reward; what
a saving search would have been told of them, in their order, is compared pair by pair. Searches: ResNet-20, 50 % MACs,
five seeds with and without savings. Finished pieces under runs/savings are kept. Writes experiments/results/savings.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amc.config.parts import SavingsConfig
from amc.config.search import load_config
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring.racing import JACKKNIFE_BLOCKS, Race, bar
from amc.scoring.scorer import Score
from amc.storage.files import write_json, write_text
from envs.reward import Evaluation
from envs.space.assignment import Assignment, Key
from experiments.chain import commit, processor
from experiments.compression.variants import play, table
from experiments.learning.agents import task

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "savings", ROOT / "experiments" / "results" / "savings.md"
IMAGES, POLICIES, SEEDS = 1000, 200, 5
VARIANTS = {"all images": [], "savings": ["--set", f"savings.images={IMAGES}"]}
POINTS = (0.003, 0.001, 0.0)
"""Pairs count whose accuracies differ by more than this."""


class Told(NamedTuple):
    """What a search is told of a policy when all images are scored, and when images are saved."""

    plain: Evaluation
    saving: Evaluation


def recorded(run: Path) -> tuple[Prepared, list[Key]]:
    """The search of a finished run, as it would be with savings, and its distinct policies in order."""
    config = load_config(run / "config.toml", {}).model_copy(update={"savings": SavingsConfig(images=IMAGES)})
    lines = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    keys = dict.fromkeys(tuple(line["choices"]) for line in lines if "failed" not in line)
    return prepare(set_up(config)), list(keys)


def scored(prepared: Prepared, assignment: Assignment) -> Score:
    """One policy on all images of the reward after quick repair."""
    measure = prepared.measurement
    small, _ = measure.compressor.compress(prepared.policy(assignment), quick=True, half=measure.half)
    return measure.scorer(small, measure.split, measure.images, measure.dense)


def replayed(prepared: Prepared, scores: Sequence[Score]) -> list[Told]:
    """What both kinds of search are told, round by round."""
    told: list[Told] = []
    config, setup = prepared.config, prepared.setup
    reward = setup.reward
    images = len(setup.draws.reward())
    for start in range(0, len(scores), config.round_size):
        known = [(reward(one.saving), one.saving) for one in told]
        race = Race(first=IMAGES, error=config.savings.error, reward=reward, bar=bar(known, config.confirm, images))
        for score in scores[start : start + config.round_size]:
            first = score.at(range(IMAGES))
            begun = replace(first.evaluation({}, 0), blocks=first.blocks(JACKKNIFE_BLOCKS))
            plain = score.evaluation({}, 0)
            told.append(Told(plain, race.settled(begun, lambda plain=plain: plain)))  # type: ignore[misc]
    return told


def decisions(run: Path) -> dict[str, Any]:
    """Share of pairs on which both agree, and of the images that the saving one scores."""
    prepared, policies = recorded(run)
    setup, confirm, scores = prepared.setup, prepared.config.confirm, []
    for number, key in enumerate(policies[:POLICIES], start=1):
        scores.append(scored(prepared, setup.assignment(key)))
        print(f"{number} of {min(POLICIES, len(policies))} policies", flush=True)
    told = replayed(prepared, scores)
    plain, saving = (np.array([setup.reward(one[k]) for one in told]) for k in (0, 1))
    accuracy = np.array([one.plain.accuracy for one in told])
    i, j = np.triu_indices(len(told), 1)
    agree = (plain[i] < plain[j]) == (saving[i] < saving[j])
    pairs = {
        str(100 * points): [int(wide.sum()), float(agree[wide].mean())]
        for points in POINTS
        if (wide := abs(accuracy[i] - accuracy[j]) > points).any()
    }
    best, confirmed = ({int(k) for k in (-values).argsort()[:confirm]} for values in (plain, saving))
    return {
        "policies": len(told),
        "pairs": pairs,
        "same_best": len(best & confirmed),
        "best": confirm,
        "images": float(np.mean([one.saving.images / one.plain.images for one in told])),
        "commit": commit(),
    }


def decisions_section(found: dict[str, Any]) -> str:
    """Agreement of pairs."""
    rows = [f"| {points} | {count:,} | {share:.2%} |" for points, (count, share) in found["pairs"].items()]
    return "\n".join(
        [
            f"## Decisions on {found['policies']} recorded policies of ResNet-56",
            "",
            f"Commit {found['commit']}. Scored images: {found['images']:.0%} of the plain way's. "
            f"Of the {found['best']} best policies, {found['same_best']} are the same.",
            "",
            "| accuracies differ by more than, points | pairs | same decision |",
            "|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    """Does what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=None, help="finished search on cifar10-resnet56, savings off")
    parser.add_argument("--only", choices=("decisions", "searches"), default=None)
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if options.only != "searches" and options.run is not None:
        write_json(RUNS / "decisions.json", decisions(options.run))
    if options.only != "decisions":
        play(RUNS, task("resnet20", 0.5, options.data.resolve(), options.weights.resolve()), VARIANTS, SEEDS)
    parts = [
        "# Images saved\n\n`python -m experiments.learning.savings --data DIR --weights DIR --run RUN`, "
        f"on {processor()}: every policy is scored on {IMAGES:,} of the reward's 2,500 images."
    ]
    if (RUNS / "decisions.json").exists():
        parts.append(decisions_section(json.loads((RUNS / "decisions.json").read_text())))
    if (RUNS / "savings-0" / "result.json").exists():
        parts.append("## Searches, ResNet-20, 50 % MACs\n\n" + table(RUNS, VARIANTS, SEEDS))
    write_text(TABLE, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
