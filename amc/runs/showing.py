"""A run that has ended, on a console: the comparison, what it took, and where its files are."""

from __future__ import annotations

from rich.console import Console

from amc.export.applied import POLICY, WEIGHTS
from amc.reporting.tables import comparison
from amc.runs.folder import REPORT, RESULT
from amc.runs.runner import Run


def show_run(run: Run, console: Console) -> None:
    """Prints the comparison of dense, uniform, start and found, the effort, and the files."""
    result = run.result
    console.print(comparison(result, run.latency))
    effort = f"{result.evaluations} evaluations, {result.image_forwards:,} forward passes, {result.seconds:.0f} s"
    if result.images.scored < result.images.plain:
        effort += f", {result.images.scored / result.images.plain:.0%} of the samples that the plain way scores"
    if result.failures:
        effort += f", {result.failures} of {result.episodes} evaluations failed"
    if result.workers.workers:
        effort += f", {result.workers.workers} workers idle {result.workers.idle:.0%} of the time"
    console.print(f"searched with {effort}; wrote", highlight=False)
    for name in (POLICY, WEIGHTS, RESULT, REPORT):
        console.print(f"  {run.folder / name}", highlight=False, soft_wrap=True)
