"""What `amc.inspect(...)`, `amc.search(...)` and so on do, from a script or a notebook, on what one has in hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.searcher import MakeSearcher, Searcher
from amc.config.parts import WorkersConfig
from amc.problem.given.door import passed, taken
from amc.problem.given.objects import NO_OBJECTS
from amc.problem.inspection import inspection
from amc.reporting.inspection_view import Inspected
from amc.reporting.live import live
from amc.reporting.screen import ConsoleScreen
from amc.runs.finetuning.run import finetune_run
from amc.runs.found import Result, reopened
from amc.runs.runner import Ended, NoScreen, Screen, nothing_left, resume_run, run_on
from amc.runs.studies.teaching import asking
from amc.tasks.checks import check_task
from amc.tasks.task import Task, load_task
from envs.importance.importance import Importance, Score
from envs.repair.repair import Repair
from envs.reward import Reward
from hw_profiles.cost import Cost
from hw_profiles.latency.profile import Profile
from hw_profiles.latency.table import LatencyTable


def inspect(task: Task | str | Path, **settings: Any) -> Inspected:
    """What of a task's network can be pruned, how low every cost can become, and why every other layer stays.

    Args:
        task: As for `search`.
        settings: Keys of the configuration that a search would have (`branches=True, rules={"round_to": 8}`).

    Raises:
        ValueError: If the task or a setting is not usable; one line.
    """
    config, objects = passed(task, **settings)
    own = objects.task or load_task(config.task, data=config.data, checkpoint=config.checkpoint)
    check_task(own)
    return Inspected.of(inspection(own, config))


def search(
    task: Task | str | Path,
    budgets: Mapping[str, float | tuple[float, float]] | None = None,
    *,
    out: Path | str | None = None,
    searcher: str | Searcher | MakeSearcher | None = None,
    reward: str | Reward | None = None,
    importance: str | Importance | Score | None = None,
    repair: str | type[Repair] | None = None,
    costs: Sequence[Cost] = (),
    profile: str | Path | Profile | LatencyTable | None = None,
    workers: int = 0,
    seed: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Searches the best pruning policy of a task within budgets, without fine-tuning.

    What is None is as the recipe says, or as `amc config` shows it. How to write a searcher, reward, importance,
    repair or cost: docs/extending.md.

    Args:
        task: A `Task`, the name of one as on the command line, or the path of a recipe (`*.toml`).
        budgets: Cost -> budget, a fraction of dense (<= 1) or absolute; or a pair (lowest, highest), for one agent that
            answers for all budgets between (docs/guides/ranges.md).
        out: Run folder. One that holds a run of the same search goes on where it stopped. None: nothing is kept.
        searcher: Agent by name, an object, or a function of `SearchInputs` that makes one.
        reward: Reward by name, or a function of an `Evaluation`.
        importance: Importance by name, an object, or a function of a unit and what may be looked at.
        repair: Repair by name, or a class.
        costs: Costs of your own, which budgets may name.
        profile: What latency budgets count by: a name, a file or an object.
        workers: Ray workers on this machine; 0: this process.
        seed: Seed of every draw.
        progress: Show bars.
        settings: Any other configuration key (`episodes=40`, `compression={"images": 500}`).

    Raises:
        ValueError: If task, budgets, an object or a setting are not usable; one line.
    """
    given = {"searcher": searcher, "reward": reward, "importance": importance, "repair": repair, "profile": profile}
    config, objects = passed(task, budgets, costs, **given, seed=seed, **settings)
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        screen = stack.enter_context(shown(progress))
        if nothing_left(config, folder, screen, objects):
            return reopened(folder, objects)
        run = run_on(config, folder, screen, WorkersConfig(workers=workers), objects=objects)
    return Result.of(run, kept=out is not None)


