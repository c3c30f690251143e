"""The whole mission on an embedded task, in minutes: `make demo`.

Command: python -m experiments.demo.run [--out runs/demo] [--seed 0]

1. Times the network's kernels on this machine: OUT/profile.json.
2. Searches the best widths at half of the latency: DDPG on two Ray workers; OUT is its run folder, with report.html.
3. Searches once more by multiply-accumulates alone, at a budget that takes the same latency: OUT/by_macs.
4. Writes OUT/found.onnx, verified against torch on real images.
5. Times all networks side by side and says what was won: OUT/demo.json.

Ctrl-C loses nothing: the same command goes on. Another --out begins anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from amc.export.onnx import export_onnx
from amc.pool.pool import InProcess
from amc.pool.ray import connected
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.profiling.measure import check_here, measure_profile
from amc.profiling.setting import Setting
from amc.profiling.store import read_profile
from amc.profiling.timing import Timing, latency_ms, rounds_in_words, timing_remarks
from amc.reporting.live import live
from amc.runs.folder import RunFolder
from amc.runs.found import Result
from amc.runs.library import search
from amc.scoring.paired import Difference, paired_difference
from amc.search.allocation.curves import damage_curves
from amc.search.allocation.knapsack import knapsack
from amc.search.result import NetworkReport
from amc.search.tools import Tools
from amc.storage.files import write_json
from amc.tasks.splits import verification_samples
from amc.tasks.task import Task, load_task
from envs.space.constraint import Budget, Constraint, InfeasibleBudget
from envs.units.anatomy import dissect
from hw_profiles.bench.measure import COARSE
from hw_profiles.cost import Macs

TASK = "cluttered-digits"
BUDGET = 0.5
"""Of the dense network's latency."""
WORKERS = 2
BLOCK = 16
"""Widths are multiples of it: what kernels with AVX-512 compute together. So the table needs few entries."""
MEASURING = replace(COARSE, knots=3, max_minutes=0.5, again_minutes=0.2, keep_disturbed=True)
SEARCH: dict[str, Any] = {
    "episodes": 40,
    "warmup": 12,
    "reward_images": 400,
    "rules": {"round_to": BLOCK},
    "compression": {"images": 320, "quick_images": 160},
    "knapsack": {"widths": 5, "images": 320},
}
"""Fewer images and episodes than the defaults, so that all is over in minutes."""
SECTIONS = 8
"""Halvings of the interval in which the budget of multiply-accumulates is looked for."""
TIMING_SECONDS = 6.0

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network of the comparison.

    Attributes:
        report: Accuracies and costs.
        timing: Measured side by side with the others.
    """

    report: NetworkReport
    timing: Timing


def measured(task: Task, path: Path) -> Path:
    """The latency table of this machine for the task's network; one that is there is kept, an interrupted one goes on.

    Raises:
        ValueError: If there is one of another machine.
    """
    if path.exists():
        check_here(read_profile(path), path)
        return path
    anatomy = dissect(task.network, task.example_input, verification_samples(task.calibration))
    with live(console) as screen:
        profile = measure_profile(anatomy, Setting(), MEASURING, path, screen.step, round_to=BLOCK)
    if (found := profile.sessions[-1].disturbed) is not None:
        console.print(found.in_words(), highlight=False)
    return path


def searched(budgets: Mapping[str, float], profile: Path, out: Path, seed: int) -> Result:
    """A search by DDPG on Ray workers; one that was interrupted goes on."""
    return search(TASK, budgets, searcher="ddpg", workers=WORKERS, seed=seed, out=out, profile=str(profile), **SEARCH)


def prepared_again(run: Path) -> Prepared:
    """What a search that has ended worked with; its damage curves are in the cache."""
    return prepare(set_up(RunFolder.reopen(run).config()))


def macs_at(latency: float, prepared: Prepared) -> float:
    """The least fraction of MACs at which a solution that counts MACs alone takes at least a latency, by the table.

    Args:
        latency: In milliseconds.
        prepared: Of a search with a profile over the same widths; its damage curves are used.
    """
    costing, table = prepared.setup.constraint.costing, prepared.setup.table
    if table is None:
        raise ValueError("equal latency needs a table, but the search had none: search with a profile")
    curves = next(iter(damage_curves(prepared, InProcess(), Tools.of(prepared, InProcess())).values()))
    dense = costing.one(Macs(), costing.dense())
    low, high = 0.0, 1.0
    for _ in range(SECTIONS):
        middle = (low + high) / 2
        try:
            constraint = Constraint.create(costing, [Budget(Macs(), middle * dense)])
            slower = costing.one(table, knapsack(constraint, curves)) >= latency
        except InfeasibleBudget:
            slower = False
        low, high = (low, middle) if slower else (middle, high)
    return high


def compared(found: Result, by_macs: Result, task: Task) -> dict[str, Row]:
    """The networks in the order in which they are shown, timed side by side."""
    networks: dict[str, nn.Module] = {
        "dense": found.networks["dense"],
        "uniform": found.networks["uniform"],
        "by MACs": by_macs.network,
        "found": found.network,
    }
    reports = {**found.reports, "by MACs": by_macs.reports["found"]}
    timings = latency_ms(networks, task.example_input, seconds=TIMING_SECONDS)
    return {name: Row(report=reports[name], timing=timings[name]) for name in networks}


def table_of(rows: Mapping[str, Row]) -> Table:
    """Accuracies, multiply-accumulates and measured latencies."""
    table = Table(title=f"{TASK}: no fine-tuning", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("validation", "test", "MACs", "table, ms", "measured, ms"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        costs = row.report.costs
        shown = [f"{row.report.accuracy[split]:.1%}" for split in ("validation", "test")]
        shown += [f"{costs['macs'] / 1e6:.1f} M", f"{costs['latency_ms']:.3f}", str(row.timing)]
        table.add_row(name, *shown, style="bold" if name == "found" else None)
    return table


def gain(rows: Mapping[str, Row], rival: str) -> Difference:
    """Test accuracy of found minus a rival's, on the same images."""
    found, other = (rows[name].report.each["test"] for name in ("found", rival))
    return paired_difference([found], [other])


