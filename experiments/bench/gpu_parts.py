"""The parts of `gpu.py`: what each measures, and the lines that tell it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
import torch.nn.functional as F

import amc.problem.setup
import envs.repair.sequential
from amc.config.search import SearchConfig
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.profiling.check import CheckOptions, Subject, check_profile
from amc.profiling.measure import measure_profile
from amc.profiling.setting import Setting
from amc.scoring.scorer import Scorer
from amc.search.allocation import curves
from amc.search.loop import search
from amc.tasks.task import load_task
from envs.compression.compress import Compressor
from envs.parallel import THREADS, cores
from envs.units.anatomy import dissect
from experiments.bench.sparse24 import PRODUCTS, SMALL, attempt
from experiments.bench.stopwatch import Stopwatch
from experiments.chain import ROOT
from hw_profiles.bench.measure import MeasureOptions
from hw_profiles.passes import in_words

Found = dict[str, Any]
Note = Callable[[Found], None]

PHASES = ("finding units", "calibration", "damage curves", "repair", "scoring")
BATCH, CHECKED = 64, 12
"""Images of the profile's networks, and how many networks are timed whole."""
EFFORT = MeasureOptions(
    knots=4,
    tolerance=0.1,
    max_rounds=1,
    max_entries=200,
    max_minutes=0.5,
    confidence=0.03,
    max_blocks=11,
    again_minutes=0.5,
    keep_disturbed=True,
)
"""A machine that others use is seldom quiet: what stays disturbed is kept, and how much it is is told."""
HASTE = replace(EFFORT, max_minutes=0.0, again_minutes=0.01)
QUICK: Found = {
    "reward_images": 64,
    "compression": {"images": 32},
    "knapsack": {"images": 16, "widths": 2, "audition_images": 64},
}


class Part(NamedTuple):
    """One part: measures and notes what it finds as it goes; the lines that tell it."""

    play: Callable[[argparse.Namespace, Note], None]
    lines: Callable[[Found], list[str]]


# Tests


def play_tests(options: argparse.Namespace, note: Note) -> None:
    """Runs the tests marked cuda. Warnings are no errors: the versions there may be others than those we develop on."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "cuda",
            "-q",
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_logging=system-out",
            f"--junitxml={report}",
            *files,
        ]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError((ended.stdout + ended.stderr).strip().splitlines()[-1])
        note(read_report(ElementTree.parse(report).getroot()))


def read_report(root: ElementTree.Element) -> Found:
    """Counts, and every test with its outcome, seconds, first line of the failure and what it printed."""
    tests = []
    for case in root.iter("testcase"):
        kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        bad = next((child for child in case if child.tag in kinds), None)
        test = {"name": case.get("name", ""), "seconds": float(case.get("time", 0))}
        test["outcome"] = "passed" if bad is None else kinds[bad.tag]
        if bad is not None:
            test["reason"] = bad.get("message", "").partition("\n")[0][:300]
        printed = [line for line in (case.findtext("system-out") or "").splitlines() if "widths" in line]
        tests.append(test | ({"printed": printed} if printed else {}))
    counts = {k: sum(test["outcome"] == k for test in tests) for k in ("passed", "failed", "skipped")}
    return {"counts": counts, "tests": tests}


def tell_tests(part: Found) -> list[str]:
    """Counts, then the failures."""
    counts = [f"{count} {outcome}" for outcome, count in part.get("counts", {}).items()]
    broken = [f"{t['name']}: {t['reason']}" for t in part.get("tests", []) if t["outcome"] == "failed"]
    return [", ".join(counts), *broken]


# Search


class Phases(Stopwatch):
    """Wall time by phase; whatever happens for the damage curves counts to them."""

    def __init__(self, device: str) -> None:
        """Waits for the GPU at every boundary."""
        super().__init__(lambda: _now(device))
        self._open: list[str] = []

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Counts the time within to a phase."""
        self._open.append("damage curves" if "damage curves" in self._open else part)
        try:
            with super().timing(self._open[-1]):
                yield
        finally:
            self._open.pop()

    def watch(self) -> None:
        """Wraps what the phases are made of."""
        self.wrap(amc.problem.setup, "dissect", "finding units")
        self.wrap(Compressor, "__init__", "calibration")
        self.wrap(envs.repair.sequential, "record_targets", "calibration")
        self.wrap(curves, "measure_damage", "damage curves")
        self.wrap(Compressor, "compress", "repair")
        self.wrap(Scorer, "__call__", "scoring")
        self.wrap(Scorer, "outputs", "scoring")


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def play_search(options: argparse.Namespace, note: Note) -> None:
    """The same search on the device, on the CPU, and on the device with one thread for the CPU's part of the work."""
    warm_up(options.device)
    runs = {"device": searched(options, options.device)}
    note(runs)
    runs["cpu"] = searched(options, "cpu")
    note(runs | {"ratio": ratios(runs["device"], runs["cpu"])})
    os.environ[THREADS] = "1"
    note({"device, one thread": searched(options, options.device)})


def warm_up(device: str) -> None:
    """Loads the libraries that a GPU loads when first asked."""
    image, weight = (torch.ones(8, 8, 8, 8, device=device, dtype=torch.bfloat16) for _ in range(2))
    for dtype in (torch.float32, torch.bfloat16):
        F.conv2d(image.to(dtype), weight.to(dtype))
    torch.linalg.cholesky(torch.eye(8, dtype=torch.float64, device=device))
    _now(device)


