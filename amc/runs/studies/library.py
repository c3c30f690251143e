"""What `amc.compare`, `amc.sweep` and `amc.tune` do: many searches from a script or a notebook.

Each goes on where it was stopped when it is called again with the same arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.searcher import MakeSearcher, Searcher
from amc.config.parts import WorkersConfig
from amc.problem.given.door import competitors, passed
from amc.runs.library import shown
from amc.runs.studies.competition import run_compare
from amc.runs.studies.findings import Comparison, Sweep, Tuning
from amc.runs.studies.shared import run_shared
from amc.runs.studies.sweep import Grid, run_sweep
from amc.runs.studies.tuning import Range, run_tuning
from amc.tasks.task import Task

Agent = str | Searcher | MakeSearcher


def compare(
    task: Task | str | Path,
    budgets: Mapping[str, float] | None = None,
    *,
    effort: int,
    agents: Sequence[Agent] = ("ddpg", "random", "cmaes", "knapsack", "uniform"),
    seeds: int = 3,
    out: Path | str = "runs/compare",
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Compares agents at equal effort over several seeds.

    Args:
        task: As for `search`.
        budgets: As for `search`.
        effort: Image-forwards that each run may pay.
        agents: Names, searchers, or functions that make them.
        seeds: Runs per agent.
        out: Folder of all runs and of the comparison.
        progress: Show bars.
        settings: As for `search`, objects too.

    Raises:
        ValueError: If task, agents or a setting are not usable; one line.
    """
    given = passed(task, budgets, effort=effort, **settings)
    names, each = competitors(given.objects, agents)
    with shown(progress) as screen:
        return run_compare(given.config, names, seeds, Path(out), screen, _teller(progress), each)


def sweep(
    task: Task | str | Path,
    budgets: Mapping[str, float | Sequence[float]],
    *,
    agents: Sequence[Agent] = ("ddpg",),
    seeds: int = 3,
    out: Path | str = "runs/sweep",
    workers: int = 0,
    shared: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Searches over several budgets, agents and seeds, as many at a time as there are CPUs, for the Pareto front.

    Args:
        task: As for `search`.
        budgets: As for `search`; one cost has a list of budgets: `{"macs": [0.3, 0.5, 0.7]}`.
        agents: Names, searchers, or functions that make them.
        seeds: Searches per agent and budget.
        out: Folder of all runs and of the front.
        workers: Ray workers of each search; 0: each plays its own episodes.
        shared: One search per agent and seed over the range of all budgets, whose agent is asked for each.
        progress: Print a line whenever a search ends.
        settings: As for `search`, objects too.

    Raises:
        ValueError: If not exactly one cost has several budgets, or something is not usable; one line.
    """
    swept = [name for name, value in budgets.items() if isinstance(value, Sequence)]
    if len(swept) != 1 or not budgets[swept[0]]:
        raise ValueError(
            f"a sweep needs one cost with a list of budgets, but {len(swept)} have one: "
            'write for example {"macs": [0.3, 0.5, 0.7]}'
        )
    values = [float(value) for value in budgets[swept[0]]]  # type: ignore[union-attr]  # it is the sequence
    fixed = {name: float(value) for name, value in budgets.items() if not isinstance(value, Sequence)}
    given = passed(task, {swept[0]: values[0], **fixed}, **settings)
    names, each = competitors(given.objects, agents)
    grid = Grid(budgets=tuple(values), agents=names, seeds=seeds)
    run = run_shared if shared else run_sweep
    return run(given.config, grid, Path(out), _teller(progress), WorkersConfig(workers=workers), each)


def tune(
    task: Task | str | Path,
    ranges: Mapping[str, tuple[float, float] | Sequence[Any]],
    budgets: Mapping[str, float] | None = None,
    *,
    samples: int = 16,
    out: Path | str = "runs/tune",
    workers: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Tuning:
    """Tunes any keys of the configuration by many short searches, the poor ones stopped early.

    Args:
        task: As for `search`.
        ranges: Key -> a pair (lowest, highest), or a list of values: `{"learning.sigma": (0.05, 0.3)}`.
        budgets: As for `search`.
        samples: How many searches.
        out: Folder of all runs and of the ranking.
        workers: Ray workers of each search; 0: each plays its own episodes.
        progress: Print a line whenever a search ends.
        settings: As for `search`, objects too.

    Raises:
        ValueError: If a key, a range or something else is not usable; one line.
    """
    config, objects = passed(task, budgets, **settings)
    several = [_range(key, values) for key, values in ranges.items()]
    tell = _teller(progress)
    return run_tuning(config, several, samples, Path(out), tell, WorkersConfig(workers=workers), objects)


def _range(key: str, values: Any) -> Range:
    if isinstance(values, tuple):
        if len(values) != 2 or not values[0] < values[1]:
            raise ValueError(f"a range must be a pair (lowest, highest), but {key!r} has {values!r}: write (0.05, 0.3)")
        return Range(key, (float(values[0]), float(values[1])), between=True)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"a range must be a pair or a list of values, but {key!r} has {values!r}: write [2, 4]")
    return Range(key, tuple(values), between=False)


def _teller(progress: bool) -> Any:
    console = Console(stderr=True, quiet=not progress)

    def tell(text: str) -> None:
        console.print(text, highlight=False)

    return tell
