"""What `show()` prints below the table of a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from amc.export.applied import POLICY, WEIGHTS
from amc.runs.folder import REPORT, RESULT


def show_files(result: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Prints the effort of a search, and its files.

    Args:
        result: The content of its `result.json`.
        folder: Its run folder.
        console: Where to print.
    """
    effort = f"{result['evaluations']} evaluations, {result['image_forwards']:,} forward passes"
    effort += f", {result['measured']['seconds']:.0f} s"
    if (images := result["images"])["scored"] < images["plain"]:
        effort += f", {images['scored'] / images['plain']:.0%} of the samples that the plain way scores"
    if result["failures"]:
        effort += f", {result['failures']} of {result['episodes']} evaluations failed"
    if (workers := result["measured"]["workers"])["number"]:
        effort += f", {workers['number']} workers idle {workers['idle']:.0%} of the time"
    console.print(f"searched with {effort}; wrote", highlight=False)
    for name in (POLICY, WEIGHTS, RESULT, REPORT):
        console.out(f"  {folder / name}", highlight=False)
