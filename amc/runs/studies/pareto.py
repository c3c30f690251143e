"""What a sweep found, point by point: accuracy against every cost, over seeds; as table, CSV and picture.

Only what configuration and seed determine stands here, so that a sweep that was stopped ends in the same files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amc.export.applied import POLICY, WEIGHTS
from amc.reporting.pictures import fronts
from amc.scoring.paired import Difference, mean_interval
from amc.storage.files import write_bytes, write_text

PAGE, DATA, PICTURE, BEST = "sweep.md", "sweep.csv", "sweep.svg", "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All seeds of one agent under one budget.

    Attributes:
        agent: The agent that searched.
        budget: The swept budget, as it was asked for.
        costs: Cost -> largest value over the seeds.
        validation: Mean accuracy and interval over seeds, fractions.
        test: The same.
        best: Run folder of the seed that is best on validation.
        seeds: How many.
    """

    agent: str
    budget: float
    costs: Mapping[str, float]
    validation: Difference
    test: Difference
    best: Path
    seeds: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.agent}-{self.budget:g}"


def gather(agent: str, budget: float, runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> Outcome:
    """One point of a sweep.

    Args:
        agent: The agent that searched.
        budget: The swept budget.
        runs: Per seed the run folder and the content of its `result.json`.
    """
    found = [result["found"] for _, result in runs]
    if any(one["costs"].keys() != found[0]["costs"].keys() for one in found):
        raise ValueError(
            f"the runs of a sweep must have the same costs, but those of {agent} at {budget:g} differ: remove the "
            "folder that is not of this sweep"
        )
    accuracy = {split: [one["accuracy"][split] for one in found] for split in ("validation", "test")}
    costs = {name: max(one["costs"][name] for one in found) for name in found[0]["costs"]}
    best = int(np.argmax(accuracy["validation"]))
    return Outcome(
        agent=agent,
        budget=budget,
        costs=costs,
        validation=mean_interval(accuracy["validation"]),
        test=mean_interval(accuracy["test"]),
        best=runs[best][0],
        seeds=len(runs),
    )


def on_front(outcomes: Sequence[Outcome], cost: str) -> list[bool]:
    """Which are on the Pareto front of validation accuracy and a cost: nothing is better in one, no worse in both."""

    def beats(a: Outcome, b: Outcome) -> bool:
        no_worse = a.costs[cost] <= b.costs[cost] and a.validation.mean >= b.validation.mean
        return no_worse and (a.costs[cost] < b.costs[cost] or a.validation.mean > b.validation.mean)

    return [not any(beats(other, one) for other in outcomes) for one in outcomes]


def write_front(folder: Path, outcomes: Sequence[Outcome], dense: Mapping[str, Any], heading: str) -> str:
    """Writes table, CSV, picture, and the best policy of each point; returns the table.

    Args:
        folder: Where to.
        outcomes: All points.
        dense: Accuracy and costs of the dense network, as in `result.json`.
        heading: The sweep in words.
    """
    ordered = sorted(outcomes, key=lambda one: (one.budget, one.agent))
    costs = list(ordered[0].costs)
    fronts_by_cost = {cost: on_front(ordered, cost) for cost in costs}
    for one in ordered:
        target = folder / BEST / one.name
        target.mkdir(parents=True, exist_ok=True)
        for name in (POLICY, WEIGHTS):
            write_bytes(target / name, (one.best / name).read_bytes())
    table = _table(ordered, fronts_by_cost, dense)
    write_text(folder / DATA, _csv(ordered, fronts_by_cost))
    curves = {
        cost: {
            agent: [(one.costs[cost], *one.test) for one in ordered if one.agent == agent]
            for agent in dict.fromkeys(one.agent for one in ordered)
        }
        for cost in costs
    }
    limits = {cost: (dense["costs"][cost], dense["accuracy"]["test"]) for cost in costs}
    write_text(folder / PICTURE, fronts(curves, limits, salt="sweep"))
    page = f"# {heading}\n\n{table}\n{_NOTE}\n\n![accuracy against cost]({PICTURE})\n"
    write_text(folder / PAGE, page)
    return table


_NOTE = """Accuracies in %, means over seeds, ± half of the 95 % interval (Student's t over seeds; none for a single
seed). Costs are the largest over the seeds. A star marks the Pareto front of that cost, by validation accuracy; test
images were looked at once per run. The best seed's policy and weights of every point stand under `best/`."""


def _table(outcomes: Sequence[Outcome], starred: Mapping[str, Sequence[bool]], dense: Mapping[str, Any]) -> str:
    def percent(value: Difference, seeds: int) -> str:
        return f"{100 * value.mean:.2f}" + (f" ± {100 * value.half_width:.2f}" if seeds > 1 else "")

    costs = list(starred)
    lines = [f"| budget | agent | seeds | validation | test | {' | '.join(costs)} |", f"|{'---|' * (5 + len(costs))}"]
    for index, one in enumerate(outcomes):
        cells = [f"{_number(one.costs[cost])}{' *' if starred[cost][index] else ''}" for cost in costs]
        accuracies = [percent(one.validation, one.seeds), percent(one.test, one.seeds)]
        lines.append(f"| {one.budget:g} | {one.agent} | {one.seeds} | {' | '.join([*accuracies, *cells])} |")
    full = [f"{100 * dense['accuracy'][split]:.2f}" for split in ("validation", "test")]
    full += [_number(dense["costs"][cost]) for cost in costs]
    lines.append(f"| dense |  |  | {' | '.join(full)} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"


def _csv(outcomes: Sequence[Outcome], starred: Mapping[str, Sequence[bool]]) -> str:
    file = io.StringIO()
    names = ["validation", "validation_half_width", "test", "test_half_width"]
    costs = [column for cost in starred for column in (cost, f"{cost}_front")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["budget", "agent", "seeds", *names, *costs, "policy"])
    for index, one in enumerate(outcomes):
        values = [value for cost in starred for value in (one.costs[cost], int(starred[cost][index]))]
        policy = f"{BEST}/{one.name}/{POLICY}"
        writer.writerow([one.budget, one.agent, one.seeds, *one.validation, *one.test, *values, policy])
    return file.getvalue()
