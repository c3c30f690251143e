"""What a sweep found, point by point: the metric against every cost, over seeds; as table, CSV and picture.

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
from amc.reporting.words import written
from amc.scoring.paired import Difference, mean_interval
from amc.storage.files import write_bytes, write_text
from envs.measure import ACCURACY, Measure

PAGE, DATA, PICTURE, BEST = "sweep.md", "sweep.csv", "sweep.svg", "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All seeds of one agent under one budget.

    Attributes:
        agent: The agent that searched.
        budget: The swept budget, as it was asked for.
        costs: Cost -> largest value over the seeds.
        validation: Mean of the metric on it and interval over seeds.
        test: The same.
        best: Run folder of the seed that is best on validation.
        seeds: How many.
        measure: Name, direction and unit of the metric.
    """

    agent: str
    budget: float
    costs: Mapping[str, float]
    validation: Difference
    test: Difference
    best: Path
    seeds: int
    measure: Measure = ACCURACY

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
    measure = Measure.from_json(runs[0][1].get("metric"))
    metric = {split: [one[measure.name][split] for one in found] for split in ("validation", "test")}
    costs = {name: max(one["costs"][name] for one in found) for name in found[0]["costs"]}
    best = int(np.argmax([measure.signed(value) for value in metric["validation"]]))
    return Outcome(
        agent=agent,
        budget=budget,
        costs=costs,
        validation=mean_interval(metric["validation"]),
        test=mean_interval(metric["test"]),
        best=runs[best][0],
        seeds=len(runs),
        measure=measure,
    )


def on_front(outcomes: Sequence[Outcome], cost: str) -> list[bool]:
    """Which are on the Pareto front of the validation metric and a cost: nothing is better in one, no worse in both."""

    def beats(a: Outcome, b: Outcome) -> bool:
        ours, theirs = (one.measure.signed(one.validation.mean) for one in (a, b))
        no_worse = a.costs[cost] <= b.costs[cost] and ours >= theirs
        return no_worse and (a.costs[cost] < b.costs[cost] or ours > theirs)

    return [not any(beats(other, one) for other in outcomes) for one in outcomes]


def write_front(folder: Path, outcomes: Sequence[Outcome], dense: Mapping[str, Any], heading: str) -> str:
    """Writes table, CSV, picture, and the best policy of each point; returns the table.

    Args:
        folder: Where to.
        outcomes: All points.
        dense: Metric and costs of the dense network, as in `result.json`.
        heading: The sweep in words.
    """
    ordered = sorted(outcomes, key=lambda one: (one.budget, one.agent))
    costs, measure = list(ordered[0].costs), ordered[0].measure
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
    limits = {cost: (dense["costs"][cost], dense[measure.name]["test"]) for cost in costs}
    write_text(folder / PICTURE, fronts(curves, limits, measure, salt="sweep"))
    note = f"{written(measure)}{_NOTE}"
    page = f"# {heading}\n\n{table}\n{note}\n\n![{measure.name} against cost]({PICTURE})\n"
    write_text(folder / PAGE, page)
    return table


_NOTE = """: means over seeds, ± half of the 95 % interval (Student's t over seeds; none for a single
seed). Costs are the largest over the seeds. A star marks the Pareto front of that cost, by the validation split; test
samples were looked at once per run. The best seed's policy and weights of every point stand under `best/`."""


def _table(outcomes: Sequence[Outcome], starred: Mapping[str, Sequence[bool]], dense: Mapping[str, Any]) -> str:
    measure = outcomes[0].measure

    def shown(value: Difference, seeds: int) -> str:
        return measure.interval(*value) if seeds > 1 else measure.bare(value.mean)

    costs = list(starred)
    lines = [f"| budget | agent | seeds | validation | test | {' | '.join(costs)} |", f"|{'---|' * (5 + len(costs))}"]
    for index, one in enumerate(outcomes):
        cells = [f"{_number(one.costs[cost])}{' *' if starred[cost][index] else ''}" for cost in costs]
        values = [shown(one.validation, one.seeds), shown(one.test, one.seeds)]
        lines.append(f"| {one.budget:g} | {one.agent} | {one.seeds} | {' | '.join([*values, *cells])} |")
    full = [measure.bare(dense[measure.name][split]) for split in ("validation", "test")]
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
