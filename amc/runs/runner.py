"""One search from its configuration to its finished run folder: created, resumed, timed, reported. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.pool.opening import open_pool
from amc.problem.prepare import LIMITS, Prepared, prepare
from amc.problem.setup import Setup, set_up
from amc.profiling.layer_times import LayerTime, layer_times
from amc.profiling.timing import BY_LATENCY, BY_WIDTH, LESS, Timing, latency_ms, timing_remarks
from amc.reporting.facts import ReportData, gather
from amc.reporting.html import write_report
from amc.runs.folder import CONFIG, REPORT, RunFolder
from amc.search.episode import Episode
from amc.search.loop import Watcher, search
from amc.search.result import SearchResult
from amc.search.state import Snapshot
from amc.tasks.task import Task
from envs.reward import Reward
from hw_profiles.device import describe_device

HERE = WorkersConfig()
"""No workers: everything is done in this process."""


class Screen(Protocol):
    """Is told how far a run is."""

    def step(self, what: str, done: int, total: int) -> None:
        """One piece of work moves on."""
        ...

    def prepared(self, prepared: Prepared) -> None:
        """The search can begin."""
        ...

    def round(self, snapshot: Snapshot, wanted: int) -> None:
        """After each round of episodes."""
        ...


class NoScreen:
    """Shows nothing."""

    def step(self, what: str, done: int, total: int) -> None:
        """Does nothing."""

    def prepared(self, prepared: Prepared) -> None:
        """Does nothing."""

    def round(self, snapshot: Snapshot, wanted: int) -> None:
        """Does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run that has ended.

    Attributes:
        folder: Where it is.
        prepared: What was searched on.
        result: What was found.
        latency: Network name -> measured latency; {} where none was measured.
        snapshot: Where the search ended.
    """

    folder: Path
    prepared: Prepared
    result: SearchResult
    latency: Mapping[str, Timing]
    snapshot: Snapshot


class Ended(Exception):
    """A run that has ended before, and is not asked for more episodes.

    Attributes:
        result: The content of its `result.json`.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        """Takes the stored result."""
        super().__init__("the run has ended")
        self.result = result


def new_run(
    config: SearchConfig, out: Path, screen: Screen, *, fresh: bool = False, workers: WorkersConfig = HERE
) -> Run:
    """Searches and writes a run folder.

    Args:
        config: The configuration.
        out: The folder.
        screen: Is told how far it is.
        fresh: Move an earlier run there aside.
        workers: Where episodes are played.

    Raises:
        ValueError: If task, budgets or folder are not usable; before any long work.
    """
    setup = set_up(config, screen.step)
    return _run(setup, RunFolder.create(out, config, fresh=fresh), None, screen, workers)


def resume_run(path: Path, more: int, screen: Screen, workers: WorkersConfig = HERE) -> Run:
    """Goes on with a run where it stopped.

    Args:
        path: The run folder.
        more: Episodes to add to those configured.
        screen: Is told how far it is.
        workers: Which workers play from now on; they may differ from those before.

    Raises:
        ValueError: If there is no run, it is damaged, or its task has changed since.
        Ended: If it has ended and gets no more episodes.
    """
    folder = RunFolder.reopen(path)
    config, result = folder.config(), folder.result()
    if more:
        if config.single:
            raise ValueError(
                f"agent {config.agent!r} computes one policy, but got --episodes: search with another agent"
            )
        config = config.model_copy(update={"episodes": config.episodes + more})
    elif result is not None and _ended(result, config):
        raise Ended(result)
    setup = set_up(config, screen.step)
    folder.replace_config(config)
    return _run(setup, folder, folder.snapshot(), screen, workers)


def _ended(result: Mapping[str, Any], config: SearchConfig) -> bool:
    """Whether nothing is left to play: time alone ends a run that goes on, and episodes can be added."""
    if result["stopped"] == "episodes":
        return bool(result["episodes"] >= config.planned_episodes)
    return bool(result["stopped"] != "time")


def run_on(
    config: SearchConfig,
    path: Path,
    screen: Screen,
    workers: WorkersConfig = HERE,
    *watchers: Watcher,
    task: Task | None = None,
    reward: Reward | None = None,
) -> Run:
    """One run, from where an earlier process stopped.

    Args:
        config: The configuration.
        path: The run folder; made if there is none.
        screen: Is told how far it is.
        workers: Who works.
        watchers: Are told after every round, beside the folder and the screen.
        task: The task itself, where the configuration names none that can be loaded.
        reward: The reward itself, likewise.
    """
    started = (path / CONFIG).exists()
    if started:
        config = _continued(RunFolder.reopen(path).config(), config, path)
    setup = set_up(config, screen.step, task, reward)
    folder = RunFolder.reopen(path) if started else RunFolder.create(path, config)
    if started:
        folder.replace_config(config)
    return _run(setup, folder, folder.snapshot() if started else None, screen, workers, *watchers)


