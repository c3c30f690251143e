"""`amc finetune`: training the network that a run has found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from amc.cli.options import Overrides, configured, with_finetuning

console = Console()


@with_finetuning
@configured("task", anything=False)
def finetune(
    overrides: Overrides,
    settings: Mapping[str, Any],
    run: Annotated[Path, typer.Argument(help="Run folder of a search that has ended.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier training aside, and begin again.")] = False,
) -> None:
    """Train the network that a run has found; repeated, it goes on exactly where it stopped.

    The epoch is chosen on validation samples; test samples are looked at once, at the end.
    """
    from amc.cli.commands import run_finetune

    run_finetune(run, settings, console, given=overrides, fresh=fresh)
