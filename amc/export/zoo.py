"""The zoo: policies of known networks that were searched before, and the figures that they reached.

NETWORK/DEVICE/BUDGET.json is a policy without weights; `figures.csv` has a row for each. They lie beside the packages
in the source checkout (experiments/zoo), and are read as any file from anywhere is: none of them chooses code.
"""

from __future__ import annotations

import csv
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from envs.space.policy import Policy
from hw_profiles.documents import read_text

FIGURES = "figures.csv"
HOME = Path(__file__).resolve().parent.parent.parent / "experiments" / "zoo"
SHARES = ("dense", "uniform", "found", "macs", "params", "latency")
"""Columns that hold fractions."""


def zoo_folder(given: Path | None) -> Path:
    """The folder named, or that of the checkout.

    Raises:
        ValueError: If there is no zoo there.
    """
    folder = HOME if given is None else given
    if not (folder / FIGURES).is_file():
        raise ValueError(
            f"a zoo is a folder with {FIGURES}, but {str(folder)!r} has none: name one with --zoo DIR, such as "
            "experiments/zoo of a source checkout"
        )
    return folder


def read_figures(folder: Path) -> list[dict[str, str]]:
    """The rows of a zoo, [] where it has none yet."""
    path = folder / FIGURES
    if not path.is_file():
        return []
    return list(csv.DictReader(read_text(path, "figures of a zoo", "CSV file").splitlines()))


def policy_file(folder: Path, name: str) -> Path:
    """The policy of an entry.

    Raises:
        ValueError: If there is none of that name.
    """
    names = [row["name"] for row in read_figures(folder)]
    if name not in names:
        raise ValueError(f"the zoo must have the entry, but has no {name!r}: it has {', '.join(names)}")
    return folder / f"{name}.json"


def figures_table(folder: Path) -> Table:
    """All entries, with what they reached on test samples without fine-tuning."""
    table = Table(title=Text("test metric without fine-tuning, costs of dense"), box=box.SIMPLE_HEAD)
    table.add_column("entry")
    for heading in SHARES:
        table.add_column(heading, justify="right")
    for row in read_figures(folder):
        shares = [f"{float(row[name]):.2%}" if row[name] else "-" for name in SHARES]
        table.add_row(Text(row["name"]), *map(Text, shares))
    return table


def widths_table(policy: Policy, row: dict[str, str]) -> Table:
    """Kept channels of every unit; above them, where the figures come from."""
    said = ", ".join(f"{key} {row[key]}" for key in ("task", "agent", "seeds", "commit", "machine"))
    table = Table(title=Text(said), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("unit", "channels", "kept"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    for entry in policy.units:
        table.add_row(Text(entry.unit.name), str(entry.unit.channels), str(len(entry.indices)))
    return table
