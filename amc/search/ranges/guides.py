"""The knapsack solved for any budgets of a range from the same damage curves, and what an agent changes of it.

An agent's action for a site multiplies the site's damage curve before the knapsack is solved: curves are measured one
site at a time, so what an agent can learn is how much a site's damage counts among the others'. So no action breaks
a budget or leaves one unused, and what was learned at one budget holds at the next. Nothing here names a site by its
place: every statistic is relative to the network's own costs and damages, so that an agent can be carried over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from amc.search.allocation.knapsack import knapsack
from amc.search.ranges.budgets import Limits
from envs.compression.damage import Curve
from envs.space.assignment import Assignment, Key
from envs.space.constraint import Budget, Constraint, Costing
from hw_profiles.cost import Cost
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]

KNAPSACK, MEAN = "knapsack", "mean"

COST_FEATURES = ("budget", "share", "before")
"""Per budgeted cost: the budget as a share of the dense cost; what this site can save, relative to the mean over sites;
what earlier sites can save, as a share of what all can."""
SITE_FEATURES = ("damage_25", "damage_50", "damage_75", "ratio", "damage", "deviation", "previous")
"""Damage at three preserve ratios, relative to the mean over sites; the knapsack's preserve ratio at this budget and
the damage there; the mean of earlier actions, and the last one."""

DAMAGE_RATIOS = 0.25, 0.5, 0.75
REACH = 4.0
"""The largest factor on a damage curve, and one over the smallest."""
STILL = 0.5
"""The action that leaves a curve as it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Guide:
    """The knapsack at some budgets.

    Attributes:
        constraint: The budgets.
        curves: Damage per site.
        solution: [S] the knapsack's on these curves.
    """

    constraint: Constraint
    curves: tuple[Curve, ...]
    solution: IntArray

    @staticmethod
    def size(costs: int) -> int:
        """Numbers in an observation with so many budgeted costs."""
        return len(COST_FEATURES) * costs + len(SITE_FEATURES)

    @property
    def steps(self) -> int:
        """Actions of an episode."""
        return len(self.curves)

    def observe(self, actions: Sequence[float]) -> NDArray[np.float32]:
        """[D] float32 in [0, 1] after the actions so far; after the last one as before it."""
        step = min(len(actions), self.steps - 1)
        told = [float(np.mean(actions)), actions[-1]] if len(actions) else [STILL, STILL]
        return np.concatenate([self._static[step], told]).astype(np.float32)

    def assignment(self, actions: Sequence[float]) -> Assignment:
        """The knapsack's solution when each site's damage counts as its action says."""
        factors = REACH ** (2 * np.asarray(actions, np.float64) - 1)
        weighed = [curve.scaled(factor) for curve, factor in zip(self.curves, factors, strict=True)]
        still = bool((factors == 1.0).all())
        return Assignment.of(
            self.constraint.costing.sites, self.solution if still else knapsack(self.constraint, weighed)
        )

    def actions_for(self, kept: IntArray) -> tuple[float, ...]:
        """[S] actions whose `assignment` is about the wanted one: there each site's damage per cost counts alike.

        Args:
            kept: [S] a wanted assignment; costs are those between each site's neighbouring choices, as shares of the
                budgets.
        """
        costing = self.constraint.costing
        wanted = []
        for place, (curve, site) in enumerate(zip(self.curves, costing.sites, strict=True)):
            values = site.values()
            own = int(np.searchsorted(values, kept[place]))
            ends = values[[max(own - 1, 0), min(own + 1, len(values) - 1)]]
            rows = np.repeat(kept[None], 2, axis=0)
            rows[:, place] = ends
            cost = sum(float(np.diff(costing.many(cost, rows))[0]) / limit for cost, limit in self.constraint.budgets)
            damage = -float(np.diff(curve.at(ends))[0])
            wanted.append(np.log(cost / damage) if cost > 0 and damage > 0 else np.nan)
        known = np.asarray(wanted) if np.isfinite(wanted).any() else np.zeros(len(wanted))
        relative = np.nan_to_num(known - np.nanmean(known))
        return tuple(np.clip(STILL + relative / (2 * np.log(REACH)), 0.0, 1.0).tolist())

    @cached_property
    def _static(self) -> FloatArray:
        """[S, D - 2] what does not depend on earlier actions."""
        costing = self.constraint.costing
        costs = [_cost_features(costing, cost, limit) for cost, limit in self.constraint.budgets]
        damages = self._damages()
        relative = damages / np.maximum(damages.mean(axis=0), 1e-300)
        relative = relative / (1 + relative)
        kept = [site.action(int(value)) for site, value in zip(costing.sites, self.solution, strict=True)]
        own = [relative[:, :3], np.asarray(kept)[:, None], relative[:, 3:]]
        return np.asarray(np.clip(np.concatenate([*costs, *own], axis=1), 0.0, 1.0))

    def _damages(self) -> FloatArray:
        """[S, 4] damage at fixed preserve ratios and at the solution."""
        rows = []
        for curve, site, value in zip(self.curves, self.constraint.costing.sites, self.solution, strict=True):
            values, ratios = site.values(), site.ratios()
            near = [int(values[np.abs(ratios - ratio).argmin()]) for ratio in DAMAGE_RATIOS]
            rows.append(curve.at(np.asarray([*near, int(value)])))
        return np.maximum(np.asarray(rows), 0.0)


class Guides:
    """Guides by budgets, each solved once.

    Args:
        constraint: Costs and sites.
        curves: Damage per site and choice.
    """

    def __init__(self, constraint: Constraint, curves: Sequence[Curve]) -> None:
        self._constraint, self.curves = constraint, tuple(curves)
        self._known: dict[Limits, Guide] = {}

    def at(self, limits: Limits) -> Guide:
        """The guide of some budgets."""
        if limits not in self._known:
            constraint = budgeted(self._constraint, limits)
            solution = knapsack(constraint, self.curves)
            self._known[limits] = Guide(constraint=constraint, curves=self.curves, solution=solution)
        return self._known[limits]

    def under(self, constraint: Constraint) -> Guides:
        """The same curves under other costs of the same sites, such as latency on another device."""
        return Guides(constraint, self.curves)


def budgeted(constraint: Constraint, limits: Limits) -> Constraint:
    """The same costs and sites with other budgets."""
    costs = [cost for cost, _ in constraint.budgets]
    budgets = [Budget(cost, limit) for cost, limit in zip(costs, limits, strict=True)]
    return Constraint.create(constraint.costing, budgets)


def kind_of(constraint: Constraint, curves: Mapping[str, Sequence[Curve]], best: Key) -> str:
    """The kind of damage whose solution this is; the first one if none gives it."""
    solved = (name for name, kind in curves.items() if tuple(knapsack(constraint, kind).tolist()) == best)
    return next(solved, next(iter(curves)))


def solutions(constraint: Constraint, curves: Mapping[str, Sequence[Curve]]) -> dict[str, IntArray]:
    """The knapsack's solution by each kind of damage, and their mean where there are several."""
    solved = {name: knapsack(constraint, kind) for name, kind in curves.items()}
    if len(solved) > 1:
        sites = constraint.costing.sites
        actions = [Assignment.of(sites, values).actions for values in solved.values()]
        solved[MEAN] = constraint.scaled(np.mean(actions, axis=0))
    return solved


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
