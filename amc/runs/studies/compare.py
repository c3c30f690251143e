"""Searchers on equal footing: each pays in image-forwards, all are judged on the same images, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, RootModel
from safetensors import SafetensorError

from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared
from amc.reporting.words import written
from amc.runs.folder import SCORES, RunFolder
from amc.runs.studies.findings import Comparison
from amc.scoring.paired import Difference, Resampled, mean_interval, paired_difference, resampled_difference
from amc.search.result import NETWORKS
from amc.search.state import Snapshot
from amc.search.tools import Tools, repair_and_score
from amc.storage.files import read_json, write_json, write_text
from envs.measure import ACCURACY, Measure
from envs.space.assignment import Key
from hw_profiles.documents import validated

SPLITS = ("validation", "test")
TRACE, PAGE, DATA, PICTURE = "trace.json", "compare.md", "compare.json", "compare.svg"
POINTS = 6
"""Confirmed points of a run's curve at most: each costs a full repair and the whole validation split."""


class Point(NamedTuple):
    """A confirmed incumbent: what had been paid when it was found, and its metric on validation."""

    image_forwards: int
    metric: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run of one agent.

    Attributes:
        agent: The agent that searched.
        seed: Its seed.
        result: The content of `result.json`.
        scores: "found|test" and so on -> [N] metric of each sample; "found|test|resampled" -> [R] metric on resamples,
            where it is no mean over samples.
        trace: Best-so-far, confirmed, against effort.
    """

    agent: str
    seed: int
    result: Mapping[str, Any]
    scores: Mapping[str, NDArray[np.float32]]
    trace: tuple[Point, ...]

    @property
    def measure(self) -> Measure:
        """Name, direction and unit of the metric."""
        return Measure.from_json(self.result.get("metric"))

    @property
    def is_mean(self) -> bool:
        """Whether the metric is a mean over samples."""
        return "found|test" in self.scores

    def of(self, network: str) -> NDArray[np.float32]:
        """[N] metric of every validation and test sample."""
        return np.concatenate([self.scores[f"{network}|{split}"] for split in SPLITS])

    def resampled(self, network: str) -> Resampled:
        """Mean of the metric on validation and that on test, and the same on resamples."""
        values = [self.result[network][self.measure.name][split] for split in SPLITS]
        return Resampled(
            float(np.mean(values)), np.mean([self.scores[f"{network}|{split}|resampled"] for split in SPLITS], axis=0)
        )


def trace(prepared: Prepared, snapshot: Snapshot) -> list[Point]:
    """Confirms the incumbents (by reward) at evenly spaced efforts; not charged, it is for the plot only."""
    paid = np.cumsum([episode.evaluation.image_forwards for episode in snapshot.episodes])
    paid += snapshot.image_forwards - int(paid[-1])  # what came before the first episode
    rewards = np.maximum.accumulate([episode.reward for episode in snapshot.episodes])
    points: list[Point] = []
    known: dict[Key, float] = {}
    tools = Tools.of(prepared, InProcess())
    for index in np.unique(np.linspace(0, len(paid) - 1, POINTS).round().astype(int)):
        best = next(episode for episode in snapshot.episodes if episode.reward == rewards[index])
        if best.key not in known:
            known[best.key] = repair_and_score(tools, None, prepared.setup.assignment(best.key)).score.value
        points.append(Point(int(paid[index]), known[best.key]))
    return points


def write_trace(folder: Path, points: Sequence[Point]) -> None:
    """Keeps a run's curve beside its result."""
    write_json(folder / TRACE, [list(point) for point in points])


def read_run(folder: Path, agent: str, seed: int) -> Run | None:
    """A finished run with its curve, None if there is none, or something of it is missing.

    Raises:
        ValueError: If a file is damaged or altered.
    """
    run = RunFolder(folder)
    result = run.result()
    if result is None or run.owed(result) or not (folder / TRACE).exists():
        return None
    curve = validated(_Curve, read_json(folder / TRACE, "a trace"), str(folder / TRACE), "a trace")
    networks = [name for name in NETWORKS if name in result]
    return Run(
        agent=agent,
        seed=seed,
        result=result,
        scores=_read_scores(folder / SCORES, networks, Measure.from_json(result.get("metric"))),
        trace=tuple(Point(*point) for point in curve.root),
    )


