"""Latency on real hardware: shipped profiles, their error, budgets kept, and rivals at equal measured latency.

Command: python -m experiments.latency PART --data DIR --weights DIR, PART one of
  profiles  measures this CPU for the shipped tables (threads 1 and 2, batch 1 and 8; ResNets, MobileNet-V2, digits)
  check     predicted against measured whole networks, 30 each
  budgets   cifar10-resnet56 at 0.65 and 0.8 of the dense latency, 5 seeds, timed alternating with dense
  rivals    the search by the table against uniform and against MACs alone, at equal measured latency, 3 seeds
  page      writes experiments/results/latency.md of what is there (every part does so at its end)
Needs a quiet machine. Finished pieces (JSON under runs/latency) are not repeated; interrupted ones go on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amc.config.search import load_config
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.profiling.networks import network_at
from amc.profiling.pairs import time_pair
from amc.profiling.runtimes import make_runtime
from amc.profiling.setting import Setting
from amc.scoring.paired import paired_difference
from amc.search.confirm import confirmed
from amc.search.starts import starting_keys
from amc.search.tools import Tools
from envs.space.assignment import Key
from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parent.parent
RUNS, TABLE = ROOT / "runs" / "latency", ROOT / "experiments" / "results" / "latency.md"
DATA = ROOT / "hw_profiles" / "data"
MOBILENET = "experiments.vision.mobilenet:mobilenet_v2"
TASKS = ("cifar10-resnet56", MOBILENET, "digits")
SETTINGS = tuple(Setting(threads=threads, batch=batch) for batch in (1, 8) for threads in (1, 2))
FRACTIONS = (0.65, 0.8)
BUDGET_SEEDS = range(5)
RIVAL_SEEDS = range(3)
SITTINGS = 3
EQUAL, BISECTIONS = 0.02, 12
"""Measured latencies count as equal within this."""


class Place(NamedTuple):
    """Where data and weights lie."""

    data: Path
    weights: Path

    def options(self, task: str) -> list[str]:
        """Command-line options of a task."""
        if not task.startswith("cifar10-"):
            return []
        weights = self.weights / f"{task.removeprefix('cifar10-')}_cifar10.safetensors"
        return ["--data", str(self.data), "--checkpoint", str(weights)]


def profile_path(setting: Setting) -> Path:
    """File of a shipped profile: processor, runtime, threads, batch."""
    name = re.sub(r"[^a-z0-9]+", "-", processor().split(",")[0].lower()).strip("-")
    return DATA / f"{name}-onnxruntime-t{setting.threads}-b{setting.batch}.json"


def amc(*arguments: object) -> None:
    """The command line, as a person would call it."""
    subprocess.run([sys.executable, "-m", "amc.cli.main", *map(str, arguments)], check=True, cwd=ROOT)


def once(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON of a finished piece, or of the piece done now."""
    path = RUNS / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make() | {"commit": commit()}, indent=1))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def profiles(place: Place) -> None:
    """Measures what is missing of every shipped profile."""
    for setting in SETTINGS:
        for task in TASKS:
            amc(
                "profile",
                "measure",
                "--task",
                task,
                *place.options(task),
                "--threads",
                setting.threads,
                "--batch",
                setting.batch,
                "--out",
                profile_path(setting),
            )


def check(place: Place) -> None:
    """Checks every profile on every network that it serves; ResNet-20 by what was measured for ResNet-56."""
    for setting in SETTINGS:
        path = profile_path(setting)
        for task in (*TASKS, "cifar10-resnet20"):

            def run(task: str = task, path: Path = path) -> dict[str, Any]:
                command = [
                    sys.executable,
                    "-m",
                    "amc.cli.main",
                    "profile",
                    "check",
                    str(path),
                    "--task",
                    task,
                    *place.options(task),
                    "--networks",
                    "30",
                    "--json",
                ]
                done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
                found: dict[str, Any] = json.loads(done.stdout)
                return found

            once(f"check-{task.rpartition(':')[2]}-t{setting.threads}-b{setting.batch}", run)


