"""Sweeps: one search per agent, budget and seed, scheduled by Ray Tune; goes on where it was stopped.

Tune decides when and where a search runs and tries failed ones again. The run folders are the truth (law 2 of
docs/architecture.md): a search that has ended is not repeated, and one that was stopped goes on from its last round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig, load_config
from amc.pool.parcel import Parcel, pack, unpack
from amc.pool.ray import connected
from amc.problem.given.objects import NO_OBJECTS, Objects
from amc.runs.folder import CONFIG, RESULT, RunFolder
from amc.runs.runner import NoScreen, run_on
from amc.runs.studies.competition import NOTHING
from amc.runs.studies.findings import Sweep
from amc.runs.studies.pareto import PAGE, gather, write_front
from amc.search.state import Snapshot
from amc.storage.files import write_text
from amc.storage.locks import held
from envs.parallel import THREADS, cores

Say = Callable[[str], None]
"""Is told one line of what is going on."""
RUNS, TUNE = "runs", "tune"
TRIES = 3
"""How often a search that ends in an error, or whose node is lost, is begun again."""

ORPHAN_SECONDS = 60.0
"""How long a search is waited for whose sweep was killed; Ray ends it within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One search of a sweep.

    Attributes:
        name: Of its run folder.
        config: What is searched.
    """

    name: str
    config: SearchConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a sweep varies.

    Attributes:
        budgets: Of the configuration's first cost.
        agents: The agents that search.
        seeds: Runs each, with seeds 0, 1, ...
    """

    budgets: tuple[float, ...]
    agents: tuple[str, ...]
    seeds: int

    def trials(self, config: SearchConfig) -> dict[tuple[str, float, int], Trial]:
        """All searches; seeds vary slowest, so that there is something to see early."""
        return {
            (agent, budget, seed): Trial(name=name_of(agent, budget, seed), config=varied(config, agent, budget, seed))
            for seed in range(self.seeds)
            for agent in dict.fromkeys(self.agents)
            for budget in dict.fromkeys(self.budgets)
        }


def name_of(agent: str, budget: float, seed: int) -> str:
    """The run folder of one agent at one budget."""
    return f"{agent}-{budget:g}-{seed}"


def varied(config: SearchConfig, agent: str, budget: float | tuple[float, float], seed: int) -> SearchConfig:
    """The same search by another agent with another seed, under another budget (or range) of its first cost."""
    values = config.model_dump(mode="json", exclude_none=True)
    values["constraint"] = {**values["constraint"], next(iter(config.constraint)): budget}
    return load_config(None, {**values, "agent": agent, "seed": seed})


class _Told:
    """Tells Tune how a search goes."""

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        from ray import tune

        if snapshot.episodes:
            best = snapshot.best
            tune.report(
                {
                    "episodes": len(snapshot.lines),
                    "reward": best.reward,
                    "best": best.evaluation.measure.text(best.evaluation.metric),
                }
            )


def run_sweep(
    config: SearchConfig,
    grid: Grid,
    out: Path,
    say: Say,
    workers: WorkersConfig,
    objects: Mapping[str, Objects] = NOTHING,
) -> Sweep:
    """Runs what is missing of a sweep, then writes the Pareto front.

    Args:
        config: Task, budgets and settings of every search.
        grid: What is varied.
        out: Folder of the run folders and of the front.
        say: Is told how far it is.
        workers: Of each search; 0 workers let each search play its own episodes.
        objects: Agent -> what its configuration names in parentheses.

    Raises:
        ValueError: If the folder holds another sweep, or a search failed every time.
    """
    trials = grid.trials(config)  # a wrong agent or budget is refused before any work
    with held(out), standing(out, list(trials.values())):
        return _swept(config, grid, trials, out, say, workers, objects)


