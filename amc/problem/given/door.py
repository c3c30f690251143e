"""From what a caller passes in to a configuration, and the objects beside it; each is looked at here, at the door."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.searcher import Searcher
from amc.config.budgets import SYNONYMS
from amc.config.search import SearchConfig, load_config
from amc.problem.given.fit import check_call, check_fit
from amc.problem.given.objects import Objects, in_parentheses
from amc.problem.given.watched import WatchedCost, WatchedImportance, watched_repair
from amc.tasks.task import Task
from envs.importance.importance import Importance
from envs.lookup import name_of
from envs.repair.repair import Repair
from hw_profiles.cost import COSTS, LATENCY, Cost
from hw_profiles.latency.profile import Profile
from hw_profiles.latency.table import LatencyTable

KEYS = {
    "task": "task",
    "searcher": "agent",
    "reward": "reward",
    "importance": "compression.importance",
    "repair": "compression.repair",
    "profile": "profile",
}
"""Kind of object -> the key of the configuration that holds its name."""
SEARCHER = ("propose", "tell", "state", "load")
"""The methods of a searcher."""


class Passed(NamedTuple):
    """What is searched: a configuration, and the objects whose names stand in it in parentheses."""

    config: SearchConfig
    objects: Objects


def passed(
    task: Any, budgets: Mapping[str, float | tuple[float, float]] | None = None, costs: Any = (), **settings: Any
) -> Passed:
    """Takes apart what a caller passes in.

    Args:
        task: A `Task`, the name of one, or the path of a recipe.
        budgets: Cost -> budget.
        costs: Costs of the caller's own that budgets name.
        settings: searcher, reward, importance, repair, profile: a name or an object; and any key of the configuration.

    Raises:
        ValueError: If an object does not fit its Protocol, or a setting is not allowed; one line.
    """
    recipe = Path(task) if isinstance(task, Path) or (isinstance(task, str) and task.endswith(".toml")) else None
    given = {kind: settings.pop(kind, None) for kind in KEYS if kind != "task"} | {"task": None if recipe else task}
    objects = taken(costs=costs, **{kind: thing for kind, thing in given.items() if not _is_name(thing)})
    named = {KEYS[kind]: str(thing) for kind, thing in given.items() if thing is not None and _is_name(thing)}
    named |= {KEYS[kind]: in_parentheses(thing) for kind, thing in objects.things().items()}
    values = {key: copy.deepcopy(value) for key, value in settings.items() if value is not None}
    if budgets is not None:
        values["constraint"] = _named_budgets(budgets, objects)
    config = load_config(recipe, {**values, **named})
    for key in ("data", "checkpoint"):
        if objects.task is not None and (value := getattr(config, key)) is not None:
            raise ValueError(
                f"a task that is passed in has data and weights, but got {key}={str(value)!r}: leave it out"
            )
    return Passed(config, objects)


def taken(*, costs: Any = (), **things: Any) -> Objects:
    """The objects, each looked at.

    Args:
        costs: One cost, or several.
        things: Kind -> object; None is left out.

    Raises:
        ValueError: If one does not fit its Protocol; one line.
    """
    several = costs if isinstance(costs, Sequence) else (costs,)
    found = {kind: TAKERS[kind](thing) for kind, thing in things.items() if thing is not None}
    watched = tuple(_cost(cost) for cost in several)
    if len(names := [cost.name for cost in watched]) > len(set(names)):
        raise ValueError(f"costs are told apart by their names, but got {', '.join(names)}: call one otherwise")
    return Objects(costs=watched, **found)


def competitors(objects: Objects, agents: Sequence[Any]) -> tuple[tuple[str, ...], dict[str, Objects]]:
    """The agents of a study by the names that a configuration has for them, and the objects of each one's searches.

    Args:
        objects: What all searches are given.
        agents: Names, searchers, or functions that make them.

    Raises:
        ValueError: If one does not fit its Protocol, or two have the same name.
    """
    each = dict[str, Objects]()
    for agent in agents:
        name = agent if isinstance(agent, str) else in_parentheses(_searcher(agent))
        if name in each and not isinstance(agent, str):
            raise ValueError(f"agents are told apart by their names, but two are called {name}: name one otherwise")
        each[name] = replace(objects, searcher=None if isinstance(agent, str) else agent)
    return tuple(each), each


def _is_name(thing: Any) -> bool:
    return thing is None or isinstance(thing, (str, Path))


def _named_budgets(budgets: Any, objects: Objects) -> Any:
    """Budgets by the names that a configuration has for their costs."""
    own = {cost.name: in_parentheses(cost) for cost in objects.costs}
    return {own.get(name, name): value for name, value in budgets.items()} if isinstance(budgets, Mapping) else budgets


def _task(task: Any) -> Task:
    if not isinstance(task, Task):
        raise ValueError(
            f"a search needs an amc.Task, the name of a task or the path of a recipe, but got {type(task).__name__}: "
            "write amc.Task(network=..., example_input=..., calibration=..., validation=..., test=...)"
        )
    return task


def _searcher(searcher: Any) -> Any:
    """An object with the methods of a `Searcher`, or what makes one from `SearchInputs`."""
    if isinstance(searcher, type):
        check_fit("searcher", searcher, Searcher, SEARCHER)
    if is_maker(searcher):
        check_call("searcher", searcher, "inputs")
    else:
        check_fit("searcher", searcher, Searcher, SEARCHER)
    return searcher


def is_maker(searcher: Any) -> bool:
    """Whether this makes searchers, and is none itself."""
    return isinstance(searcher, type) or (callable(searcher) and not hasattr(searcher, "propose"))


def _reward(reward: Any) -> Any:
    check_call("reward", reward, "evaluation")
    return reward


def _importance(importance: Any) -> WatchedImportance:
    instance = importance() if isinstance(importance, type) else importance
    check_fit("importance", instance, Importance, ("__call__",))
    return WatchedImportance(instance)


def _repair(repair: Any) -> type[Repair]:
    if not isinstance(repair, type):
        raise ValueError(
            f"a repair must be a class, made once from envs.repair.repair.Dense, but got {name_of(repair)}: "
            "pass the class itself"
        )
    check_fit("repair", repair, Repair, ("__call__",))
    return watched_repair(repair)


def _profile(profile: Any) -> LatencyTable:
    if isinstance(profile, LatencyTable):
        return profile
    if not isinstance(profile, Profile):
        raise ValueError(
            f"a profile must be a name, a file, a Profile or a LatencyTable, but got {type(profile).__name__}: "
            "`amc profile list` shows names"
        )
    return LatencyTable(profile, "the profile that was passed in")


def _cost(cost: Any) -> WatchedCost:
    check_fit("cost", cost, Cost, ("many",), ("name", "unit"))
    if cost.name in (*COSTS, *LATENCY, *SYNONYMS):
        raise ValueError(f"a cost of your own needs a name of its own, but {cost.name!r} is shipped: call it otherwise")
    return WatchedCost(cost)


TAKERS = {
    "task": _task,
    "searcher": _searcher,
    "reward": _reward,
    "importance": _importance,
    "repair": _repair,
    "profile": _profile,
}
"""Kind -> what looks at an object of that kind."""
