"""One search from its configuration to its finished run folder: created, resumed, timed, reported. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from amc.config.own_code import KEYS, confirm_code
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.export.interface import write_interface
from amc.pool.opening import open_pool
from amc.problem.given.objects import NO_OBJECTS, Objects
from amc.problem.prepare import LIMITS, Prepared, prepare
from amc.problem.setup import Setup, set_up
from amc.profiling.timing import Timing
from amc.reporting.html import write_report
from amc.runs.ending import measured_latency, measured_layers, report_data
from amc.runs.folder import CONFIG, EVENTS, REPORT, SEALED, RunFolder, versions
from amc.runs.opening import begun, reopened
from amc.runs.studies.teaching import taught_by
from amc.search.loop import Watcher, search
from amc.search.result import SearchResult, stored_latency, with_measured
from amc.search.state import Snapshot

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
        written: Names of its files that were missing, and have been written again.
    """

    def __init__(self, result: Mapping[str, Any], written: Sequence[str] = ()) -> None:
        """Takes the stored result."""
        super().__init__("the run has ended")
        self.result, self.written = result, tuple(written)


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
    with begun(out, config, fresh=fresh) as folder, _standing(folder):
        return _run(setup, folder, None, screen, workers)


def resume_run(
    path: Path,
    more: int,
    screen: Screen,
    workers: WorkersConfig = HERE,
    objects: Objects = NO_OBJECTS,
    *,
    given: Mapping[str, Any] | None = None,
    previous: bool = False,
) -> Run:
    """Goes on with a run where it stopped.

    Args:
        path: The run folder.
        more: Episodes to add to those configured.
        screen: Is told how far it is.
        workers: Which workers play from now on; they may differ from those before.
        objects: What the run's configuration names in parentheses.
        given: Task and reward as the user names them: the folder's own code runs only if it is among them. None: the
            caller trusts the folder.
        previous: Go on from the round before the last one.

    Raises:
        ValueError: If there is no run, a file of it is damaged or altered, another process is at it, its task has
            changed since, or it names code that is not given.
        Ended: If it has ended and gets no more episodes; what was missing of its files has been written again.
    """
    with reopened(path) as folder, _standing(folder):
        if previous:
            folder.step_back()
        snapshot, config = folder.snapshot(), folder.config()
        if more and config.single:
            raise ValueError(
                f"agent {config.agent!r} computes one policy, but got --episodes: search with another agent"
            )
        result = None if more or previous else _ended(folder, config)
        shown = result is not None and snapshot is not None and not folder.owed(result)
        if given is not None and not shown:  # else none of the run's code runs
            confirm_code(config.model_dump(include=set(KEYS)), given, str(path / CONFIG))
        if result is not None and snapshot is not None:
            raise Ended(result, _completed(folder, config, snapshot, result, screen, workers, objects))
        config = config.model_copy(update={"episodes": config.episodes + more})
        setup = set_up(config, screen.step, objects)
        folder.replace_config(config, snapshot)
        return _run(setup, folder, snapshot, screen, workers)


def nothing_left(config: SearchConfig, path: Path, screen: Screen, objects: Objects) -> bool:
    """Whether a folder holds a run of the same search that has ended as far as this configuration wants it.

    Raises:
        ValueError: If it holds a run of another search.
    """
    if not (path / CONFIG).exists():
        return False
    with reopened(path) as folder:
        snapshot, stored = folder.snapshot(), folder.config()
        config = _continued(stored, config, path)
        result = _ended(folder, config)
        if result is None or snapshot is None or config.confirm != stored.confirm:
            return False
        snapshot.checked(prepare(set_up(config, screen.step, objects), screen.step))
        _completed(folder, config, snapshot, result, screen, HERE, objects)
    return True


def _completed(
    folder: RunFolder,
    config: SearchConfig,
    snapshot: Snapshot,
    result: Mapping[str, Any],
    screen: Screen,
    workers: WorkersConfig,
    objects: Objects,
) -> tuple[str, ...]:
    """Writes again what a run that has ended promises and is not there; the names of that."""
    owed = folder.owed(result)
    if not owed:
        return ()
    setup = set_up(config, screen.step, objects)
    if set(owed) & set(SEALED):
        _run(setup, folder, snapshot, screen, workers, stored=result)
    else:
        _complete(setup, folder, snapshot, result, owed)
    return owed