def sentence(rows: Mapping[str, Row]) -> str:
    """What was won."""
    dense, found = rows["dense"], rows["found"]
    times = dense.timing.median_ms / found.timing.median_ms
    return (
        f"{times:.2f} times as fast as dense ({found.timing} against {dense.timing} ms, measured) at "
        f"{found.report.accuracy['test']:.1%} of test images right, dense {dense.report.accuracy['test']:.1%}: "
        f"{gain(rows, 'uniform')} over uniform widths, {gain(rows, 'by MACs')} over the search that counts MACs "
        "(95 % intervals)."
    )


def record(rows: Mapping[str, Row], seed: int, seconds: float) -> dict[str, Any]:
    """JSON-ready: everything that table and sentence are made of."""
    networks = {
        name: {
            "accuracy": row.report.accuracy,
            "costs": row.report.costs,
            "widths": list(row.report.key),
            "timing": asdict(row.timing),
        }
        for name, row in rows.items()
    }
    gains = {rival: gain(rows, rival)._asdict() for rival in ("uniform", "by MACs")}
    return {"seed": seed, "seconds": seconds, "networks": networks, "gains": gains, "sentence": sentence(rows)}


def demo(out: Path, seed: int) -> None:
    """All of it."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    task = load_task(TASK)
    console.rule("1. timing kernels on this machine")
    profile = measured(task, out / "profile.json")
    with connected(None, WORKERS):  # one Ray for both searches
        console.rule(f"2. searching at {BUDGET:.0%} of the latency")
        found = searched({"latency": BUDGET}, profile, out, seed)
        console.rule("3. searching by MACs alone, at the same latency")
        fraction = macs_at(found.reports["found"].costs["latency_ms"], prepared_again(out))
        by_macs = searched({"macs": fraction}, profile, out / "by_macs", seed)
    console.rule("4. exporting")
    difference = export_onnx(found.network, out / "found.onnx", task)
    console.print(f"onnxruntime and torch agree (largest relative difference {difference:.1e})", highlight=False)
    console.rule("5. timing networks side by side")
    rows = compared(found, by_macs, task)
    timings = {name: row.timing for name, row in rows.items()}
    console.print(table_of(rows))
    console.print(rounds_in_words([timing.rounds for timing in timings.values()]), style="dim", highlight=False)
    for remark in timing_remarks(timings, "found"):
        console.print(f"remark: {remark}", highlight=False)
    console.print(sentence(rows), style="bold", highlight=False)
    seconds = time.monotonic() - began
    write_json(out / "demo.json", record(rows, seed, seconds))
    console.print(f"{seconds:.0f} s; open {out / 'report.html'}", highlight=False)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        demo(options.out, options.seed)
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
