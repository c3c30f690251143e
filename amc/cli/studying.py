"""`amc compare`, `amc sweep`: many searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from amc.cli.options import Overrides, RecipeArgument, configured, with_workers
from amc.config.parts import WorkersConfig
from amc.config.search import recipe_config

console = Console()


@configured("task", "data", "checkpoint", "constraint", "profile", "effort")
def compare(
    overrides: Overrides,
    recipe: RecipeArgument = None,
    agents: Annotated[list[str] | None, typer.Option("--agents", help="Agents to compare: ddpg cmaes ...")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per agent.")] = 3,
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs and of the comparison.")] = Path(
        "runs/compare"
    ),
) -> None:
    """Compare agents at equal effort over several seeds, with intervals; goes on where it was stopped."""
    config = recipe_config(recipe, overrides)
    if config.effort is None:
        raise ValueError(
            "a comparison needs an effort, but got none: pass for example --effort 300000 (image-forwards)"
        )
    from amc.cli.commands import run_comparison

    run_comparison(config, agents or ["ddpg", "random", "cmaes", "knapsack", "uniform"], seeds, out, console)


@with_workers
@configured("task", "data", "checkpoint", "constraint")
def sweep(
    overrides: Overrides,
    workers: WorkersConfig,
    recipe: RecipeArgument = None,
    budgets: Annotated[
        list[float] | None, typer.Option("--budgets", help="Of the recipe's first cost: 0.3 0.5 0.7")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Searches per agent and budget.")] = 3,
    agents: Annotated[list[str] | None, typer.Option("--agents", help="Agents that search: ddpg knapsack ...")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs and of the front.")] = Path("runs/sweep"),
    profiles: Annotated[
        list[str] | None, typer.Option("--profiles", help="Sweep under each of these profiles: board.json phone ...")
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="One search over the range of --budgets, asked for each of them.")
    ] = False,
    tune: Annotated[
        list[str] | None,
        typer.Option("--tune", help="Tune instead: KEY=LOW..HIGH or KEY=A,B,C, such as learning.sigma=0.05..0.3"),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Searches of --tune.")] = 16,
) -> None:
    """Search over several budgets, agents and seeds; ends with the Pareto front. Repeat it to go on."""
    config = recipe_config(recipe, {"profile": profiles[0] if profiles else None, **overrides})
    if tune:
        from amc.runs.studies.tuning import parse_range, run_tuning

        run_tuning(config, [parse_range(text) for text in tune], samples, out, _say, workers).show(console)
        return
    from amc.runs.studies.sweep import Grid, run_sweep, run_sweeps

    several = tuple(budgets or list(config.constraint.values())[:1])
    grid = Grid(budgets=several, agents=tuple(agents or [config.agent]), seeds=seeds)
    if shared:
        from amc.runs.studies.shared import run_shared

        run_shared(config, grid, out, _say, workers).show(console)
    elif len(profiles or []) > 1:
        for found in run_sweeps(config, grid, profiles or [], out, _say, workers).values():
            found.show(console)
    else:
        run_sweep(config, grid, out, _say, workers).show(console)


def _say(text: str) -> None:
    console.print(text, highlight=False)
