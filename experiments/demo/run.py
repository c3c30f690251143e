"""The whole mission on an embedded task, in minutes: `make demo`.

Command: python -m experiments.demo.run [--out runs/demo] [--seed 0]

1. Times the network's kernels on this machine: OUT/profile.json.
2. Searches the best widths at 8 % of the multiply-accumulates: DDPG on two Ray workers; OUT is its run folder, with
   report.html.
3. Writes OUT/found.onnx, verified against torch on real images.
4. Asks the knapsack for the best widths that take the same time on this machine, by the table: OUT/by_time.
5. Says what was won: OUT/demo.json.

Ctrl-C loses nothing: the same command goes on. Another --out begins anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from amc.export.onnx import export_onnx
from amc.profiling.measure import check_here, measure_profile
from amc.profiling.setting import Setting
from amc.profiling.store import read_profile
from amc.reporting.live import live
from amc.runs.found import Result
from amc.runs.library import search
from amc.scoring.paired import Difference, paired_difference
from amc.search.result import NetworkReport
from amc.storage.files import write_json
from amc.tasks.splits import verification_samples
from amc.tasks.task import Task, load_task
from envs.space.constraint import InfeasibleBudget
from envs.units.anatomy import dissect
from hw_profiles.bench.measure import COARSE

TASK = "cluttered-digits"
BUDGET = 0.08
"""Of the dense network's multiply-accumulates: so few that damages do not add up, and there is something to learn."""
WORKERS = 2
FINE, BLOCK = 4, 16
"""Widths are multiples of it. Where time counts, of the channels that kernels with AVX-512 compute together: so the
table needs few entries."""
MEASURING = replace(COARSE, knots=3, max_minutes=0.5, again_minutes=0.2, keep_disturbed=True)
SEARCH: dict[str, Any] = {
    "reward_images": 400,
    "compression": {"images": 320, "quick_images": 160},
    "knapsack": {"widths": 5, "images": 320},
    "backend": {"name": "fp32"},
}
"""Fewer images than the defaults, and no trial of which precision is faster, so that all is over in minutes."""
ALLOCATION = SEARCH | {"knapsack": {**SEARCH["knapsack"], "images": 160, "damages": ("logits",)}}
"""Where no episodes follow: one kind of damage, so that there is nothing to choose between."""
EPISODES, WARMUP = 120, 12
BY_TIME = "by time"

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network of the comparison.

    Attributes:
        report: Accuracies and costs.
        latency_ms: Measured in onnxruntime at the end of its search, one thread, batch 1.
        share: Of the dense network's, measured side by side.
    """

    report: NetworkReport
    latency_ms: float
    share: float

    @classmethod
    def of(cls, result: Result, name: str) -> Row:
        """Of a network by its name in the reports of a search."""
        latency = result.record["measured"]["latency_ms"][name]
        return cls(report=result.reports[name], latency_ms=latency, share=share(result, name))


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


def searched(out: Path, seed: int) -> Result:
    """A search by DDPG on Ray workers; one that was interrupted goes on."""
    budget, rules = {"macs": BUDGET}, {"round_to": FINE}
    learning: dict[str, Any] = {"episodes": EPISODES, "warmup": WARMUP, "rules": rules, **SEARCH}
    return search(TASK, budget, searcher="ddpg", workers=WORKERS, seed=seed, out=out, **learning)


def by_time(found: Result, profile: Path, out: Path, seed: int) -> Result | None:
    """What the knapsack finds by this machine's table within the share of the dense latency that found took.

    None where no widths in blocks are as fast, which depends on the machine.
    """
    budget, rules = {"latency": share(found, "found")}, {"round_to": BLOCK}
    given: dict[str, Any] = {"seed": seed, "out": out, "profile": str(profile), "rules": rules, **ALLOCATION}
    try:
        return search(TASK, budget, searcher="knapsack", **given)
    except InfeasibleBudget as error:
        console.print(f"left out: {error}", highlight=False)
        return None


def share(result: Result, name: str) -> float:
    """A network's latency as a share of dense, measured side by side at the end of the search."""
    latencies: Mapping[str, float] = result.record["measured"]["latency_ms"]
    return latencies[name] / latencies["dense"]