def policy(
    run: Result | Path | str,
    budgets: Mapping[str, float],
    *,
    profile: str | None = None,
    refine: int = 0,
    out: Path | str | None = None,
    task: Task | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Result:
    """Asks the agent of a search over a range for the policy of one budget, confirmed like every search's result.

    Args:
        run: The run folder of that search, or its result where the folder was kept.
        budgets: Cost -> budget within the range; a cost that is left out has the one of the range's middle.
        profile: Which device, of an agent that has learned for several `profiles`; left out: the first.
        refine: Episodes to spend on improving the answer.
        out: Run folder; as for `search`.
        task: The task, where an object was searched and `run` is a folder; a result knows it.
        workers: Ray workers on this machine; 0: this process.
        progress: Show bars.

    Raises:
        ValueError: If the folder holds no such agent, or its range does not hold the budget; one line.
    """
    path = run.folder if isinstance(run, Result) else Path(run)
    if path is None:
        raise ValueError("an agent is asked from its run folder, but the search kept none: search with out=")
    config = asking(path, budgets, refine, profile)
    # whatever has learned, the answer is refined by an agent of ours
    objects = taken(task=task).or_of(replace(run.objects, searcher=None) if isinstance(run, Result) else NO_OBJECTS)
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        screen = stack.enter_context(shown(progress))
        ended = run_on(config, folder, screen, WorkersConfig(workers=workers), objects=objects)
    return Result.of(ended, kept=out is not None)


def resume(
    run: Path | str,
    episodes: int = 0,
    *,
    task: Task | str | None = None,
    searcher: Searcher | MakeSearcher | None = None,
    reward: Reward | None = None,
    importance: Importance | Score | None = None,
    repair: type[Repair] | None = None,
    costs: Sequence[Cost] = (),
    profile: Profile | LatencyTable | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Result:
    """Goes on with a run where it stopped; one that has ended is read, unless it gets more episodes.

    Args:
        run: The run folder.
        episodes: How many more to play than were asked for.
        task: The task, where an object was searched, or its name, where that is a function of yours: a folder may not
            choose code. Searcher, reward and so on likewise, each as it was passed in.
        searcher: As for `search`.
        reward: As for `search`.
        importance: As for `search`.
        repair: As for `search`.
        costs: As for `search`.
        profile: As for `search`.
        workers: Ray workers on this machine; 0: this process.
        progress: Show bars.

    Raises:
        ValueError: If there is no run, it is damaged, an object is missing, or what was searched has changed since.
    """
    own, named = _own_or_named(task)
    given = {"task": own, "searcher": searcher, "reward": reward, "importance": importance, "repair": repair}
    objects = taken(costs=costs, profile=profile, **given)
    with shown(progress) as screen:
        try:
            found = resume_run(Path(run), episodes, screen, WorkersConfig(workers=workers), objects, given=named)
        except Ended:
            return reopened(Path(run), objects, named)
    return Result.of(found)


def finetune(
    run: Result | Path | str,
    *,
    fresh: bool = False,
    task: Task | str | None = None,
    searcher: Searcher | MakeSearcher | None = None,
    reward: Reward | None = None,
    importance: Importance | Score | None = None,
    repair: type[Repair] | None = None,
    costs: Sequence[Cost] = (),
    profile: Profile | LatencyTable | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Trains the network that a run has found, on the task's training samples; repeated, it goes on where it stopped.

    The epoch is chosen on validation samples; test samples are looked at once, at the end. The trained network is
    `result.networks["fine-tuned"]`.

    Args:
        run: A result, or its run folder; a result knows the objects that it was searched with.
        fresh: Move an earlier training aside, and begin again.
        task: As for `resume`; so are the objects below.
        searcher: As for `search`.
        reward: As for `search`.
        importance: As for `search`.
        repair: As for `search`.
        costs: As for `search`.
        profile: As for `search`.
        progress: Show bars.
        settings: Fields of `amc.runs.finetuning.settings.FinetuneConfig` (`epochs=30, init="scratch"`).

    Raises:
        ValueError: If the run has no folder, has not ended, or cannot be trained; before any long work.
    """
    folder = run.folder if isinstance(run, Result) else Path(run)
    if folder is None:
        raise ValueError("fine-tuning needs a run folder to be written to, but the search kept none: give it out=...")
    own, named = _own_or_named(task)
    given = {"task": own, "searcher": searcher, "reward": reward, "importance": importance, "repair": repair}
    objects = taken(costs=costs, profile=profile, **given)
    if isinstance(run, Result):
        objects = objects.or_of(run.objects)
    trusted = None if isinstance(run, Result) or own is not None else named
    with shown(progress) as screen:
        finetune_run(folder, settings, screen, objects, given=trusted, fresh=fresh)
    return reopened(folder, objects)


def _own_or_named(task: Task | str | None) -> tuple[Task | None, dict[str, str]]:
    """A task that is an object, or the name of one as what is named beside a run folder."""
    return (None, {"task": task}) if isinstance(task, str) else (task, {})


@contextmanager
def shown(progress: bool) -> Iterator[Screen]:
    """Bars while the block runs, in a terminal as in a notebook; or nothing."""
    if not progress:
        yield NoScreen()
        return
    console = Console(stderr=True)
    with live(console) as region:
        yield ConsoleScreen(console, region)
