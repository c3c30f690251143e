"""What an agent of many budgets is shown and what its action means: a change of the knapsack's solution.

Nothing here names a site by its place: every statistic is relative to the network's own costs and damages, so that an
agent can be carried to other budgets, devices and networks. AMC's eleven features stand in `envs.observation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.space.constraint import Constraint, Costing
from hw_profiles.cost import Cost
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]

COST_FEATURES = ("budget", "share", "before")
"""Per budgeted cost: the budget and the cost of all earlier sites as shares of the dense cost; what this site can save,
relative to the mean over sites."""
SITE_FEATURES = (
    "damage_25",
    "damage_50",
    "damage_75",
    "ratio",
    "damage",
    "rest",
    "deviation",
    "previous",
)
"""Damage at three preserve ratios and at the knapsack's choice, relative to the mean over sites; that choice; by what
factor later sites must shrink or may grow; mean deviation of earlier sites from the knapsack's; the last action."""

DAMAGE_RATIOS = 0.25, 0.5, 0.75
REACH = 2.0
"""The largest factor between a wanted preserve ratio and the knapsack's."""
FACTORS = np.geomspace(4.0, 0.25, 49)
"""By which the rest of the knapsack's solution may be scaled, largest first; 1 is among them."""


@dataclass(frozen=True, eq=False)
class Guide:
    """The knapsack's solution of one budget, and the steps around it.

    An action of 0.5 asks for the knapsack's preserve ratio, 0 and 1 for `REACH` times less or more of it. Where earlier
    sites spent other than the knapsack would, the ratios of all later ones are scaled by one factor that uses the
    budget up; so 0.5 throughout is the knapsack's solution itself, and no wall squeezes the last sites.

    Attributes:
        constraint: The budgets; its fallback is what the constraint started with.
        solution: [S] the knapsack's solution, within every budget.
        damages: [S, 4] damage of each site at `DAMAGE_RATIOS` and at the solution.
    """

    constraint: Constraint
    solution: IntArray
    damages: FloatArray

    @staticmethod
    def size_for(costs: int) -> int:
        """Numbers in an observation with so many budgeted costs."""
        return len(COST_FEATURES) * costs + len(SITE_FEATURES)

    def observe(self, prefix: Sequence[int], action: float) -> NDArray[np.float32]:
        """[D] float32 in [0, 1] at step `len(prefix)`.

        Args:
            prefix: Values of the sites decided so far.
            action: The last one, as executed (0.5 before the first step).
        """
        step = min(len(prefix), len(self.solution) - 1)
        deviation = self._deviation(prefix)
        factor = 0.5 + np.log(self._factor(prefix)) / (2 * np.log(FACTORS[0])) if len(prefix) == step else 0.5
        moving = np.asarray([factor, 0.5 + deviation / 2, action])
        return np.asarray(np.clip(np.concatenate([self._static[step], moving]), 0, 1), dtype=np.float32)

    def ratio(self, prefix: Sequence[int], action: float) -> float:
        """The preserve ratio that an action in [0, 1] asks for."""
        return float(self._expected(prefix) * REACH ** (2 * action - 1))

    def action(self, prefix: Sequence[int], ratio: float) -> float:
        """The action in [0, 1] that asks for a preserve ratio, or comes nearest."""
        wanted = np.log(ratio / self._expected(prefix)) / np.log(REACH)
        return float(np.clip((1 + wanted) / 2, 0, 1))

    def allowed(self, prefix: Sequence[int]) -> IntArray:
        """Indices of the choices from which the fallback or the knapsack's solution still leads within every budget."""
        with_solution = replace(self.constraint, fallback=self.solution).allowed(prefix)
        return np.union1d(self.constraint.allowed(prefix), with_solution)

    @cached_property
    def _ratios(self) -> FloatArray:
        """[S] preserve ratios of the solution."""
        sites = self.constraint.costing.sites
        return np.asarray([site.action(int(value)) for site, value in zip(sites, self.solution, strict=True)])

    @cached_property
    def _scaled(self) -> IntArray:
        """[F, S] the solution scaled by each of `FACTORS`."""
        columns = []
        for site, ratio in zip(self.constraint.costing.sites, self._ratios, strict=True):
            distance = np.abs(site.ratios()[None, :] - FACTORS[:, None] * ratio)
            columns.append(site.values()[distance.argmin(axis=1)])
        return np.stack(columns, axis=1)

    @cached_property
    def _static(self) -> FloatArray:
        """[S, D - 3] what does not depend on earlier decisions."""
        costing = self.constraint.costing
        costs = [_cost_features(costing, cost, limit) for cost, limit in self.constraint.budgets]
        relative = self.damages / np.maximum(self.damages.mean(axis=0), 1e-300)
        relative = relative / (1 + relative)
        own = [relative[:, :3], self._ratios[:, None], relative[:, 3:]]
        return np.concatenate([*costs, *own], axis=1)

    def _factor(self, prefix: Sequence[int]) -> float:
        """The largest factor on the rest of the solution that keeps the budgets; 1 after the solution's own prefix."""
        step = len(prefix)
        if np.array_equal(self.solution[:step], prefix):
            return 1.0
        rows = self._scaled.copy()
        rows[:, :step] = prefix
        legal = np.flatnonzero(self.constraint.keeps(self.constraint.costing.fitted(rows, step)))
        return float(FACTORS[legal[0]] if len(legal) else FACTORS[-1])

    def _expected(self, prefix: Sequence[int]) -> float:
        """The preserve ratio of action 0.5."""
        return float(np.clip(self._factor(prefix) * self._ratios[len(prefix)], 1e-6, 1.0))

    def _deviation(self, prefix: Sequence[int]) -> float:
        """Mean log of executed over guided ratios, in units of log(REACH)."""
        if not len(prefix):
            return 0.0
        sites = self.constraint.costing.sites
        executed = [site.action(int(value)) for site, value in zip(sites, prefix, strict=False)]
        return float(np.mean(np.log(np.divide(executed, self._ratios[: len(prefix)])))) / float(np.log(REACH))


def _cost_features(costing: Costing, cost: Cost, limit: float) -> FloatArray:
    """[S, 3] `COST_FEATURES` of every site."""
    dense = costing.dense()
    total = costing.one(cost, dense)
    count = len(costing.sites)
    lighter = np.repeat(dense[None, :], count, axis=0)
    np.fill_diagonal(lighter, costing.lightest())
    savings = np.maximum(total - costing.many(cost, lighter), 0) / total
    share = savings / max(float(savings.mean()), 1e-300)
    before = np.concatenate([[0.0], np.cumsum(savings)[:-1]]) / max(float(savings.sum()), 1e-300)
    return np.stack([np.full(count, min(limit / total, 1.0)), share / (1 + share), before], axis=1)