def _swept(
    config: SearchConfig,
    grid: Grid,
    trials: Mapping[tuple[str, float, int], Trial],
    out: Path,
    say: Say,
    workers: WorkersConfig,
    objects: Mapping[str, Objects],
) -> Sweep:
    claim(out, config)
    run_missing(list(trials.values()), out, say, workers, objects)
    return drawn(config, grid, trials, out)


def run_missing(
    trials: Sequence[Trial], out: Path, say: Say, workers: WorkersConfig, objects: Mapping[str, Objects] = NOTHING
) -> None:
    """Runs those searches that have not ended, as `run_trials` does."""
    missing = [trial for trial in trials if not ended(out, trial)]
    say(f"{len(trials)} searches, {len(trials) - len(missing)} of them have ended")
    if missing:
        run_trials(missing, out, say, workers, objects)


def drawn(config: SearchConfig, grid: Grid, trials: Mapping[tuple[str, float, int], Trial], out: Path) -> Sweep:
    """Writes the Pareto front of searches that have all ended."""
    results = {key: (out / RUNS / trial.name, _result(out, trial)) for key, trial in trials.items()}
    outcomes = [
        gather(agent, budget, [results[agent, budget, seed] for seed in range(grid.seeds)])
        for agent in dict.fromkeys(grid.agents)
        for budget in dict.fromkeys(grid.budgets)
    ]
    dense = next(iter(results.values()))[1]["dense"]
    cost = next(iter(config.constraint))
    table = write_front(out, outcomes, dense, f"{config.task}: {cost} swept")
    return Sweep(outcomes=outcomes, table=table, folder=out, page=out / PAGE)


def run_sweeps(
    config: SearchConfig, grid: Grid, profiles: Sequence[str], out: Path, say: Say, workers: WorkersConfig
) -> dict[str, Sweep]:
    """One sweep per profile, each in a folder of its own: milliseconds of two devices make no common front.

    Args:
        config: As for `run_sweep`; its first cost is a latency.
        grid: What is varied.
        profiles: Files or names.
        out: Folder of the sweeps' folders.
        say: Is told how far it is.
        workers: Of each search.

    Returns:
        Name of the profile -> its sweep.

    Raises:
        ValueError: If two profiles have the same name, or one of the sweeps cannot be run.
    """
    named = {Path(profile).stem: profile for profile in profiles}
    if len(named) < len(profiles):
        raise ValueError(f"the profiles of a sweep need different names, but got {', '.join(profiles)}: rename a file")
    values = config.model_dump(mode="json", exclude_none=True)
    configs = {name: load_config(None, {**values, "profile": profile}) for name, profile in named.items()}
    sweeps = {}
    for name, own in configs.items():
        say(name)
        sweeps[name] = run_sweep(own, grid, out / name, say, workers)
    return sweeps


def claim(out: Path, config: SearchConfig) -> None:
    """Makes the folder a sweep's own.

    Raises:
        ValueError: If it holds a sweep of another configuration.
    """
    (out / RUNS).mkdir(parents=True, exist_ok=True)
    path = out / CONFIG
    if path.exists() and load_config(path, {}) != config:
        raise ValueError(
            f"a sweep goes on with the configuration that it began with, but {str(path)!r} is another one: "
            "repeat the command as it was, or choose another --out"
        )
    write_text(path, config.to_toml())


