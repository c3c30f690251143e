"""The command line: every command by its module, and bad input as one line instead of a traceback."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from amc.cli.keys import config
from amc.cli.networks import apply, check, export
from amc.cli.options import Spread
from amc.cli.profile import app as profile_app
from amc.cli.searching import inspect, resume, search
from amc.cli.studying import compare, sweep
from hw_profiles.documents import one_line

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

LONGEST = 2000
"""Characters of an error's line."""


def main() -> None:
    """Entry point: bad input ends in one line and a non-zero exit, never in a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        more = "`amc resume RUN` goes on with a search, the same command with a measurement"
        _fail(f"stopped: what was written so far is complete; {more}", 130)
    except (ValueError, OSError) as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    text = Text.assemble(("error: ", "bold red"), one_line(message, LONGEST))
    Console(stderr=True, soft_wrap=True).print(text, highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