_Stored = tuple[Annotated[int, Field(ge=0)], float]


class _Curve(RootModel[Annotated[list[_Stored], Field(min_length=1)]]):
    """A run's curve as it stands in its file."""


def _read_scores(path: Path, networks: Sequence[str], measure: Measure) -> dict[str, NDArray[np.float32]]:
    """Every network's metric of each sample, or on each resample.

    Raises:
        ValueError: If the file is damaged, or its arrays are not those of the networks on the same samples.
    """
    try:
        scores = safetensors.numpy.load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"scores must be a readable safetensors file, but {str(path)!r} is not ({error})") from error
    kind = "" if "found|test" in scores else "|resampled"
    for split in SPLITS:
        arrays = [scores.get(f"{name}|{split}{kind}") for name in networks]
        shapes = {array.shape for array in arrays if array is not None}
        if len(shapes) > 1 or not all(_is_metric(array, measure, kind) for array in arrays):
            raise ValueError(
                f"scores must hold the {measure.name} of the same {split} samples for each of {', '.join(networks)}, "
                f"but {str(path)!r} does not: remove the run's folder and repeat the comparison"
            )
    return scores


def _is_metric(array: NDArray[Any] | None, measure: Measure, kind: str) -> bool:
    if array is None or array.ndim != 1 or not len(array) or array.dtype != (np.float64 if kind else np.float32):
        return False
    return not measure.fraction or not bool(((array < 0) | (array > 1)).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One agent's line of the table: means of the metric over seeds, intervals 95 %.

    Attributes:
        agent: The agent that searched.
        seeds: How many runs.
        validation: Mean and interval over seeds.
        test: The same.
        image_forwards: Mean effort.
        seconds: Mean wall time.
        to_start: Paired difference of found to the best start, on all samples; None without a start.
    """

    agent: str
    seeds: int
    validation: Difference
    test: Difference
    image_forwards: float
    seconds: float
    to_start: Difference | None


def summarize(runs: Sequence[Run]) -> list[Row]:
    """One row per agent, in the order of the runs."""
    rows = []
    for agent in dict.fromkeys(run.agent for run in runs):
        own = [run for run in runs if run.agent == agent]
        metric = {
            split: mean_interval([run.result["found"][run.measure.name][split] for run in own]) for split in SPLITS
        }
        started = all("start" in run.result for run in own)
        rows.append(
            Row(
                agent=agent,
                seeds=len(own),
                **metric,
                image_forwards=float(np.mean([run.result["image_forwards"] for run in own])),
                seconds=float(np.mean([run.result["measured"]["seconds"] for run in own])),
                to_start=_difference(own, "found", own, "start") if started else None,
            )
        )
    return rows


def differences(runs: Sequence[Run]) -> dict[tuple[str, str], Difference]:
    """Paired difference of each agent's found networks to each other agent's, on all samples."""
    agents = list(dict.fromkeys(run.agent for run in runs))
    own = {agent: [run for run in runs if run.agent == agent] for agent in agents}
    return {(a, b): _difference(own[a], "found", own[b], "found") for a in agents for b in agents if a != b}


def _difference(first: Sequence[Run], network: str, second: Sequence[Run], other: str) -> Difference:
    if first[0].is_mean:
        return paired_difference([run.of(network) for run in first], [run.of(other) for run in second])
    return resampled_difference([run.resampled(network) for run in first], [run.resampled(other) for run in second])


def verdict(rows: Sequence[Row], pairs: Mapping[tuple[str, str], Difference], measure: Measure = ACCURACY) -> str:
    """One sentence: which agent is best, and whether that is more than noise."""
    ranked = sorted(rows, key=lambda row: -measure.signed(row.validation.mean + row.test.mean))
    best = ranked[0]
    if len(ranked) == 1:
        return f"Only {best.agent} ran."
    second = ranked[1]
    gap = pairs[best.agent, second.agent]
    sure = [row.agent for row in ranked[1:] if pairs[best.agent, row.agent].more_than_noise]
    text = f"{best.agent} is best, ahead of {second.agent} by {_lead(gap, measure)}, which is "
    text += "more than noise" if gap.more_than_noise else "no more than noise"
    if sure and not gap.more_than_noise:
        text += f"; its lead over {', '.join(sure)} is more than noise"
    for row in ranked:
        if row.to_start is not None:
            better = "more than noise" if row.to_start.more_than_noise else "no more than noise"
            text += f". {row.agent} against its own best start: {row.to_start.text(measure)}, {better}"
    return text + ("." if measure.higher_is_better else f". Of {measure.name}, {measure.better}.")


def _lead(gap: Difference, measure: Measure) -> str:
    """By how much the first is better, as a positive number."""
    return measure.change(measure.signed(gap.mean), gap.half_width)


def write_comparison(folder: Path, runs: Sequence[Run], heading: str) -> Comparison:
    """Writes `compare.json`, `compare.md` and `compare.svg`.

    Args:
        folder: Where to.
        runs: All finished runs.
        heading: Task, budgets and effort in words.
    """
    from amc.reporting.pictures import efforts

    rows, pairs, measure = summarize(runs), differences(runs), runs[0].measure
    said = verdict(rows, pairs, measure)
    curves = {row.agent: [run.trace for run in runs if run.agent == row.agent] for row in rows}
    write_text(folder / PICTURE, efforts(curves, measure, salt="compare"))
    tables = _tables(rows, pairs, measure)
    write_text(folder / PAGE, f"# {heading}\n\n{said}\n\n{tables}\n![best so far]({PICTURE})\n")
    found = [{"agent": run.agent, "seed": run.seed, "trace": run.trace, "found": run.result["found"]} for run in runs]
    write_json(
        folder / DATA,
        {
            "schema_version": 1,
            "verdict": said,
            "metric": measure.to_json(),
            "agents": {row.agent: _numbers(row) for row in rows},
            "differences": {f"{a} - {b}": list(difference) for (a, b), difference in pairs.items()},
            "runs": found,
        },
    )
    return Comparison(verdict=said, table=tables, folder=folder, page=folder / PAGE)


def _numbers(row: Row) -> dict[str, Any]:
    return {
        "seeds": row.seeds,
        "validation": list(row.validation),
        "test": list(row.test),
        "image_forwards": row.image_forwards,
        "seconds": row.seconds,
        "to_start": None if row.to_start is None else list(row.to_start),
    }


def _tables(rows: Sequence[Row], pairs: Mapping[tuple[str, str], Difference], measure: Measure) -> str:
    unit = measure.heading
    lines = [
        f"| agent | seeds | validation{unit} | test{unit} | found - start, all samples | forward passes | seconds |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.agent} | {row.seeds} | {measure.interval(*row.validation)} | "
            f"{measure.interval(*row.test)} | {row.to_start.text(measure) if row.to_start else '-'} | "
            f"{row.image_forwards:,.0f} | {row.seconds:,.0f} |"
            for row in rows
        ),
        "",
        f"{written(measure)}: means over seeds, ± half of the 95 % interval (Student's t over seeds).",
        "Validation decided the winner of each run, test was looked at once. Paired differences, row - column, on",
        "the same samples of both splits:",
        "",
        "| | " + " | ".join(row.agent for row in rows) + " |",
        "|---|" + "---|" * len(rows),
        *(
            f"| {a.agent} | " + " | ".join("" if a is b else pairs[a.agent, b.agent].text(measure) for b in rows) + " |"
            for a in rows
        ),
    ]
    return "\n".join(lines) + "\n"
