"""Latency of transformers: what a profile knows of KWT-1 and MiniLM, and KWT-1 at half of its measured latency.

Command: python -m experiments.transformers.latency PART --kwt1 DIR --minilm DIR, PART one of
  check  measures this CPU for the networks that are given (one thread, batch 1) and compares with pruned networks timed
         whole
  half   KWT-1 under `latency=0.5`, without and with `--branches`, and a little above: the found network and uniform
         widths timed beside the dense one
  page   writes experiments/results/transformer_latency.md of what is there (every part does so at its end)
Needs a quiet machine; a quarter of an hour, most of it for MiniLM. Finished pieces (JSON under runs/transformers) are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.chain import commit, processor

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS, TABLE = ROOT / "runs" / "transformers", ROOT / "experiments" / "results" / "transformer_latency.md"
PROFILE = RUNS / "profile-t1-b1.json"
TASKS = {"kwt1": "experiments.transformers.speech:kwt1", "minilm": "experiments.transformers.minilm:stsb"}
NETWORKS = {"kwt1": 30, "minilm": 20}
"""Pruned networks that are timed whole."""
SEARCHES = {
    "widths-50": ("--constraint", "latency=0.5"),
    "branches-50": ("--constraint", "latency=0.5", "--branches"),
    "branches-52": ("--constraint", "latency=0.52", "--branches"),
    "widths-55": ("--constraint", "latency=0.55"),
}
UNREACHABLE = "every budget must be reachable"
SEEDS = range(3)
SETTINGS = {
    "compression.images": 500,
    "knapsack.images": 64,
    "knapsack.widths": 6,
    "knapsack.audition_images": 250,
    "reward_images": 500,
    "backend.name": "fp32",
}
"""Lighter than the defaults, as in kwt1.md."""


def amc(*arguments: object, stderr: int | None = None) -> str:
    """What the command line prints, as a person would call it.

    Raises:
        subprocess.CalledProcessError: If it ends without a result; with what it says if `stderr` is `subprocess.PIPE`.
    """
    command = [sys.executable, "-m", "amc.cli.main", *map(str, arguments)]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True).stdout


def once(name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Stores the JSON of a piece that is not there yet."""
    path = RUNS / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make() | {"commit": commit(), "processor": processor()}, indent=1))


def check(folders: dict[str, Path]) -> None:
    """Measures the profile, and compares it with whole networks."""
    for name, folder in folders.items():
        options = ["--task", TASKS[name], "--data", folder]

        def run(name: str = name, options: list[object] = options) -> dict[str, Any]:
            said = amc("profile", "measure", *options, "--branches", "--out", PROFILE)
            found = amc("profile", "check", PROFILE, *options, "--networks", NETWORKS[name], "--json")
            checked: dict[str, Any] = json.loads(found[found.index("{") :])  # behind warnings
            return checked | {"measured": said.splitlines()}

        once(f"check-{name}", run)


def half(folders: dict[str, Path]) -> None:
    """KWT-1 under about half of its latency by the profile; where that is refused, what is said."""
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    for seed in SEEDS:
        for search, budget in SEARCHES.items():
            name = f"{search}-{seed}"

            def run(seed: int = seed, budget: tuple[str, ...] = budget, name: str = name) -> dict[str, Any]:
                task = ["--task", TASKS["kwt1"], "--data", folders["kwt1"], "--profile", PROFILE, "--agent", "knapsack"]
                options = [*budget, *settings, "--seed", seed, "--out", RUNS / name]
                try:
                    amc("search", *task, *options, stderr=subprocess.PIPE)
                except subprocess.CalledProcessError as refused:
                    if UNREACHABLE not in " ".join(refused.stderr.split()):
                        raise
                    return {"refused": refused.stderr}
                found: dict[str, Any] = json.loads((RUNS / name / "result.json").read_text())
                return found

            once(f"result-{name}", run)


def page() -> None:
    """The committed page, of the pieces that are there."""
    lines = [
        "# Latency of transformers",
        "",
        f"`python -m experiments.transformers.latency check half`, {processor()}.",
        "",
    ]
    for write in (_checks, _halves):
        lines += write()
    TABLE.write_text("\n".join(lines))


def _stored(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, json.loads(path.read_text())) for path in sorted(RUNS.glob(f"{pattern}.json"))]


def _checks() -> list[str]:
    rows = [
        f"| {name.removeprefix('check-')} | {c['networks']} | {c['median_relative_error']:.1%} | "
        f"{c['p95_relative_error']:.1%} | {c['spearman']:.3f} | {c['dense_ms']:.3f} | "
        f"{c['disturbed']['left'] if c['disturbed'] else 0} | {c['commit']} |"
        for name, c in _stored("check-*")
    ]
    head = [
        "One thread, batch 1. Held-out errors of whole pruned networks, spread evenly over what can be reached.",
        "Targets: median at most 5 %, rank correlation at least 0.97.",
        "",
        "| network | networks | median | 95 % | rank correlation | dense, ms | disturbed | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *rows, ""] if rows else []


def _halves() -> list[str]:
    rows = []
    for search, budget in SEARCHES.items():
        for name, found in _stored(f"result-{search}-[0-9]"):
            asked = f"| {' '.join(budget[1:])} | {name.rpartition('-')[2]} |"
            if "refused" in found:
                said = " ".join(found["refused"].split())[:200]
                rows.append(f"{asked} refused: {said} ... | | | | | | | {found['commit']} |")
            else:
                rows += [f"{asked} {row} | {found['commit']} |" for row in _networks(found)]
    head = [
        "KWT-1, agent knapsack, no fine-tuning; accuracy on 1,000 clips each, those of the "
        "test unseen. Target: a loss of at most 1.0 points at half of the measured latency.",
        "",
        "| allowed | seed | network | validation | test | predicted, ms | measured, ms | of dense | MACs | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *rows, ""] if rows else []


def _networks(found: dict[str, Any]) -> Iterator[str]:
    """Of the networks of one search: accuracy and costs."""
    times = found["measured"]["latency_ms"]
    for network in ("dense", "uniform", "found"):
        accuracy, costs = found[network]["accuracy"], found[network]["costs"]
        scores = " | ".join(f"{100 * accuracy[split]:.1f}" for split in ("validation", "test"))
        macs = costs["macs"] / found["dense"]["costs"]["macs"]
        yield (
            f"{network} | {scores} | {costs['latency_ms']:.3f} | {times[network]:.3f} | "
            f"{times[network] / times['dense']:.3f} | {macs:.0%}"
        )


def main() -> None:
    """Does some parts and rewrites the page."""
    parts = {"check": check, "half": half}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=(*parts, "page"))
    for name in TASKS:
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    folders = {name: folder.resolve() for name in TASKS if (folder := getattr(options, name))}
    for part in options.parts:
        if part in parts:
            parts[part](folders)
    page()


if __name__ == "__main__":
    main()