def prepared_for(place: Place, seed: int, constraint: dict[str, float], agent: str = "knapsack") -> Prepared:
    """ResNet-56 under some budgets, with the profile of one thread and batch 1."""
    options = place.options("cifar10-resnet56")
    values = {
        "task": "cifar10-resnet56",
        "data": options[1],
        "checkpoint": options[3],
        "agent": agent,
        "seed": seed,
        "constraint": constraint,
        "profile": str(profile_path(SETTINGS[0])),
    }
    return prepare(set_up(load_config(None, values)))


def measured_ratio(prepared: Prepared, key: Key) -> float:
    """Latency of the pruned network over that of the dense one, timed whole, in turn; median of fresh sessions."""
    task, anatomy, setting = prepared.setup.task, prepared.setup.anatomy, SETTINGS[0]
    kept = prepared.setup.assignment(key).decisions.kept
    full = {unit.name: unit.channels for unit in anatomy.units}
    both = network_at(task.network, anatomy, full | kept), task.network
    ratios = []
    for _ in range(SITTINGS):
        runtime = make_runtime(setting)
        pruned, dense = (runtime.network(network, task.example_input) for network in both)
        ratios.append(time_pair(pruned, dense).ratio)
    return float(np.median(ratios))


def outcome(prepared: Prepared, key: Key) -> dict[str, Any]:
    """Repaired in full: validation accuracy, each image's score, measured ratio, predicted costs."""
    tools = Tools.of(prepared, InProcess())
    one = next(confirmed(prepared, InProcess(), tools, tools.dense_outputs(prepared), [key]))
    return {
        "widths": list(key),
        "validation": one.score.value,
        "each": one.score.each.tolist(),
        "measured": measured_ratio(prepared, key),
        "costs": prepared.setup.real_costs(one.network),
    }


def solved(prepared: Prepared) -> Key:
    """What the configured agent computes."""
    return next(iter(starting_keys(prepared, InProcess(), Tools.of(prepared, InProcess())).values()))


def by_table(place: Place, fraction: float, seed: int) -> dict[str, Any]:
    """What the search by the table finds under a budget of the dense latency, repaired in full and timed."""

    def run() -> dict[str, Any]:
        prepared = prepared_for(place, seed, {"latency": fraction})
        table = prepared.setup.table
        p95 = table.correction.p95_relative_error if table is not None and table.correction else 0.0
        return outcome(prepared, solved(prepared)) | {"budget": fraction, "p95": p95}

    return once(f"budget-{fraction}-{seed}", run)


def budgets(place: Place) -> None:
    """Searches under latency budgets; the found network is timed alternating with dense."""
    for seed in BUDGET_SEEDS:
        for fraction in FRACTIONS:
            by_table(place, fraction, seed)


def rivals(place: Place) -> None:
    """At the measured latency of the search by the table: uniform widths, and the same agent counting MACs."""
    for seed in RIVAL_SEEDS:
        for fraction in FRACTIONS:
            target = by_table(place, fraction, seed)["measured"]
            for agent in ("uniform", "knapsack"):

                def other(agent: str = agent, seed: int = seed, target: float = target) -> dict[str, Any]:
                    return bisected(place, agent, seed, target)

                once(f"rival-{agent}-{fraction}-{seed}", other)


def bisected(place: Place, agent: str, seed: int, target: float) -> dict[str, Any]:
    """The rival whose MACs budget is bisected until its measured latency is the target's within 2 %.

    Where it jumps over the target (a cliff of the tiles), the closest one *above* it: the rival gets more time.
    """
    low, high = 0.05, 1.0
    above: tuple[float, float, Key] | None = None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        prepared = prepared_for(place, seed, {"macs": middle}, agent)
        key = solved(prepared)
        ratio = measured_ratio(prepared, key)
        if abs(ratio / target - 1) <= EQUAL:
            break
        if ratio > target:
            high = middle
            above = min(above or (ratio, middle, key), (ratio, middle, key))
        else:
            low = middle
    else:
        if above is not None:
            prepared = prepared_for(place, seed, {"macs": above[1]}, agent)
            key = above[2]
    return outcome(prepared, key) | {"macs_budget": middle, "target": target}