def _ended(folder: RunFolder, config: SearchConfig) -> Mapping[str, Any] | None:
    """The result of a run that has nothing left to play: time alone ends one that goes on, and episodes can be added.

    Raises:
        ValueError: If the result is damaged or altered.
    """
    result = folder.result()
    if result is None or result["stopped"] == "time":
        return None
    played_all = bool(result["episodes"] >= config.planned_episodes)
    return result if played_all or result["stopped"] != "episodes" else None


def run_on(
    config: SearchConfig,
    path: Path,
    screen: Screen,
    workers: WorkersConfig = HERE,
    *watchers: Watcher,
    objects: Objects = NO_OBJECTS,
    wait_seconds: float = 0.0,
) -> Run:
    """One run, from where an earlier process stopped.

    Args:
        config: The configuration.
        path: The run folder; made if there is none.
        screen: Is told how far it is.
        workers: Who works.
        watchers: Are told after every round, beside the folder and the screen.
        objects: What the configuration names in parentheses.
        wait_seconds: How long another process that is at the run is waited for.
    """
    if not (path / CONFIG).exists():
        setup = set_up(config, screen.step, objects)
        with begun(path, config, seconds=wait_seconds) as folder:
            return _run(setup, folder, None, screen, workers, *watchers)
    with reopened(path, wait_seconds) as folder:
        snapshot, before = folder.snapshot(), folder.config()
        config = _continued(before, config, path)
        stored = _ended(folder, config) if config == before else None
        if stored is not None:
            folder.owed(stored)  # refuses what somebody else has written
        setup = set_up(config, screen.step, objects)
        folder.replace_config(config, snapshot)
        return _run(setup, folder, snapshot, screen, workers, *watchers, stored=stored)


@contextmanager
def _standing(folder: RunFolder) -> Iterator[None]:
    """Adds to what ends a run early how far it is, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(folder.standing())
        raise


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
    stored: Mapping[str, Any] | None = None,
) -> Run:
    """Searches from a snapshot on and writes the results; of a run whose result is stored, what is missing."""
    last = _Last(snapshot)
    if workers.wanted:
        setup.objects.check_picklable()
    with open_pool(workers, setup.own_modules()) as pool:
        prepared = prepare(setup, screen.step)
        if prepared.config != setup.config:
            folder.replace_config(prepared.config, snapshot)
        screen.prepared(prepared)
        shown = _Shown(screen, prepared.config.planned_episodes)
        watcher = _All((folder, shown, last, *watchers))
        taught = None if setup.config.agent_from is None or snapshot else taught_by(setup.config.agent_from)
        result = search(prepared, watcher, snapshot, pool, workers.retries, taught)
    if last.snapshot is None:
        raise ValueError("a run must have a round, but the search ended without one")
    if stored is None:
        if last.snapshot is snapshot:
            folder.round(snapshot)  # no round was played here: what a crash left behind the snapshot goes all the same
        screen.step("timing networks", 0, 1)
        latency, remarks = measured_latency(result.networks, setup, "found")
        result = replace(result, remarks=(*result.remarks, *remarks))
        write_interface(setup.task, folder.path)  # before result.json, which says that all of this is there
        document = folder.finish(result, result.to_json(versions(), latency, measured_layers(result, setup)))
        owed: tuple[str, ...] = (REPORT,)
        screen.step("timing networks", 1, 1)
    else:
        owed = folder.owed(stored)
        result = with_measured(result, stored)
        document = folder.finish(result, stored, owed)
    _complete(setup, folder, last.snapshot, document, owed)
    return Run(
        folder=folder.path,
        prepared=prepared,
        result=result,
        latency=stored_latency(document),
        snapshot=last.snapshot,
    )


def _complete(
    setup: Setup, folder: RunFolder, snapshot: Snapshot, document: Mapping[str, Any], owed: Sequence[str]
) -> None:
    """Writes what is shown of a run, if it is owed, from the content of `result.json` alone: whenever, the same."""
    if EVENTS in owed:
        folder.log(snapshot)
    if REPORT in owed:
        data = report_data(setup, folder.config(), document, snapshot.episodes)
        write_report(folder.path / REPORT, data)


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

    snapshot: Snapshot | None

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
