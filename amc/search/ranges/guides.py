"""The knapsack solved for any budgets of a range from the same damage curves, as the guide of an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from amc.search.allocation.knapsack import knapsack
from amc.search.ranges.budgets import Limits
from envs.compression.damage import Curve
from envs.space.assignment import Assignment, Key
from envs.space.constraint import Budget, Constraint
from envs.space.guide import DAMAGE_RATIOS, Guide
from hw_profiles.layers import IntArray

KNAPSACK, MEAN = "knapsack", "mean"


def solutions(constraint: Constraint, curves: Mapping[str, Sequence[Curve]]) -> dict[str, IntArray]:
    """The knapsack's solution by each kind of damage, and their mean where there are several."""
    solved = {name: knapsack(constraint, kind) for name, kind in curves.items()}
    if len(solved) > 1:
        sites = constraint.costing.sites
        actions = [Assignment.of(sites, values).actions for values in solved.values()]
        solved[MEAN] = constraint.scaled(np.mean(actions, axis=0))
    return solved


class Guides:
    """Guides by budgets, each solved once.

    Args:
        constraint: Costs and sites; its own budgets are those of the range's middle.
        curves: For each kind of damage, the damage per site and choice.
        middle: The solution that was best at the middle: its kind of damage is taken everywhere.
    """

    def __init__(self, constraint: Constraint, curves: Mapping[str, Sequence[Curve]], middle: Key) -> None:
        self._constraint, self._curves = constraint, curves
        solved = solutions(constraint, curves)
        self.kind = next(
            (name for name, values in solved.items() if tuple(values.tolist()) == middle), next(iter(solved))
        )
        self._shown = next(iter(curves)) if self.kind == MEAN else self.kind
        self._known: dict[Limits, Guide] = {}

    @property
    def size(self) -> int:
        """Numbers in an observation."""
        return Guide.size_for(len(self._constraint.budgets))

    def at(self, limits: Limits) -> Guide:
        """The guide of some budgets."""
        if limits not in self._known:
            self._known[limits] = self._solved(limits)
        return self._known[limits]

    def _solved(self, limits: Limits) -> Guide:
        costs = [cost for cost, _ in self._constraint.budgets]
        budgets = [Budget(cost, limit) for cost, limit in zip(costs, limits, strict=True)]
        constraint = Constraint.create(self._constraint.costing, budgets)
        if self.kind == MEAN:
            solution = solutions(constraint, self._curves)[MEAN]
        else:
            solution = knapsack(constraint, self._curves[self.kind])
        return Guide(constraint, solution, self._damages(solution))

    def _damages(self, solution: IntArray) -> NDArray[np.float64]:
        """[S, 4] damage at fixed preserve ratios and at the solution."""
        rows = []
        for curve, site, value in zip(self._curves[self._shown], self._constraint.costing.sites, solution, strict=True):
            values, ratios = site.values(), site.ratios()
            near = [int(values[np.abs(ratios - ratio).argmin()]) for ratio in DAMAGE_RATIOS]
            rows.append(curve.at(np.asarray([*near, int(value)])))
        return np.maximum(np.asarray(rows), 0.0)