def compared(found: Result, timed: Result | None) -> dict[str, Row]:
    """The networks in the order in which they are shown."""
    shown = {"dense": "dense", "uniform": "uniform", "knapsack": "start", "DDPG": "found"}
    rows = {title: Row.of(found, name) for title, name in shown.items()}
    return rows if timed is None else {**rows, BY_TIME: Row.of(timed, "found")}


def table_of(rows: Mapping[str, Row]) -> Table:
    """Accuracies, multiply-accumulates and measured latencies."""
    table = Table(title=f"{TASK}: no fine-tuning", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("validation", "test", "MACs", "measured, ms", "of dense"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        shown = [f"{row.report.accuracy[split]:.1%}" for split in ("validation", "test")]
        shown += [f"{row.report.costs['macs'] / 1e6:.1f} M", f"{row.latency_ms:.3f}", f"{row.share:.2f}"]
        table.add_row(name, *shown, style="bold" if name == "DDPG" else None)
    return table


def gain(rows: Mapping[str, Row], rival: str) -> Difference:
    """Test accuracy of DDPG's network minus a rival's, on the same images."""
    found, other = (rows[name].report.each["test"] for name in ("DDPG", rival))
    return paired_difference([found], [other])


def sentences(rows: Mapping[str, Row]) -> list[str]:
    """What was won: by the agent, and by the table."""
    found, timed = rows["DDPG"], rows.get(BY_TIME)
    learned = (
        f"At {BUDGET:.0%} of the multiply-accumulates DDPG found {gain(rows, 'knapsack')} over the knapsack that it "
        f"started from, {gain(rows, 'uniform')} over uniform widths (test images, 95 % intervals), "
        f"{1 / found.share:.1f} times as fast as dense, measured."
    )
    if timed is None:
        return [learned]
    return [
        learned,
        f"Where time is what counts: by this machine's table the knapsack has {timed.report.accuracy['test']:.1%} of "
        f"test images right in {timed.share:.2f} of the dense latency, at {found.share:.2f} allowed.",
    ]


def record(rows: Mapping[str, Row], seed: int, seconds: float) -> dict[str, Any]:
    """JSON-ready: everything that table and sentences are made of."""
    networks = {
        name: {
            "accuracy": row.report.accuracy,
            "costs": row.report.costs,
            "measured_ms": row.latency_ms,
            "share_of_dense": row.share,
        }
        for name, row in rows.items()
    }
    gains = {rival: gain(rows, rival)._asdict() for rival in ("uniform", "knapsack")}
    return {"seed": seed, "seconds": seconds, "networks": networks, "gains": gains, "said": sentences(rows)}


def demo(out: Path, seed: int) -> None:
    """All of it."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    task = load_task(TASK)
    console.rule("1. timing kernels on this machine")
    profile = measured(task, out / "profile.json")
    console.rule(f"2. searching at {BUDGET:.0%} of the multiply-accumulates")
    found = searched(out, seed)
    console.rule("3. exporting")
    difference = export_onnx(found.network, out / "found.onnx", task)
    console.print(f"onnxruntime and torch agree (largest relative difference {difference:.1e})", highlight=False)
    console.rule("4. the same time on this machine, by its table")
    timed = by_time(found, profile, out / "by_time", seed)
    console.rule("5. what was won")
    rows = compared(found, timed)
    console.print(table_of(rows))
    for remark in dict.fromkeys([*found.remarks, *(timed.remarks if timed else ())]):
        console.print(f"remark: {remark}", highlight=False)
    for sentence in sentences(rows):
        console.print(sentence, style="bold", highlight=False)
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
