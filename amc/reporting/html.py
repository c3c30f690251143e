"""The report of a run for people: one self-contained HTML file, made by the template `report.html.j2`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from amc.profiling.timing import rounds_in_words
from amc.reporting import sections
from amc.reporting.facts import ReportData
from amc.reporting.pictures import COLORS, INK
from amc.reporting.words import amount, cost_label, written
from amc.storage.files import write_text

TEMPLATE = "report.html.j2"


def write_report(path: Path, data: ReportData) -> None:
    """Writes the report of a finished search, atomically.

    Args:
        path: The HTML file.
        data: What it shows.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text(path, render(data))


def render(data: ReportData) -> str:
    """The whole page; text from the data is escaped wherever it stands."""
    return _environment().get_template(TEMPLATE).render(data=data, sections=sections, colors=COLORS, ink=INK)


@cache
def _environment() -> Environment:
    """Where templates are found, and the filters that they use."""
    environment = Environment(
        loader=PackageLoader("amc.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "amount": amount,
        "cost_label": cost_label,
        "number": format,
        "rounds_in_words": rounds_in_words,
        "written": written,
    }
    return environment
