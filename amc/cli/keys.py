"""`amc config`: every key of a recipe, with type, default and meaning."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from amc.config.keys import Key, keys_of, nearest
from amc.config.search import SearchConfig

console = Console()

NAME_WIDTH = 29
"""Characters of the longest key."""


def config(
    text: Annotated[str, typer.Argument(help="Only keys with this in name or meaning.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every configuration key, for a recipe or `--set`: type, default, meaning."""
    keys = keys_of(SearchConfig)
    found = [key for key in keys if text.lower() in f"{key.name} {key.meaning}".lower()]
    if not found:
        near = nearest(text, [key.name for key in keys])
        cure = f"did you mean {near}?" if near else "`amc config` lists all"
        raise ValueError(f"some key must have the text in its name or meaning, but none has {text!r}: {cure}")
    if as_json:
        typer.echo(json.dumps([key._asdict() for key in found], indent=2))
    else:
        console.print(keys_table(found))


def keys_table(keys: list[Key]) -> Table:
    """A table of keys: the type stands under the name, so that 80 columns leave room for the meaning."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("key, type", width=NAME_WIDTH)
    table.add_column("default", width=14)
    table.add_column("meaning", min_width=30)
    for key in keys:
        kind = textwrap.fill(key.type, NAME_WIDTH, initial_indent="  ", subsequent_indent="  ")
        name = Text.assemble((key.name, "bold"), "\n", (kind, "dim"))
        table.add_row(name, Text(key.default_text), Text(key.meaning))
    return table
