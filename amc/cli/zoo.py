"""`amc zoo list`, `amc zoo show`, `amc zoo apply`: policies that were searched before, on weights of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from amc.cli.options import Overrides, configured

console = Console()
app = typer.Typer(name="zoo", help="Policies that were searched before, for weights of your own.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Entry, as `amc zoo list` shows it.")]
ZooOption = Annotated[Path | None, typer.Option("--zoo", help="Folder of the zoo; by default that of the checkout.")]


@app.command("list")
def list_entries(zoo: ZooOption = None) -> None:
    """Show all entries with the figures that they reached."""
    from amc.export.zoo import figures_table, zoo_folder

    console.print(figures_table(zoo_folder(zoo)))


@app.command()
def show(name: NameArgument, zoo: ZooOption = None) -> None:
    """Show an entry: its widths, and where its figures come from."""
    from amc.export.applied import read_policy
    from amc.export.zoo import policy_file, read_figures, widths_table, zoo_folder

    folder = zoo_folder(zoo)
    policy = read_policy(policy_file(folder, name))
    console.print(widths_table(policy, next(row for row in read_figures(folder) if row["name"] == name)))


@app.command()
@configured("task", "data", "checkpoint", anything=False)
def apply(
    overrides: Overrides,
    name: NameArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for network.safetensors and policy.json.")],
    zoo: ZooOption = None,
) -> None:
    """Give your weights an entry's widths, repaired on your samples."""
    from amc.cli.commands import run_apply
    from amc.export.zoo import policy_file, zoo_folder

    run_apply(policy_file(zoo_folder(zoo), name), overrides, out, console)
