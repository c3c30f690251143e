"""Tuning of any number in the configuration, the learner's above all: many short searches, the poor ones stopped early.

Ray Tune's ASHA (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020) compares searches
after equal numbers of episodes. Which search is stopped depends on which was faster: the one place where time decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from agents.searcher import keyed_generator
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig, load_config, parse_override
from amc.runs.folder import RunFolder
from amc.storage.files import write_text
from amc.studies.sweep import RUNS, Trial, claim, ended, run_trials

PAGE, BEST, STOPPED = "tune.md", "best.toml", "stopped"
REDUCTION = 3
"""At each rung of ASHA one search in so many goes on."""


class Range(NamedTuple):
    """What a key may be: one of some values, or between two (evenly in the logarithm over a decade or more)."""

    key: str
    values: tuple[Any, ...]
    between: bool

    def draw(self, uniform: float) -> Any:
        """The value at a quantile in [0, 1)."""
        if not self.between:
            return self.values[int(uniform * len(self.values))]
        low, high = self.values
        if low > 0 and high >= 10 * low:
            return float(f"{math.exp(math.log(low) + uniform * math.log(high / low)):.4g}")
        return float(f"{low + uniform * (high - low):.4g}")


def parse_range(text: str) -> Range:
    """Reads `key=low..high` or `key=a,b,c`.

    Raises:
        ValueError: If it is neither.
    """
    key, _, values = text.partition("=")
    if ".." in values:
        low, _, high = values.partition("..")
        try:
            found = Range(key.strip(), (float(low), float(high)), between=True)
        except ValueError:
            found = Range(key, (1.0, 0.0), between=True)
        if found.values[0] < found.values[1]:
            return found
    elif key.strip() and values:
        return Range(key.strip(), tuple(parse_override(f"value={one}")[1] for one in values.split(",")), between=False)
    raise ValueError(f"--tune must read KEY=LOW..HIGH or KEY=A,B,C, but got {text!r}: learning.sigma=0.05..0.3")


def samples(config: SearchConfig, ranges: Sequence[Range], count: int) -> list[tuple[Trial, dict[str, Any]]]:
    """The configuration as it is, then draws keyed by its seed; each with what was drawn.

    Raises:
        ValueError: If a key or a value is not allowed.
    """
    found: list[tuple[Trial, dict[str, Any]]] = [(Trial(name="tune-0", config=config), {})]
    for index in range(1, count):
        uniforms = keyed_generator(config.seed, "tune", index).random(len(ranges))
        drawn = {one.key: one.draw(float(uniform)) for one, uniform in zip(ranges, uniforms, strict=True)}
        found.append((Trial(name=f"tune-{index}", config=_changed(config, drawn)), drawn))
    return found


def run_tuning(
    config: SearchConfig, ranges: Sequence[Range], count: int, out: Path, console: Console, workers: WorkersConfig
) -> SearchConfig:
    """Searches with each sample, writes the ranking and the best one's recipe; returns the latter."""
    from ray.tune.schedulers import ASHAScheduler

    trials = samples(config, ranges, count)
    claim(out, config)
    missing = [trial for trial, _ in trials if not (ended(out, trial) or (out / RUNS / trial.name / STOPPED).exists())]
    if missing:
        grace = min(config.planned_episodes, config.warmup + 2 * config.round_size)
        scheduler = ASHAScheduler(
            time_attr="episodes", grace_period=grace, max_t=config.planned_episodes, reduction_factor=REDUCTION
        )
        run_trials(missing, out, console, workers, scheduler)
        for trial in missing:
            if not ended(out, trial):
                write_text(out / RUNS / trial.name / STOPPED, "stopped early by ASHA\n")
    ranked = sorted(((*_reached(out, trial), trial, drawn) for trial, drawn in trials), key=lambda row: -row[1])
    table = _table(ranked, [one.key for one in ranges])
    write_text(out / PAGE, f"# Tuning of {config.agent} on {config.task}\n\n{table}")
    write_text(out / BEST, ranked[0][2].config.to_toml())
    console.out(table, highlight=False)
    console.out(f"wrote {out / BEST}", highlight=False)
    return ranked[0][2].config


def _changed(config: SearchConfig, drawn: Mapping[str, Any]) -> SearchConfig:
    return load_config(None, {**config.model_dump(mode="json", exclude_none=True), **drawn})


def _reached(out: Path, trial: Trial) -> tuple[int, float]:
    """Episodes played and the best reward among them."""
    snapshot = RunFolder(out / RUNS / trial.name).snapshot()
    return (len(snapshot.lines), snapshot.best.reward) if snapshot and snapshot.episodes else (0, -math.inf)


def _table(ranked: Sequence[tuple[int, float, Trial, dict[str, Any]]], keys: Sequence[str]) -> str:
    lines = [f"| run | episodes | best reward | {' | '.join(keys)} |", f"|{'---|' * (3 + len(keys))}"]
    for episodes, reward, trial, drawn in ranked:
        values = " | ".join(str(drawn.get(key, "as it was")) for key in keys)
        lines.append(f"| {trial.name} | {episodes} | {reward:.5f} | {values} |")
    return "\n".join(lines) + "\n"
