"""The command line: every command by its module, and bad input as one line instead of a traceback."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from amc.cli.finetuning import finetune
from amc.cli.interrupts import NOTHING_LOST
from amc.cli.keys import config
from amc.cli.networks import apply, check, export
from amc.cli.options import Spread
from amc.cli.profile import app as profile_app
from amc.cli.searching import inspect, policy, resume, search
from amc.cli.studying import compare, sweep
from amc.cli.zoo import app as zoo_app
from hw_profiles.documents import one_line


class Commands(TyperGroup):
    """All commands; Ctrl-C ends in one line, where typer would say nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _stopped(stop)


app = typer.Typer(
    name="amc",
    cls=Commands,
    help="Find the best per-layer pruning policy of a trained network for a budget, without fine-tuning in the loop.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (inspect, policy, resume):
    app.command()(command)
for command in (search, compare, sweep):
    app.command(cls=Spread)(command)
for command in (finetune, apply, export, check, config):
    app.command()(command)
app.add_typer(profile_app)
app.add_typer(zoo_app)

LONGEST = 2000
"""Characters of an error's line."""


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
    except KeyboardInterrupt as stop:
        _stopped(stop)
    except (ValueError, OSError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    named = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
    notes = [f"; {note}" for note in getattr(error, "__notes__", ())]
    _say("error: ", "bold red", "".join([said, named, *notes]))
    sys.exit(1)


def _stopped(stop: KeyboardInterrupt) -> NoReturn:
    _say("stopped: ", "bold", "; ".join(getattr(stop, "__notes__", ())) or NOTHING_LOST)
    sys.exit(130)


def _say(mark: str, style: str, message: str) -> None:
    text = Text.assemble((mark, style), one_line(message, LONGEST))
    Console(stderr=True, soft_wrap=True).print(text, highlight=False)


if __name__ == "__main__":
    main()
