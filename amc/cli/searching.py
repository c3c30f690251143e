"""`amc inspect`, `amc search`, `amc resume`: one network, one search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from amc.cli.options import Overrides, RecipeArgument, configured, with_workers
from amc.config.parts import WorkersConfig
from amc.config.search import load_config, recipe_config

console = Console()

TASK = ("task", "data", "checkpoint")
RULES = ("rules.round_to", "rules.min_ratio", "rules.max_ratio", "rules.attention", "rules.skip")
AGENT = ("agent", "preset", "episodes", "warmup", "round_size", "max_minutes", "reward", "device", "seed")
COMPRESSION = ("compression.importance", "compression.repair", "compression.selection")


@configured(*TASK, "choose", "branches", "constraint", *RULES, anything=False)
def inspect(
    overrides: Overrides,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (docs/reference/inspection.md).")] = False,
) -> None:
    """Show what can be pruned and how far: units, why every other layer stays, the lowest reachable costs."""
    if "task" not in overrides:
        raise ValueError("inspect needs a task, but got none: pass for example --task digits")
    from amc.problem.inspection import inspection
    from amc.reporting.inspection_view import inspection_tables
    from amc.tasks.checks import check_task
    from amc.tasks.task import load_task

    config = load_config(None, overrides)
    task = load_task(config.task, data=config.data, checkpoint=config.checkpoint)
    check_task(task)
    found = inspection(task, config)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        console.print(inspection_tables(found), highlight=False)


@with_workers
@configured(*TASK, "constraint", "profile", "profiles", "choose", "branches", *AGENT, *COMPRESSION, *RULES)
def search(
    overrides: Overrides,
    workers: WorkersConfig,
    recipe: RecipeArgument = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/search"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run in --out aside.")] = False,
) -> None:
    """Search a pruning policy within a budget and write a run folder."""
    config = recipe_config(recipe, overrides)
    from amc.cli.commands import run_search

    run_search(config, out, console, fresh=fresh, workers=workers)


@with_workers
@configured("task", "reward", "constraint", "profile", anything=False)
def policy(
    overrides: Overrides,
    workers: WorkersConfig,
    run: Annotated[Path, typer.Argument(help="Run folder of a search over a range of budgets.")],
    refine: Annotated[int, typer.Option(min=0, help="Episodes that improve the agent's answer.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/policy"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run in --out aside.")] = False,
) -> None:
    """Ask the agent of a range for the policy of one budget, confirmed beside the knapsack's and uniform widths."""
    if "constraint" not in overrides:
        raise ValueError("a policy needs a budget, but got none: pass for example --constraint macs=0.42")
    from amc.cli.commands import run_policy

    run_policy(run, overrides, refine, out, console, fresh=fresh, workers=workers)


@with_workers
@configured("task", "reward", anything=False)
def resume(
    overrides: Overrides,
    workers: WorkersConfig,
    run: Annotated[Path, typer.Argument(help="Run folder of a search that was stopped or has ended.")],
    episodes: Annotated[str | None, typer.Option(help="+N goes on for N more episodes.")] = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="Go on from the round before the last one, if that is damaged.")
    ] = False,
) -> None:
    """Go on with a run exactly where it stopped; on one that has ended, show its result, write what is missing.

    A task or reward of your own is named again: a run folder may not choose code.
    """
    more = _more(episodes)
    from amc.cli.commands import run_resume

    run_resume(run, more, console, workers, overrides, previous=previous)


def _more(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.startswith("+") and text[1:].isdigit() and int(text[1:]) > 0):
        raise ValueError(f"--episodes of resume must read +N, but got {text!r}: write for example --episodes +200")
    return int(text[1:])
