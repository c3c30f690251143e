"""One search from its configuration to its finished run folder: created, resumed, timed, reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from torch import nn

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.export.applied import POLICY, WEIGHTS
from amc.profiling.layer_times import LayerTime, layer_times
from amc.profiling.timing import BY_LATENCY, BY_WIDTH, LESS, Timing, latency_ms, timing_remarks
from amc.reporting.facts import ReportData, gather
from amc.reporting.html import write_report
from amc.reporting.live import Live, live
from amc.reporting.tables import comparison, stored_comparison
from amc.rollouts.episode import Episode
from amc.runs.folder import CONFIG, REPORT, RESULT, RunFolder
from amc.runs.staffing import staffed
from amc.search.loop import Watcher, search
from amc.search.result import SearchResult
from amc.search.setup import Problem
from amc.search.state import Snapshot
from hw_profiles.bench.device_script import describe_device

HERE = WorkersConfig()
"""No workers: episodes are played in this process."""


def run_search(
    config: SearchConfig, out: Path, console: Console, *, fresh: bool = False, workers: WorkersConfig = HERE
) -> SearchResult:
    """Searches, writes the run folder, shows the comparison."""
    with live(console) as screen:
        problem = Problem(config, screen.step)
        return _search(problem, RunFolder.create(out, config, fresh=fresh), None, screen, console, workers)


def run_resume(path: Path, more: int, console: Console, workers: WorkersConfig = HERE) -> None:
    """Goes on with a run where it stopped; one that has ended shows its result, unless it gets more episodes.

    Args:
        path: The run folder.
        more: Episodes to add to those configured.
        console: Where to print.
        workers: Who plays from now on; it need not be who played before.

    Raises:
        ValueError: If there is no run, it is damaged, or its task has changed since.
    """
    folder = RunFolder.reopen(path)
    config, result = folder.config(), folder.result()
    if more:
        if config.single:
            raise ValueError(
                f"agent {config.agent!r} computes one policy, but got --episodes: search with another agent"
            )
        config = config.model_copy(update={"episodes": config.episodes + more})
        folder.replace_config(config)
    elif result is not None and result["stopped"] != "time" and result["episodes"] >= config.planned_episodes:
        console.print(stored_comparison(result))
        console.print(f"{path} has ended; `--episodes +N` goes on with it", highlight=False)
        return
    with live(console) as screen:
        problem, snapshot = Problem(config, screen.step), folder.snapshot()
        _search(problem, folder, snapshot, screen, console, workers)


def _search(
    problem: Problem,
    folder: RunFolder,
    snapshot: Snapshot | None,
    screen: Live,
    console: Console,
    workers: WorkersConfig = HERE,
    *watchers: Watcher,
) -> SearchResult:
    """Searches from a snapshot on, writes the results, shows them."""
    if problem.config.backend.name == "auto":
        backend = problem.backend  # settled here
        folder.replace_config(problem.config)
        if (found := problem.agreement) is not None:
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.seconds)
            console.print(
                f"scoring in {backend}: accuracies within {100 * found.difference:.2f} points of eager fp32 ({took})",
                highlight=False,
            )
    last = _Last(snapshot)
    watcher = _All((folder, _Shown(screen, problem.config.planned_episodes), last, *watchers))
    with staffed(problem, workers) as rollouts:
        result = search(problem, watcher, snapshot, rollouts)
    screen.step("timing networks", 0, 1)
    latency, remarks = measured_latency(result.networks, problem, "found")
    result = replace(result, remarks=(*result.remarks, *remarks))
    layers = _layers(result, problem)
    folder.finish(result, latency, layers)
    write_report(folder.path / REPORT, report_data(problem, result, latency, last.episodes, layers))
    screen.step("timing networks", 1, 1)
    screen.stop()
    console.print(comparison(result, latency))
    effort = f"{result.evaluations} evaluations, {result.image_forwards:,} image-forwards, {result.seconds:.0f} s"
    if result.images.scored < result.images.plain:
        effort += f", {result.images.scored / result.images.plain:.0%} of the images that the plain way scores"
    if result.failures:
        effort += f", {result.failures} of {result.episodes} evaluations failed"
    if result.workers.workers:
        effort += f", {result.workers.workers} workers idle {result.workers.idle:.0%} of the time"
    console.print(f"searched with {effort}; wrote", highlight=False)
    for name in (POLICY, WEIGHTS, RESULT, REPORT):
        console.print(f"  {folder.path / name}", highlight=False, soft_wrap=True)
    return result


def run_on(
    config: SearchConfig, path: Path, console: Console, workers: WorkersConfig = HERE, *watchers: Watcher
) -> Problem:
    """One run, from where an earlier process stopped."""
    started = (path / CONFIG).exists()
    if started:  # the backend stays, whatever this machine would choose
        config = config.model_copy(update={"backend": RunFolder.reopen(path).config().backend})
    with live(console) as screen:
        problem = Problem(config, screen.step)
        folder = RunFolder.reopen(path) if started else RunFolder.create(path, config)
        _search(problem, folder, folder.snapshot() if started else None, screen, console, workers, *watchers)
    return problem


def measured_latency(
    networks: Mapping[str, nn.Module], problem: Problem, pruned: str
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    """Latencies side by side, and what has to be said of them; none where onnxruntime cannot run a network."""
    profile = problem.table.profile if problem.table else None
    setting = {"threads": profile.threads, "batch": profile.batch} if profile else {}
    try:
        timings = latency_ms(networks, problem.task.example_input, **setting)
    except ValueError as error:
        return {}, (f"No latency was measured: {error}.",)
    cures = [BY_LATENCY] if "latency_ms" not in problem.constraint.limits() else []
    cures += [BY_WIDTH] if (problem.config.rules.round_to or 1) % 8 else []
    return timings, timing_remarks(timings, pruned, threads=setting.get("threads", 1), cures=cures or [LESS])


def _layers(result: SearchResult, problem: Problem) -> dict[str, tuple[LayerTime, ...]]:
    """Where the time of the dense and the found network goes, by the profile and, if it is of this device, really."""
    table = problem.table
    if table is None:
        return {}
    device = describe_device(table.profile.threads)
    here = table.profile.runtime == "onnxruntime" and table.profile.sessions[0].device.cpu == device["cpu"]
    shown = {name: result.networks[name] for name in ("dense", "found")}
    return layer_times(shown, problem.task.example_input, table, here=here and table.profile.threads == 1)


def report_data(
    problem: Problem,
    result: SearchResult,
    latency: Mapping[str, Timing],
    episodes: Sequence[Episode],
    layers: Mapping[str, Sequence[LayerTime]],
) -> ReportData:
    """What the report of a finished search shows."""
    return gather(
        result,
        agent=problem.config.agent,
        configuration=problem.config.to_toml(),
        family=problem.anatomy.family,
        sites=problem.sites,
        cost=problem.constraint.budgets[0].cost,
        images={"validation": len(problem.task.validation), "test": len(problem.task.test)},
        episodes=episodes,
        latency=latency,
        layer_times=layers,
    )


@dataclass(frozen=True, slots=True)
class _All:
    """Tells all, the run folder first."""

    watchers: tuple[Watcher, ...]

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        for watcher in self.watchers:
            watcher.round(snapshot)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Tells the screen."""

    screen: Live
    wanted: int

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        self.screen.round(snapshot, self.wanted)


class _Last:
    """Keeps the last snapshot."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """Those that did not fail, so far."""
        return self._snapshot.episodes if self._snapshot else ()

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        self._snapshot = snapshot
