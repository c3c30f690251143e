"""The command line: every command by its module, and bad input as one line instead of a traceback."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from amc.cli.keys import config
from amc.cli.networks import apply, check, export
from amc.cli.options import Spread
from amc.cli.profile import app as profile_app
from amc.cli.searching import inspect, resume, search
from amc.cli.studying import compare, sweep

app = typer.Typer(
    name="amc",
    help="Find the best per-layer pruning policy of a trained network for a budget, without fine-tuning in the loop.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (inspect, search, resume):
    app.command()(command)
for command in (compare, sweep):
    app.command(cls=Spread)(command)
for command in (apply, export, check, config):
    app.command()(command)
app.add_typer(profile_app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"amc {version('amc')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""


def main() -> None:
    """Entry point: bad input ends in one line and a non-zero exit, never in a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        more = "`amc resume RUN` goes on with a search, the same command with a measurement"
        _fail(f"stopped: what was written so far is complete; {more}", 130)
    except (ValueError, OSError) as error:
        _fail(" ".join(str(error).split()), 1)


def _fail(message: str, code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
