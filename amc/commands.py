"""What the commands do: search, apply, export, with live progress. Printing goes through the console handed in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from amc.config import SearchConfig, load_config
from amc.export import POLICY, WEIGHTS, latency_ms, read_policy, write_applied, write_onnx
from amc.problem import Problem
from amc.record import REPORT, RESULT, RunFolder
from amc.report import write_report
from amc.rollout import Episode
from amc.search import SearchResult, search
from amc.show import comparison
from envs.policy import Policy, weights_fingerprint

CHECKED_IMAGES = 16
"""Real images on which an ONNX file is compared with torch."""


def run_search(config: SearchConfig, out: Path, console: Console, *, fresh: bool = False) -> SearchResult:
    """Searches, writes the run folder, shows the comparison."""
    with _progress(console) as progress:
        live = _Live(progress)
        problem = Problem(config, live.step)
        folder = RunFolder(out, fresh=fresh)
        folder.start(config)
        result = search(problem, _Both(folder, live, config.episodes))
        live.step("timing networks", 0, 1)
        latency = _latency(result.networks, problem, console)
        folder.finish(result, latency)
        write_report(out / REPORT, problem, result, latency, live.history)
        live.step("timing networks", 1, 1)
    console.print(comparison(result, latency))
    effort = f"{result.evaluations} evaluations, {result.image_forwards:,} image-forwards, {result.seconds:.0f} s"
    console.print(f"searched with {effort}; wrote", highlight=False)
    for name in (POLICY, WEIGHTS, RESULT, REPORT):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True)
    return result


def run_apply(
    policy_file: Path, task: str | None, data: Path | None, checkpoint: Path | None, out: Path, console: Console
) -> nn.Module:
    """Makes the smaller network of a policy and writes it."""
    policy, problem, small = _rebuild(policy_file, task, data, checkpoint, console)
    write_applied(policy, small, out)
    _side_by_side(problem, small, console)
    console.print(f"wrote {out / WEIGHTS} and {out / POLICY}", highlight=False, soft_wrap=True)
    return small


def run_export(
    policy_file: Path, task: str | None, data: Path | None, checkpoint: Path | None, out: Path, console: Console
) -> None:
    """Makes the smaller network of a policy and writes it as ONNX, compared with torch on real images."""
    if not out.parent.is_dir():
        raise ValueError(f"the folder of the ONNX file must exist, but {str(out.parent)!r} does not: make it first")
    _, problem, small = _rebuild(policy_file, task, data, checkpoint, console)
    count = min(CHECKED_IMAGES, len(problem.task.validation))
    inputs, _ = problem.task.validation.batch(range(count))
    difference = write_onnx(small, problem.task.example_input, inputs, out)
    _side_by_side(problem, small, console)
    console.print(
        f"wrote {out}: onnxruntime and torch agree on {count} images (largest relative difference {difference:.1e})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _rebuild(
    policy_file: Path, task: str | None, data: Path | None, checkpoint: Path | None, console: Console
) -> tuple[Policy, Problem, nn.Module]:
    """The policy, the problem it came from (its configuration, other task, data or weights if given), the network."""
    policy = read_policy(policy_file)
    stored: dict[str, Any] = dict(policy.provenance.get("config", {}))
    if task is not None and task != stored.get("task"):
        stored.pop("data", None)
        stored.pop("checkpoint", None)
    stored |= {k: v for k, v in {"task": task, "data": data, "checkpoint": checkpoint}.items() if v is not None}
    with _progress(console) as progress:
        live = _Live(progress)
        problem = Problem(load_config(None, stored), live.step)
        policy.check_structure(problem.task.network)
        if policy.weights != weights_fingerprint(problem.task.network):
            console.print("[yellow]warning:[/] the policy was made for other weights of this network")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = problem.compressor.compress(policy).network
    return policy, problem, small


def _side_by_side(problem: Problem, small: nn.Module, console: Console) -> None:
    networks = {"dense": problem.task.network, "pruned": small}
    latency = _latency(networks, problem, console)
    for name, network in networks.items():
        costs = ", ".join(f"{cost} {value:,.0f}" for cost, value in problem.real_costs(network).items())
        timed = f"{latency[name]:.3f} ms (onnxruntime, batch 1, 1 thread), " if name in latency else ""
        console.print(f"{name:>8}: {timed}{costs}", highlight=False)


def _latency(networks: Mapping[str, nn.Module], problem: Problem, console: Console) -> dict[str, float]:
    """Latencies side by side; {} with a warning where onnxruntime cannot run the network, which loses nothing else."""
    try:
        return latency_ms(networks, problem.task.example_input)
    except ValueError as error:
        console.print(f"[yellow]warning:[/] no latency was measured: {escape(str(error))}")
        return {}


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console,
    )  # fmt: skip


class _Live:
    """Shows what is being done, how far, best so far and the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}
        self.history: list[Episode] = []

    def step(self, what: str, done: int, total: int, note: str = "") -> None:
        """Moves one bar."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total, description=what + note)


@dataclass(frozen=True, slots=True)
class _Both:
    """Tells the run folder and the screen."""

    folder: RunFolder
    live: _Live
    wanted: int

    def episodes(self, episodes: Sequence[Episode], best: Episode, seconds: Sequence[float]) -> None:
        """After each round."""
        self.folder.episodes(episodes, best, seconds)
        self.live.history[:] = episodes
        note = f", best {best.evaluation.accuracy:.2%} by {best.trajectory.label}"
        self.live.step("searching", len(episodes), max(self.wanted, len(episodes)), note)
