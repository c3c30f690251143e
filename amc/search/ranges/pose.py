"""What a plan of a range is sent with: the budgets, the knapsack's solution, and the reward to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.searcher import FloatArray, Plan
from amc.search.ranges.baseline import Level
from amc.search.ranges.budgets import Limits
from amc.search.ranges.guides import Guide
from envs.compression.damage import Curve
from envs.space.constraint import Budget, Constraint
from hw_profiles.layers import IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pose:
    """One episode's problem, without what all episodes have in common.

    Attributes:
        limits: The budgets.
        fallback: [S] feasible completion.
        solution: [S] the knapsack's.
        curves: Damage per site.
        level: The knapsack's reward; None for the knapsack's own solutions, whose gain is 0.
        device: Which of several devices the budgets are of.
        wanted: [S] an assignment to be played that no actions of the agent mean; it learns nothing from it.
    """

    limits: Limits
    fallback: IntArray
    solution: IntArray
    curves: tuple[Curve, ...]
    level: Level | None
    device: int = 0
    wanted: IntArray | None = None

    @classmethod
    def of(cls, limits: Limits, guide: Guide, level: Level | None, device: int = 0) -> Pose:
        """From a guide."""
        return cls(
            limits=limits,
            fallback=guide.constraint.fallback,
            solution=guide.solution,
            curves=guide.curves,
            level=level,
            device=device,
        )

    def guide(self, constraint: Constraint) -> Guide:
        """The guide again, given any constraint over the same costs and sites."""
        pairs = zip(constraint.budgets, self.limits, strict=True)
        budgets = tuple(Budget(cost, limit) for (cost, _), limit in pairs)
        own = replace(constraint, budgets=budgets, fallback=self.fallback).knowing([self.solution])
        return Guide(constraint=own, curves=self.curves, solution=self.solution)

    def gain(self, reward: float) -> float:
        """What the agent is told of a reward."""
        return 0.0 if self.level is None else self.level.gain(reward)


@dataclass(frozen=True, slots=True)
class Posed:
    """A plan and the problem that it is for."""

    plan: Plan
    pose: Pose

    @property
    def label(self) -> str:
        """The plan's own."""
        return self.plan.label

    def __call__(self, step: int, observation: FloatArray) -> float:
        """The plan's action."""
        return self.plan(step, observation)


def problem_of(plan: Any, constraint: Constraint, profiles: Sequence[str]) -> dict[str, Any]:
    """`budgets` and `profile` of a plan's own problem, as its line has them; {} where there is one for all."""
    pose = pose_of(plan)
    if pose is None:
        return {}
    budgets = {cost.name: limit for (cost, _), limit in zip(constraint.budgets, pose.limits, strict=True)}
    return {"budgets": budgets, "profile": profiles[pose.device] if profiles else None}


def pose_of(plan: Any) -> Pose | None:
    """The problem that a plan was sent with, None where there is one budget for all."""
    return plan.pose if isinstance(plan, Posed) else None