def page() -> None:
    """The committed page, of the pieces that are there."""
    parts = [f"# Latency on {processor()}\n\n`python -m experiments.latency PART --data DIR --weights DIR`\n"]
    for title, write in (("Predicted and measured", _checks), ("Budgets kept", _budgets), ("Rivals", _rivals)):
        lines = write()
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    TABLE.write_text("\n".join(parts))


def _stored(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, json.loads(path.read_text())) for path in sorted(RUNS.glob(f"{pattern}.json"))]


def _checks() -> list[str]:
    rows = [
        f"| {name.removeprefix('check-')} | {c['networks']} | {c['median_relative_error']:.1%} | "
        f"{c['p95_relative_error']:.1%} | {c['spearman']:.3f} | {c['dense_ms']:.3f} | {c['commit']} |"
        for name, c in _stored("check-*")
    ]
    head = [
        "Held-out errors of whole pruned networks, spread evenly over what can be reached.",
        "",
        "| network, threads, batch | networks | median | 95 % | rank correlation | dense, ms | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    return head + rows if rows else []


def _budgets() -> list[str]:
    found = _stored("budget-*")
    rows = []
    for name, r in found:
        kept = "yes" if r["measured"] <= r["budget"] * (1 + r["p95"]) else "no"
        seed = name.rpartition("-")[2]
        accuracy = 100 * r["validation"]
        rows.append(f"| {r['budget']} | {seed} | {r['measured']:.3f} | {kept} | {accuracy:.2f} | {r['commit']} |")
    head = [
        "cifar10-resnet56, agent knapsack; kept: within the profile's held-out 95 % error.",
        "",
        "| budget | seed | measured | kept | validation | commit |",
        "|---|---|---|---|---|---|",
    ]
    return head + rows if rows else []


def _rivals() -> list[str]:
    rows = []
    for fraction in FRACTIONS:
        for rival in ("uniform", "knapsack"):
            pairs = []
            for seed in RIVAL_SEEDS:
                files = [RUNS / f"{who}-{fraction}-{seed}.json" for who in ("budget", f"rival-{rival}")]
                if all(file.exists() for file in files):
                    pairs.append([json.loads(file.read_text()) for file in files])
            if pairs:
                rows.append(_rival_row(fraction, rival, pairs))
    head = [
        "At equal measured latency (rivals bisected); difference of validation accuracy in points, 95 % interval "
        "over paired images and seeds.",
        "",
        "| budget | rival | measured, ours vs theirs | validation | difference | commit |",
        "|---|---|---|---|---|---|",
    ]
    return head + rows if rows else []


def _rival_row(fraction: float, rival: str, pairs: Sequence[Sequence[dict[str, Any]]]) -> str:
    ours, theirs = ([np.asarray(pair[k]["each"], dtype=np.float32) for pair in pairs] for k in (0, 1))
    mean, half = paired_difference(ours, theirs)
    values = {
        key: [" / ".join(f"{scale * pair[k][key]:.{digits}f}" for pair in pairs) for k in (0, 1)]
        for key, scale, digits in (("measured", 1, 3), ("validation", 100, 2))
    }
    name = "uniform" if rival == "uniform" else "knapsack by MACs"
    shown = " | ".join(" vs ".join(values[key]) for key in ("measured", "validation"))
    return f"| {fraction} | {name} | {shown} | {100 * mean:+.2f} ± {100 * half:.2f} | {pairs[0][0]['commit']} |"


def main() -> None:
    """Does one part and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("profiles", "check", "budgets", "rivals", "page"))
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--weights", type=Path, default=None)
    options = parser.parse_args()
    if options.part != "page":
        if options.data is None or options.weights is None:
            parser.error("--data and --weights are needed")
        place = Place(options.data.resolve(), options.weights.resolve())
        {"profiles": profiles, "check": check, "budgets": budgets, "rivals": rivals}[options.part](place)
    page()


if __name__ == "__main__":
    main()