def _continued(stored: SearchConfig, config: SearchConfig, path: Path) -> SearchConfig:
    """The configuration with which a run goes on: the wanted one, and the backend that it began with.

    Raises:
        ValueError: If anything but the limits differs from the run's.
    """
    config = config.model_copy(update={"backend": stored.backend})  # whatever this machine would choose
    before, after = (one.model_dump(mode="json", exclude=set(LIMITS)) for one in (stored, config))
    if changed := [key for key in after if after[key] != before[key]]:
        raise ValueError(
            f"a run goes on with its own configuration, but in {str(path)!r} {changed[0]} is {before[changed[0]]!r}, "
            f"not {after[changed[0]]!r}: name another folder, or put it back"
        )
    return config


def _run(
    setup: Setup,
    folder: RunFolder,
    snapshot: Snapshot | None,
    screen: Screen,
    workers: WorkersConfig,
    *watchers: Watcher,
) -> Run:
    """Searches from a snapshot on and writes the results."""
    last = _Last()
    with open_pool(workers, setup.own_modules()) as pool:
        prepared = prepare(setup, screen.step)
        if prepared.config != setup.config:
            folder.replace_config(prepared.config)
        screen.prepared(prepared)
        shown = _Shown(screen, prepared.config.planned_episodes)
        watcher = _All((folder, shown, last, *watchers))
        result = search(prepared, watcher, snapshot, pool, workers.retries)
    screen.step("timing networks", 0, 1)
    latency, remarks = measured_latency(result.networks, setup, "found")
    result = replace(result, remarks=(*result.remarks, *remarks))
    layers = _layers(result, setup)
    ended = last.snapshot or snapshot
    if ended is None:
        raise ValueError("a run must have a round, but the search ended without one")
    if last.snapshot is None:
        folder.round(ended)  # no round was played here: what a crash left behind the snapshot goes all the same
    folder.finish(result, latency, layers)
    write_report(folder.path / REPORT, report_data(prepared, result, latency, ended.episodes, layers))
    screen.step("timing networks", 1, 1)
    return Run(folder=folder.path, prepared=prepared, result=result, latency=latency, snapshot=ended)


def measured_latency(
    networks: Mapping[str, nn.Module], setup: Setup, pruned: str
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    """Latencies side by side, and what has to be said of them; none where onnxruntime cannot run a network."""
    profile = setup.table.profile if setup.table else None
    setting = {"threads": profile.threads, "batch": profile.batch} if profile else {}
    try:
        timings = latency_ms(networks, setup.task.example_input, **setting)
    except ValueError as error:
        return {}, (f"No latency was measured: {error}.",)
    cures = [BY_LATENCY] if "latency_ms" not in setup.constraint.limits() else []
    cures += [BY_WIDTH] if (setup.config.rules.round_to or 1) % 8 else []
    return timings, timing_remarks(timings, pruned, threads=setting.get("threads", 1), cures=cures or [LESS])


def _layers(result: SearchResult, setup: Setup) -> dict[str, tuple[LayerTime, ...]]:
    """Where the time of the dense and the found network goes, by the profile and, if it is of this device, really."""
    table = setup.table
    if table is None:
        return {}
    device = describe_device(table.profile.threads)
    here = table.profile.sessions[0].device.cpu == device["cpu"]
    shown = {name: result.networks[name] for name in ("dense", "found")}
    return layer_times(shown, setup.task.example_input, table, here=here and table.profile.threads == 1)


def report_data(
    prepared: Prepared,
    result: SearchResult,
    latency: Mapping[str, Timing],
    episodes: Sequence[Episode],
    layers: Mapping[str, Sequence[LayerTime]],
) -> ReportData:
    """What the report of a finished search shows."""
    setup = prepared.setup
    return gather(
        result,
        agent=prepared.config.agent,
        configuration=prepared.config.to_toml(),
        family=setup.anatomy.family,
        sites=setup.sites,
        cost=setup.constraint.budgets[0].cost,
        samples={"validation": len(setup.task.validation), "test": len(setup.task.test)},
        episodes=episodes,
        latency=latency,
        layer_times=layers,
    )


@dataclass(frozen=True, slots=True)
class _All:
    """Tells all, the run folder first."""

    watchers: Sequence[Watcher]

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        for watcher in self.watchers:
            watcher.round(snapshot)


@dataclass(slots=True)
class _Last:
    """Keeps the last snapshot."""

    snapshot: Snapshot | None = None

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        self.snapshot = snapshot


@dataclass(frozen=True, slots=True)
class _Shown:
    """Tells the screen."""

    screen: Screen
    wanted: int

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        self.screen.round(snapshot, self.wanted)
