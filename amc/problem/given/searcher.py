"""A searcher of the user's at work: what it raises or proposes wrongly is said in one line that names it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cloudpickle
import numpy as np

from agents.searcher import MakeSearcher, Plan, Searcher, SearcherState, SearchInputs, Trajectory
from amc.problem.given.door import SEARCHER, is_maker
from amc.problem.given.fit import check_fit
from amc.tasks.plugins import describe
from envs.lookup import name_of

Result = TypeVar("Result")


def watched_searcher(own: Searcher | MakeSearcher, inputs: SearchInputs) -> WatchedSearcher:
    """The user's searcher, made now, or a copy of the object: every search starts from what was passed in."""
    name = name_of(own)
    try:
        made: Any = own(inputs) if is_maker(own) else copy.deepcopy(own)  # type: ignore[operator]
    except Exception as error:  # it is the user's
        raise ValueError(f"the searcher {name} raised {describe(error)} when it was made: correct it") from error
    check_fit("searcher", made, Searcher, SEARCHER)
    return WatchedSearcher(made, name)


class WatchedPlan:
    """A plan of the user's: its actions are looked at where it is played."""

    def __init__(self, own: Plan, searcher: str) -> None:
        """Takes the plan, and the name of the searcher that proposed it."""
        self.own, self.searcher = own, searcher

    @property
    def label(self) -> str:
        """The plan's own."""
        return self.own.label

    def __call__(self, step: int, observation: Any) -> float:
        """The action in [0, 1].

        Raises:
            ValueError: If it is another number, or the plan raises.
        """
        try:
            action = float(self.own(step, observation))
        except Exception as error:  # it is the user's
            raise ValueError(
                f"a plan of the searcher {self.searcher} raised {describe(error)} at step {step}"
            ) from error
        if not 0.0 <= action <= 1.0:
            raise ValueError(
                f"`0 <= action <= 1` must hold, but a plan of the searcher {self.searcher} gave {action} at step {step}"
            )
        return action


@dataclass(slots=True, eq=False)
class WatchedSearcher:
    """A `Searcher` around the user's.

    Attributes:
        own: The user's.
        name: What it is called.
    """

    own: Searcher
    name: str

    def propose(self, count: int) -> list[Plan]:
        """As many plans as were asked for, each callable, labelled and picklable.

        Raises:
            ValueError: If they are not.
        """
        plans = self._asked("propose", self.own.propose, count)
        if not isinstance(plans, Sequence) or len(plans) != count:
            got = len(plans) if isinstance(plans, Sequence) else type(plans).__name__
            raise ValueError(
                f"a searcher must propose as many plans as it is asked for, {count}, but {self.name} gave {got}"
            )
        for plan in plans:
            self._check(plan)
        return [WatchedPlan(plan, self.name) for plan in plans]

    def _check(self, plan: Any) -> None:
        if not callable(plan) or not isinstance(getattr(plan, "label", None), str):
            raise ValueError(
                f"a plan must have a label and be called as (step, observation), but {self.name} proposed a "
                f"{name_of(plan)}: agents.searcher.FixedPlan is one"
            )
        try:
            cloudpickle.dumps(plan)
        except Exception as error:  # whatever the plan holds
            raise ValueError(
                f"a plan must be picklable, since it may be played by a worker, but that of {self.name} is not "
                f"({describe(error)}): let it hold numbers and arrays only"
            ) from error

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Passes a round on."""
        self._asked("tell", self.own.tell, trajectories)

    def state(self) -> SearcherState:
        """What it has learned, if files can hold it.

        Raises:
            ValueError: If they cannot.
        """
        state = self._asked("state", self.own.state)
        arrays, numbers = getattr(state, "arrays", None), getattr(state, "numbers", None)
        if not isinstance(arrays, dict) or not isinstance(numbers, dict):
            raise ValueError(f"a searcher's state must be a SearcherState, but {self.name} gave {name_of(state)}")
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.hasobject:
                raise ValueError(f"a searcher's state must hold numpy arrays, but {name!r} of {self.name} is none")
        try:
            json.dumps(numbers, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the numbers of a searcher's state must be JSON, but those of {self.name} are not: {error}"
            ) from error
        return state

    def load(self, state: SearcherState) -> None:
        """Passes a state on."""
        self._asked("load", self.own.load, state)

    def _asked(self, method: str, call: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return call(*arguments)
        except Exception as error:  # it is the user's
            raise ValueError(f"the searcher {self.name} raised {describe(error)} in {method}: correct it") from error
