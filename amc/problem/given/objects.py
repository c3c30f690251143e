"""What a search is given as objects: the configuration holds each one's name in parentheses, and this holds the thing.

Objects are looked at when they come in (`door`), and while they work (`watched`, `searcher`).
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle

from agents.searcher import MakeSearcher, Searcher
from amc.config.search import SearchConfig
from amc.tasks.task import Task
from envs.importance.importance import Importance
from envs.lookup import name_of, passed_in
from envs.repair.repair import Repair
from envs.reward import Reward
from hw_profiles.cost import CountedCost
from hw_profiles.latency.table import LatencyTable

OURS = {"agents", "amc", "envs", "hw_profiles"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objects:
    """Objects in place of names; None where the configuration names what it wants.

    Attributes:
        task: What is pruned.
        searcher: The searcher, or what makes it.
        reward: Turns an evaluation into a number.
        importance: Scores channels.
        repair: The class that refits what stays.
        profile: Latencies.
        costs: What budgets may name beside the shipped costs.
    """

    task: Task | None = None
    searcher: Searcher | MakeSearcher | None = None
    reward: Reward | None = None
    importance: Importance | None = None
    repair: type[Repair] | None = None
    profile: LatencyTable | None = None
    costs: tuple[CountedCost, ...] = ()

    def cost(self, name: str) -> CountedCost:
        """The cost that a configuration calls so, in parentheses."""
        return next(cost for cost in self.costs if in_parentheses(cost) == name)

    def check(self, config: SearchConfig) -> None:
        """Refuses a configuration that needs other objects.

        Raises:
            ValueError: Naming the objects that it needs, and those that it does not.
        """
        wanted, held = set(needed(config)), set(self._named())
        if missing := sorted(wanted - held):
            named = ", ".join(f"{kind} {name}" for kind, name in missing)
            raise ValueError(
                f"this search needs objects that no file can hold: {named}: run the script that made them again "
                "(`amc.search(task, ..., out=...)` goes on where it stopped), or pass them to `amc.resume(run, "
                f"{', '.join(dict.fromkeys(f'{kind}=...' for kind, _ in missing))})`"
            )
        if unknown := sorted(held - wanted):
            kind, name = unknown[0]
            raise ValueError(f"every object must be used, but the search has no {kind} {name}: leave it out")

    def or_of(self, others: Objects) -> Objects:
        """These, and of the others what is missing here."""
        return replace(self, **{**others.things(), **self.things()}, costs=self.costs or others.costs)

    def things(self) -> dict[str, Any]:
        """Kind -> object, of all but costs."""
        kinds = ("task", "searcher", "reward", "importance", "repair", "profile")
        return {kind: thing for kind in kinds if (thing := getattr(self, kind)) is not None}

    def check_picklable(self) -> None:
        """Refuses what cannot go to workers.

        Raises:
            ValueError: Naming the object.
        """
        travelling = [(kind, thing) for kind, thing in self.things().items() if kind not in ("task", "searcher")]
        for kind, thing in [*travelling, *(("cost", cost) for cost in self.costs)]:
            try:
                cloudpickle.dumps(thing)
            except Exception as error:  # whatever the object holds
                raise ValueError(
                    f"what goes to workers must be picklable, but the {kind} {name_of(thing)} is not ({error}): "
                    "let it hold numbers and arrays only, or search without workers"
                ) from error

    def of_compression(self) -> dict[str, Any]:
        """Those that a compressor takes, by the keys of its settings."""
        return {kind: thing for kind, thing in self.things().items() if kind in ("importance", "repair")}

    def modules(self) -> list[str]:
        """Modules of the user's in which the objects were defined: their code travels to a cluster."""
        things = [*self.things().values(), *self.costs]
        things += [self.task.network, self.task.metric] if self.task is not None else []
        defined = {getattr(thing, "__module__", None) or "" for thing in things}
        return sorted(module for module in defined if _is_the_users(module))

    def _named(self) -> Iterator[tuple[str, str]]:
        yield from ((kind, in_parentheses(thing)) for kind, thing in self.things().items())
        yield from (("costs", in_parentheses(cost)) for cost in self.costs)


NO_OBJECTS = Objects()


def in_parentheses(thing: object) -> str:
    """How a configuration holds an object."""
    return f"({name_of(thing)})"


def needed(config: SearchConfig) -> Iterator[tuple[str, str]]:
    """(kind, name in parentheses) of every object that a configuration stands for."""
    names: Mapping[str, str | None] = {
        "task": config.task,
        "searcher": config.agent,
        "reward": config.reward,
        "importance": config.compression.importance,
        "repair": config.compression.repair,
        "profile": config.profile,
    }
    yield from ((kind, str(name)) for kind, name in names.items() if passed_in(name))
    yield from (("costs", name) for name in config.constraint if passed_in(name))


def _is_the_users(module: str) -> bool:
    """Whether a module is neither ours, nor installed, nor the script itself, which is always sent along."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module == "__main__" or module.partition(".")[0] in OURS:
        return False
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    return not any(Path(file).is_relative_to(folder) for folder in installed)
