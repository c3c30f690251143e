"""The contract of every pool (`amc.pool.pool.Pool`): who plays the episodes, and what goes wrong, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from agents.searcher import FixedPlan, Plan
from amc.pool.pool import InProcess, Pool
from amc.search.loop import play
from amc.search.rollout import Outcome, Rollout, Round
from amc.testing.specimens import specimens
from amc.testing.suite import Suite, require
from envs.reward import Evaluation, accuracy
from envs.space.assignment import Assignment
from envs.space.constraint import Budget, Constraint
from envs.space.policy import Policy
from hw_profiles.cost import Macs


@dataclass(frozen=True)
class Stand:
    """Evaluates by the widths alone; the lightest assignment fails.

    Attributes:
        lightest: Sum of its widths; 0: nothing fails.
    """

    lightest: int = 0

    def __call__(self, assignment: Assignment) -> Evaluation:
        """An evaluation."""
        total = sum(assignment.key)
        if total <= self.lightest:
            raise KeyError("the lightest")
        return Evaluation(metric=total / 1e4, loss=None, costs={"macs": float(total)}, images=1, image_forwards=3)

    def policy(self, assignment: Assignment) -> Policy:
        """No policy."""
        return Policy(structure="", weights="", units=(), layers=())

    def against(self, bar: Evaluation | None) -> Stand:
        """The same."""
        return self


@cache
def _constraint() -> Constraint:
    costing = specimens()[1].costing()
    return Constraint.create(costing, [Budget(Macs(), 0.5 * costing.one(Macs(), costing.dense()))])


def _plans() -> list[Plan]:
    steps = len(_constraint().costing.sites)
    return [FixedPlan((level,) * steps, f"plan {level}") for level in (0.4, 0.0, 0.6, 0.4, 0.8)]


def _outcomes(pool: Pool, stand: Stand, round_: Round) -> list[Outcome]:
    rollout = Rollout(_constraint(), stand, accuracy)
    return [answer.result() for answer in pool.map(play, rollout, round_, _plans())]


def _told(outcomes: Sequence[Outcome]) -> list[tuple[object, ...]]:
    return [(one.assignment.key, one.evaluation, one.reason, one.retries) for one in outcomes]


def episodes_are_those_of_this_process_in_the_order_of_the_plans(pool: Pool) -> None:
    """Whoever was faster."""
    here, there = (_outcomes(one, Stand(), Round(known={})) for one in (InProcess(), pool))
    require(_told(there) == _told(here), f"episodes are {_told(there)}, in this process {_told(here)}")
    same = all(np.array_equal(a.observations, b.observations) for a, b in zip(here, there, strict=True))
    require(same, "what was observed differs from this process")


def an_evaluation_that_fails_is_tried_again_and_told_with_its_reason(pool: Pool) -> None:
    """It ends no search."""
    lightest = sum(int(value) for value in _constraint().project([0.0] * len(_constraint().costing.sites)))
    found = _outcomes(pool, Stand(lightest), Round(known={}, retries=2))
    require([one.evaluation is None for one in found] == [False, True, False, False, False], "others fail")
    require("KeyError: 'the lightest'" in found[1].reason, f"the reason is {found[1].reason!r}")
    require(found[1].retries == 2, f"it was tried again {found[1].retries} times, not twice")


def what_is_known_is_not_evaluated_again(pool: Pool) -> None:
    """It comes back without image-forwards."""
    first = _outcomes(InProcess(), Stand(), Round(known={}))
    known = {one.assignment.key: one.evaluation for one in first if one.evaluation is not None}
    again = _outcomes(pool, Stand(10**9), Round(known=known))
    paid = [one.evaluation.image_forwards if one.evaluation is not None else None for one in again]
    require(paid == [0] * len(again), f"known episodes pay {paid} image-forwards")


def answers_come_in_the_order_of_the_items(pool: Pool) -> None:
    """One each, and none for none."""
    values = [answer.result() for answer in pool.map(_added, 1, 10, list(range(20)))]
    require(values == [11 + item for item in range(20)], f"answers are {values}")
    require(not list(pool.map(_added, 1, 10, [])), "there are answers without items")


def an_error_is_raised_in_its_items_turn(pool: Pool) -> None:
    """After the answers before it."""
    items: list[Any] = [0, "nonsense", 2]
    answers = pool.map(_added, 1, 10, items)
    require(next(iter(answers)).result() == 11, "the answer before an error is lost")
    try:
        list(answers)
    except TypeError:
        return
    raise AssertionError("an error of the function is not raised")


def _added(shared: int, common: int, item: int) -> int:
    return shared + common + item


check_rollouts = Suite(
    "pool",
    answers_come_in_the_order_of_the_items,
    an_error_is_raised_in_its_items_turn,
    episodes_are_those_of_this_process_in_the_order_of_the_plans,
    an_evaluation_that_fails_is_tried_again_and_told_with_its_reason,
    what_is_known_is_not_evaluated_again,
)
"""Of a `Pool`."""