@contextmanager
def standing(out: Path, trials: Sequence[Trial]) -> Iterator[None]:
    """Adds to what ends a sweep early how far it is, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        count = sum((out / RUNS / trial.name / RESULT).exists() for trial in trials)
        error.add_note(f"{count} of {len(trials)} searches have ended in {out}: the same command goes on")
        raise


def ended(out: Path, trial: Trial) -> bool:
    """Whether a search has everything that it promises.

    Raises:
        ValueError: If a file of it is damaged or altered.
    """
    folder = RunFolder(out / RUNS / trial.name)
    result = folder.result()
    return result is not None and not folder.owed(result)


def run_trials(
    trials: Sequence[Trial],
    out: Path,
    say: Say,
    workers: WorkersConfig,
    objects: Mapping[str, Objects] = NOTHING,
    scheduler: Any = None,
) -> None:
    """Runs searches by Ray Tune, as many at a time as there are CPUs for.

    Raises:
        ValueError: If one failed every time; the others are finished first.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables are replaced by one line per search
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends this process as it ends any other
    # A search that was killed after its last round only writes its files: it has no round to tell of any more.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    with connected(workers.address, max(cores(), workers.workers)):
        from ray import tune

        need = {"CPU": 1.0, **({"GPU": workers.gpus} if workers.gpus else {})}
        # A driver only waits while its workers play: reserved together, without a CPU of its own, nothing deadlocks.
        bundles = [{}, *([need] * workers.workers)] if workers.workers else [need]
        settings = {
            "out": str(out.absolute()),
            "home": str(Path.cwd()),
            "workers": workers.model_dump(exclude={"address"}),
        }
        space = {"settings": settings, "trial": tune.grid_search([_portable(trial) for trial in trials])}
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, objects=pack(dict(objects), _modules(objects))),
                tune.PlacementGroupFactory(bundles),
            ),
            param_space=space,
            tune_config=tune.TuneConfig(metric="reward", mode="max", scheduler=scheduler, reuse_actors=False),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=str(out.absolute()),
                verbose=0,
                callbacks=[_lines(say)],
                failure_config=tune.FailureConfig(max_failures=TRIES),
            ),
        )
        results = tuner.fit()
    errors = results.errors
    if errors:
        raise ValueError(
            f"every search of a sweep must end, but {len(errors)} of {len(trials)} failed {TRIES + 1} times, the first "
            f"because: {_last_line(errors[0])}: repeat the command to try them again"
        )


def run_trial(config: Mapping[str, Any], objects: Parcel | None = None) -> None:
    """One search inside a Tune worker.

    Args:
        config: What `run_trials` sends to all, and the trial.
        objects: Agent -> what its configuration names in parentheses.
    """
    settings, trial = config["settings"], config["trial"]
    workers = WorkersConfig(**settings["workers"])
    os.environ[THREADS] = str(max(1, workers.workers))  # of the phases that the driver computes itself
    os.chdir(settings["home"])  # from where the user's own modules are imported
    path = Path(settings["out"]) / RUNS / trial["name"]
    own = load_config(None, trial["config"])
    if not ended(Path(settings["out"]), Trial(name=trial["name"], config=own)):
        given: Mapping[str, Objects] = NOTHING if objects is None else unpack(objects)
        mine = given.get(own.agent, NO_OBJECTS)
        # A sweep that was killed may have left a search that has not noticed yet.
        run_on(own, path, NoScreen(), workers, _Told(), objects=mine, wait_seconds=ORPHAN_SECONDS)


def _modules(objects: Mapping[str, Objects]) -> list[str]:
    return sorted({module for one in objects.values() for module in one.modules()})


def _lines(say: Say) -> Any:
    """Says one line whenever a search ends."""
    from ray import tune

    class Lines(tune.Callback):
        def __init__(self) -> None:
            self.say: Say | None = None

        def __getstate__(self) -> dict[str, Any]:
            return {"say": None}  # Tune writes its callbacks down

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            name, last = trial.config["trial"]["name"], trial.last_result
            told = f": best {last['best']} after {last['episodes']} episodes" if "best" in last else ""
            if self.say is not None:
                self.say(f"{name}{told}")

    lines = Lines()
    lines.say = say
    return lines


def _portable(trial: Trial) -> dict[str, Any]:
    return {"name": trial.name, "config": trial.config.model_dump(mode="json", exclude_none=True)}


def _result(out: Path, trial: Trial) -> dict[str, Any]:
    result = RunFolder(out / RUNS / trial.name).result()
    if result is None:
        raise ValueError(f"search {trial.name!r} has no result yet: repeat the command to go on with it")
    return result


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