def searched(options: argparse.Namespace, device: str) -> Found:
    """One search with nothing remembered: accuracies, widths, costs, seconds by phase."""
    phases = Phases(device)
    phases.watch()
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AMC_CACHE"] = folder
            began = _now(device)
            prepared = prepare(set_up(config_of(options, device)))
            result = search(prepared)
            whole = _now(device) - began
    finally:
        phases.restore()
    seconds = {phase: phases.seconds.get(phase, 0.0) for phase in PHASES}
    return {
        "device": device,
        "threads": cores(),
        "backend": prepared.config.backend.model_dump(mode="json"),
        "chunk": prepared.setup.scorer.chunk,
        "images": [len(s) for s in (prepared.setup.task.calibration, prepared.setup.task.validation)],
        "accuracy": {name: report.accuracy for name, report in result.reports.items()},
        "costs": {name: report.costs for name, report in result.reports.items()},
        "widths": list(result.reports["found"].key),
        "phases": {**seconds, "other": whole - sum(seconds.values()), "whole": whole},
    }


def config_of(options: argparse.Namespace, device: str) -> SearchConfig:
    """Half the MACs."""
    settings: Found = {
        "task": options.task,
        "data": options.data,
        "checkpoint": options.checkpoint,
        "constraint": {"macs": 0.5},
        "agent": "knapsack",
        "seed": options.seed,
        "device": device,
    }
    return SearchConfig(**settings, **(QUICK if options.quick else {}))


def ratios(device: Found, cpu: Found) -> Found:
    """How many times as long the CPU takes, by phase."""
    return {phase: cpu["phases"][phase] / max(seconds, 1e-9) for phase, seconds in device["phases"].items()}


def tell_search(part: Found) -> list[str]:
    """Accuracies, then seconds by phase."""
    runs = {name: part[name] for name in ("device", "cpu", "device, one thread") if name in part}
    lines = []
    for name, run in runs.items():
        scores = [f"{who} {100 * a['validation']:.2f} / {100 * a['test']:.2f}" for who, a in run["accuracy"].items()]
        lines.append(f"{name}: {', '.join(scores)} (validation / test), backend {run['backend']['name']}")
    for phase in (*PHASES, "other", "whole") if runs else ():
        times = [f"{name} {run['phases'][phase]:.1f} s" for name, run in runs.items()]
        ratio = f", CPU / device {part['ratio'][phase]:.1f}" if "ratio" in part else ""
        lines.append(f"{phase}: {', '.join(times)}{ratio}")
    return lines


# 2:4


def play_sparse(options: argparse.Namespace, note: Note) -> None:
    """Every shape in turn."""
    found: list[Found] = []
    for product in SMALL if options.quick else PRODUCTS:
        found.append(attempt(product, options.device))
        note({"layers": found})


def tell_sparse(part: Found) -> list[str]:
    """A line per layer."""
    return [f"{layer['name']}: {_compared(layer)}" for layer in part.get("layers", [])]


def _compared(layer: Found) -> str:
    if "failed" in layer:
        return str(layer["failed"])
    conv = f", dense convolution {layer['conv_ms']:.3f} ms" if "conv_ms" in layer else ""
    dense, sparse = layer["dense_kernels_ms"], layer["sparse_kernels_ms"]
    kernels = f", kernels alone {sparse / dense:.2f}" if dense and sparse else ""
    return (
        f"dense {layer['dense_ms']:.3f} ms, 2:4 {layer['sparse_ms']:.3f} ms, ratio {layer['ratio']:.2f}{kernels}{conv}"
    )


# Profile


def play_profile(options: argparse.Namespace, note: Note) -> None:
    """Measures a profile through torch in float16 and checks it on whole networks."""
    task = load_task(options.task, data=options.data, checkpoint=options.checkpoint)
    anatomy = dissect(task.network, task.example_input)
    setting = Setting(runtime="torch", dtype="fp16", batch=1 if options.quick else BATCH)
    effort = HASTE if options.quick else EFFORT
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        began = time.perf_counter()
        profile = measure_profile(anatomy, setting, effort, path, lambda what, done, total: None)
        disturbed = profile.sessions[0].disturbed
        note(
            {
                "batch": setting.batch,
                "entries": len(profile.probes()),
                "measuring": time.perf_counter() - began,
                "disturbed": disturbed.model_dump() if disturbed else None,
                "profile": profile.model_dump(mode="json"),
            }
        )
    checked = check_profile(
        profile,
        "here",
        Subject(task.name, task.network, task.example_input, anatomy),
        CheckOptions(
            networks=8 if options.quick else CHECKED,
            again_minutes=effort.again_minutes,
            keep_disturbed=effort.keep_disturbed,
        ),
    )
    note({"check": checked.to_json()})


def tell_profile(part: Found) -> list[str]:
    """Entries, then the error."""
    lines = []
    if "entries" in part:
        lines.append(f"{part['entries']} entries, batch {part['batch']}{_disturbed(part['disturbed'])}")
    if check := part.get("check"):
        lines.append(
            f"{check['networks']} networks, held out: median error {check['median_relative_error']:.1%}, 95 % below "
            f"{check['p95_relative_error']:.1%}, rank correlation {check['spearman']:.3f}; "
            f"dense {check['dense_ms']:.3f} ms{_disturbed(check['disturbed'], 'networks')}"
        )
    return lines


def _disturbed(found: Found | None, what: str = "entries") -> str:
    return f"; {in_words(found, what)}" if found else ""


PARTS = {
    "tests": Part(play_tests, tell_tests),
    "search": Part(play_search, tell_search),
    "2:4": Part(play_sparse, tell_sparse),
    "profile": Part(play_profile, tell_profile),
}
