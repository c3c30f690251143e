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
from amc.runs.folder import SCORES, RunFolder
from amc.runs.studies.findings import Comparison
from amc.scoring.paired import Difference, mean_interval, paired_difference
from amc.search.result import NETWORKS
from amc.search.state import Snapshot
from amc.search.tools import Tools, repair_and_score
from amc.storage.files import read_json, write_json, write_text
from envs.space.assignment import Key
from hw_profiles.documents import validated

TRACE, PAGE, DATA, PICTURE = "trace.json", "compare.md", "compare.json", "compare.svg"
POINTS = 6
"""Confirmed points of a run's curve at most: each costs a full repair and the whole validation split."""


class Point(NamedTuple):
    """A confirmed incumbent: what had been paid when it was found, and its validation accuracy."""

    image_forwards: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run of one agent.

    Attributes:
        agent: The agent that searched.
        seed: Its seed.
        result: The content of `result.json`.
        scores: "found|test" and so on -> [N] metric of each image.
        trace: Best-so-far, confirmed, against effort.
    """

    agent: str
    seed: int
    result: Mapping[str, Any]
    scores: Mapping[str, NDArray[np.float32]]
    trace: tuple[Point, ...]

    def of(self, network: str) -> NDArray[np.float32]:
        """[N] metric of every validation and test image."""
        return np.concatenate([self.scores[f"{network}|{split}"] for split in ("validation", "test")])


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
            known[best.key] = repair_and_score(tools, None, prepared.setup.assignment(best.key)).score.accuracy
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
        scores=_read_scores(folder / SCORES, networks),
        trace=tuple(Point(*point) for point in curve.root),
    )


_Stored = tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, le=1)]]


class _Curve(RootModel[Annotated[list[_Stored], Field(min_length=1)]]):
    """A run's curve as it stands in its file."""


def _read_scores(path: Path, networks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Every network's metric of each image.

    Raises:
        ValueError: If the file is damaged, or its arrays are not those of the networks on the same images.
    """
    try:
        scores = safetensors.numpy.load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"scores must be a readable safetensors file, but {str(path)!r} is not ({error})") from error
    for split in ("validation", "test"):
        arrays = [scores.get(f"{name}|{split}") for name in networks]
        if len({a.shape for a in arrays if a is not None}) > 1 or not all(map(_is_metric, arrays)):
            raise ValueError(
                f"scores must hold one float32 in [0, 1] per {split} image for each of {', '.join(networks)}, but "
                f"{str(path)!r} does not: remove the run's folder and repeat the comparison"
            )
    return scores


def _is_metric(array: NDArray[Any] | None) -> bool:
    if array is None or array.dtype != np.float32 or array.ndim != 1 or not len(array):
        return False
    return bool(((array >= 0) & (array <= 1)).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One agent's line of the table; accuracies are fractions, intervals 95 %.

    Attributes:
        agent: The agent that searched.
        seeds: How many runs.
        validation: Mean and interval over seeds.
        test: The same.
        image_forwards: Mean effort.
        seconds: Mean wall time.
        to_start: Paired difference of found to the best start, on all images; None without a start.
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
        accuracy = {
            split: mean_interval([run.result["found"]["accuracy"][split] for run in own])
            for split in ("validation", "test")
        }
        started = all("start" in run.result for run in own)
        rows.append(
            Row(
                agent=agent,
                seeds=len(own),
                **accuracy,
                image_forwards=float(np.mean([run.result["image_forwards"] for run in own])),
                seconds=float(np.mean([run.result["measured"]["seconds"] for run in own])),
                to_start=_difference(own, "found", own, "start") if started else None,
            )
        )
    return rows


def differences(runs: Sequence[Run]) -> dict[tuple[str, str], Difference]:
    """Paired difference of each agent's found networks to each other agent's, on all images."""
    agents = list(dict.fromkeys(run.agent for run in runs))
    own = {agent: [run for run in runs if run.agent == agent] for agent in agents}
    return {(a, b): _difference(own[a], "found", own[b], "found") for a in agents for b in agents if a != b}


def _difference(first: Sequence[Run], network: str, second: Sequence[Run], other: str) -> Difference:
    return paired_difference([run.of(network) for run in first], [run.of(other) for run in second])


def verdict(rows: Sequence[Row], pairs: Mapping[tuple[str, str], Difference]) -> str:
    """One sentence: which agent is best, and whether that is more than noise."""
    ranked = sorted(rows, key=lambda row: -(row.validation.mean + row.test.mean))
    best = ranked[0]
    if len(ranked) == 1:
        return f"Only {best.agent} ran."
    second = ranked[1]
    gap = pairs[best.agent, second.agent]
    sure = [row.agent for row in ranked[1:] if pairs[best.agent, row.agent].more_than_noise]
    text = f"{best.agent} is best, ahead of {second.agent} by {gap}, which is "
    text += "more than noise" if gap.more_than_noise else "no more than noise"
    if sure and not gap.more_than_noise:
        text += f"; its lead over {', '.join(sure)} is more than noise"
    for row in ranked:
        if row.to_start is not None:
            better = "more than noise" if row.to_start.more_than_noise else "no more than noise"
            text += f". {row.agent} against its own best start: {row.to_start}, {better}"
    return text + "."


def write_comparison(folder: Path, runs: Sequence[Run], heading: str) -> Comparison:
    """Writes `compare.json`, `compare.md` and `compare.svg`.

    Args:
        folder: Where to.
        runs: All finished runs.
        heading: Task, budgets and effort in words.
    """
    from amc.reporting.pictures import efforts

    rows, pairs = summarize(runs), differences(runs)
    said = verdict(rows, pairs)
    curves = {row.agent: [run.trace for run in runs if run.agent == row.agent] for row in rows}
    write_text(folder / PICTURE, efforts(curves, salt="compare"))
    tables = _tables(rows, pairs)
    write_text(folder / PAGE, f"# {heading}\n\n{said}\n\n{tables}\n![best so far]({PICTURE})\n")
    found = [{"agent": run.agent, "seed": run.seed, "trace": run.trace, "found": run.result["found"]} for run in runs]
    write_json(
        folder / DATA,
        {
            "schema_version": 1,
            "verdict": said,
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


def _tables(rows: Sequence[Row], pairs: Mapping[tuple[str, str], Difference]) -> str:
    def percent(value: Difference) -> str:
        return f"{100 * value.mean:.2f} ± {100 * value.half_width:.2f}"

    lines = [
        "| agent | seeds | validation, % | test, % | found - start, all images | image-forwards | seconds |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.agent} | {row.seeds} | {percent(row.validation)} | {percent(row.test)} | "
            f"{row.to_start or '-'} | {row.image_forwards:,.0f} | {row.seconds:,.0f} |"
            for row in rows
        ),
        "",
        "Means over seeds, ± half of the 95 % interval (Student's t over seeds). Validation decided the winner of each",
        "run, test was looked at once. Paired differences, row - column, on the same images of both splits:",
        "",
        "| | " + " | ".join(row.agent for row in rows) + " |",
        "|---|" + "---|" * len(rows),
        *(
            f"| {a.agent} | " + " | ".join("" if a is b else str(pairs[a.agent, b.agent]) for b in rows) + " |"
            for a in rows
        ),
    ]
    return "\n".join(lines) + "\n"
