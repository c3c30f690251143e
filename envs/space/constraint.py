"""The constraint: bounds on costs that no finished episode can exceed.

It holds a feasible assignment (the fallback): a choice is allowed iff the decided sites, the choice and the tail of the
fallback or the lightest one together keep every budget, or if a solution that is known goes on like that. So the
allowed set is never empty and the end always legal, whatever the costs are; for one monotone cost the bound is that of
He et al. (ECCV 2018, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.space.sites import Site, WidthsDraft, moot_of
from envs.units.layout import LayoutFamily
from hw_profiles.cost import Cost
from hw_profiles.layers import IntArray, Widths
from hw_profiles.shape_rules import ShapeRules, misfits

FloatArray = NDArray[np.float64]


class InfeasibleBudget(ValueError):
    """No assignment of the sites keeps every budget."""


class Budget(NamedTuple):
    """An upper bound on one cost, in the cost's unit."""

    cost: Cost
    limit: float


@dataclass(frozen=True, slots=True)
class Costing:
    """Costs of site assignments: maps kept channels and patterns per *site* to layouts and counts them.

    Attributes:
        family: The network's layouts.
        sites: What is decided.
        shapes: Which layers a device takes in which pattern; None: whatever the pattern's groups fit into.
    """

    family: LayoutFamily
    sites: tuple[Site, ...]
    shapes: ShapeRules | None = None

    def dense(self) -> IntArray:
        """[S] full widths."""
        return np.asarray([site.size for site in self.sites], dtype=np.int64)

    def lightest(self) -> IntArray:
        """[S] smallest allowed widths."""
        return np.asarray([site.choices[0].value for site in self.sites], dtype=np.int64)

    def heaviest(self) -> IntArray:
        """[S] largest allowed widths."""
        return np.asarray([site.choices[-1].value for site in self.sites], dtype=np.int64)

    def many(self, cost: Cost, kept: IntArray) -> FloatArray:
        """[K] costs of [K, S] kept channels (and ranks of patterns)."""
        costs = np.empty(len(np.atleast_2d(kept)))
        for variants, layout, widths in self._draft(kept).parts():
            costs[variants] = cost.many(layout, widths)
        return costs

    def widths(self, kept: IntArray) -> Widths:
        """Channel counts and patterns of [K, S] assignments, as if all branches were there."""
        return self._draft(kept).finished()

    def _draft(self, kept: IntArray) -> WidthsDraft:
        kept = np.atleast_2d(kept)
        draft = WidthsDraft(self.family, len(kept))
        for step, site in enumerate(self.sites):
            site.write(kept[:, step], draft)
        return draft

    def settled(self, kept: IntArray) -> IntArray:
        """[S] an assignment whose sites that do not matter keep all they can: one for each network that comes out."""
        moot = moot_of(self.sites, kept)
        if not moot:
            return kept
        heaviest = self.heaviest()
        return np.asarray([heaviest[k] if site.name in moot else kept[k] for k, site in enumerate(self.sites)])

    def unfit(self, kept: IntArray) -> NDArray[np.bool_]:
        """[K, N] bool: layers of [K, S] assignments that have a pattern which their shape does not take."""
        widths = self.widths(kept) if any(site.shaped for site in self.sites) else None
        if widths is None or widths.patterns is None:
            return np.zeros((len(np.atleast_2d(kept)), len(self.family.dense.layers)), dtype=bool)
        return misfits(self.family.dense, widths, self.shapes)

    def misfits(self, kept: IntArray) -> FloatArray:
        """[K] how many layers of [K, S] assignments have a pattern that their shape does not take."""
        return np.asarray(self.unfit(kept).sum(axis=1), dtype=np.float64)

    def fitted(self, kept: IntArray, first: int = 0) -> IntArray:
        """[K, S] assignments with each pattern, from site `first` on, that its layer does not take made dense."""
        unfit = self.unfit(kept)
        if not unfit.any():
            return kept
        fitted = kept.copy()
        rows = {layer.name: row for row, layer in enumerate(self.family.dense.layers)}
        for step, site in enumerate(self.sites[first:], start=first):
            fitted[:, step] = site.fitted(kept[:, step], unfit, rows)
        return fitted

    def one(self, cost: Cost, kept: IntArray) -> float:
        """Cost of one [S] assignment."""
        return float(self.many(cost, kept[None, :])[0])


def resolve_budget(cost: Cost, value: float, dense: float) -> float:
    """Absolute limit for a fraction (0 < value <= 1) of the dense cost, or for an absolute value (> 1).

    Raises:
        ValueError: If the value is not a positive finite number.
    """
    if not np.isfinite(value) or value <= 0:
        raise ValueError(
            f"a budget must be a positive number, but got {cost.name}={value:g}: "
            f"write a fraction of the dense network (0.5) or {cost.unit}"
        )
    return value * dense if value <= 1 else value


@dataclass(frozen=True, slots=True)
class Constraint:
    """Budgets over the sites of one network.

    Attributes:
        costing: How assignments are counted.
        budgets: The bounds; the first one's cost drives the observation.
        fallback: [S] a feasible assignment.
        known: [S] further ones that a walk can end in (`knowing`).
    """

    costing: Costing
    budgets: tuple[Budget, ...]
    fallback: IntArray
    known: tuple[IntArray, ...] = ()

    @classmethod
    def create(cls, costing: Costing, budgets: Sequence[Budget]) -> Constraint:
        """Builds the constraint and its first fallback.

        Raises:
            InfeasibleBudget: If no assignment is found that keeps every budget; names the lowest found.
        """
        if not budgets:
            raise ValueError("a constraint needs at least one budget, but got none: pass for example macs=0.5")
        if not costing.sites:
            raise InfeasibleBudget("a search needs at least one unit, but nothing in this network can be pruned")
        fallback = _feasible(costing, budgets)
        return cls(costing, tuple(budgets), fallback)

    def knowing(self, assignments: Iterable[IntArray]) -> Constraint:
        """The same, where a walk can end in each of some [S] assignments, whatever the costs are, if it is feasible."""
        return replace(self, known=tuple(one for one in assignments if self.keeps(one).all()))

    def keeps(self, kept: IntArray) -> NDArray[np.bool_]:
        """[K] bool: which of [K, S] assignments keep every budget."""
        kept = np.atleast_2d(kept)
        legal = np.asarray(self.costing.misfits(kept) == 0)
        for cost, limit in self.budgets:
            legal &= self.costing.many(cost, kept) <= limit
        return legal

    def allowed(self, prefix: Sequence[int]) -> IntArray:
        """Indices of the choices of site `len(prefix)` that can still end within every budget.

        A pattern of a tail that the widths so far do not fit is dense: a pattern that is yet to be chosen forbids no
        width. Deciding as what allowed the choice before does leads to the same end, so some choice is always left.

        Args:
            prefix: Kept channels of the sites decided so far, each an allowed choice.

        Returns:
            Ascending indices into the site's choices, never empty.
        """
        step = len(prefix)
        sites = self.costing.sites
        if sites[step].name in moot_of(sites[:step], prefix):
            return np.asarray([len(sites[step].choices) - 1])
        options = sites[step].values()
        legal = np.zeros(len(options), dtype=bool)
        for one in self.known:
            if np.array_equal(one[:step], prefix):
                legal |= options == one[step]
        for tail in self._tails(step + 1):
            undecided = np.flatnonzero(~legal)
            if not len(undecided):
                break  # people's own costs need not know what to say of no assignment
            kept = np.empty((len(undecided), len(sites)), dtype=np.int64)
            kept[:, :step], kept[:, step], kept[:, step + 1 :] = prefix, options[undecided], tail
            legal[undecided] = self.keeps(self.costing.fitted(kept, step + 1))
        return np.flatnonzero(legal)

    def _tails(self, step: int) -> list[IntArray]:
        """What may follow from a step on: the tails of the fallback and, if it is another, of the lightest choices."""
        whole, lightest = self.fallback[step:], self.costing.lightest()[step:]
        return [whole] if np.array_equal(whole, lightest) else [whole, lightest]

    def project(self, ratios: Sequence[float]) -> IntArray:
        """[S] kept channels after walking the sites with wanted preserve ratios."""
        prefix: list[int] = []
        for site, ratio in zip(self.costing.sites, ratios, strict=True):
            index = site.nearest(float(ratio), self.allowed(prefix))
            prefix.append(site.choices[index].value)
        return np.asarray(prefix, dtype=np.int64)

    def uniform(self) -> IntArray:
        """[S] the largest common preserve ratio whose rounded widths keep every budget."""
        return self.scaled(np.ones(len(self.costing.sites)))

    def scaled(self, ratios: FloatArray) -> IntArray:
        """[S] widths nearest to the given preserve ratios times the largest common factor within every budget.

        Every factor at which some width changes is tried from the top, because rounded costs need not be
        monotone; the fallback if none fits. Whether a branch goes is what its own ratio means, whatever the factor.

        Args:
            ratios: [S] positive preserve ratios.
        """
        sites = self.costing.sites
        ranges = [np.arange(len(site.choices)) for site in sites]
        free = [
            every if site.scaled else np.asarray([site.nearest(float(ratio), every)])
            for site, every, ratio in zip(sites, ranges, ratios, strict=True)
        ]
        steps = [site.ratios()[own] for site, own in zip(sites, free, strict=True)]
        edges = [(own[1:] + own[:-1]) / 2 / ratio for own, ratio in zip(steps, ratios, strict=True)]
        factors = np.concatenate([[1 / ratios.min()], np.unique(np.concatenate(edges))[::-1] * (1 - 1e-9)])
        for chunk in np.array_split(factors, max(1, len(factors) // 64)):
            every = [
                np.abs(own[None, :] - chunk[:, None] * ratio).argmin(axis=1)
                for own, ratio in zip(steps, ratios, strict=True)
            ]
            values = (site.values()[own] for site, own in zip(sites, free, strict=True))
            kept = np.stack([own[index] for own, index in zip(values, every, strict=True)], axis=1)
            kept = self.costing.fitted(kept)
            legal = np.flatnonzero(self.keeps(kept))
            if len(legal):
                return self.costing.settled(kept[legal[0]])
        return self.fallback

    def costs(self, kept: IntArray) -> dict[str, float]:
        """Every budget's cost of one [S] assignment."""
        return {cost.name: self.costing.one(cost, kept) for cost, _ in self.budgets}

    def limits(self) -> Mapping[str, float]:
        """Cost name -> budget, in the cost's unit."""
        return {cost.name: limit for cost, limit in self.budgets}


def _feasible(costing: Costing, budgets: Sequence[Budget]) -> IntArray:
    """Lightest choices everywhere, improved by coordinate descent where a cost is not monotone or a shape not taken.

    Branches stay where the budgets can be kept with them.

    Widths go first: a wider unit that takes the pattern leaves more to choose from than a layer made dense. Where
    that ends above a budget, layers that do not take their pattern at the lightest widths start dense.

    Raises:
        InfeasibleBudget: If the descent ends above a budget.
    """

    def excess(kept: IntArray) -> FloatArray:
        over = [np.maximum(costing.many(cost, kept) / max(limit, 1e-12) - 1, 0) for cost, limit in budgets]
        over.append(costing.misfits(kept))
        return np.asarray(np.sum(over, axis=0))

    whole = np.where([site.scaled for site in costing.sites], costing.lightest(), costing.heaviest())
    starts = [costing.lightest(), costing.fitted(costing.lightest()[None, :])[0]]
    if not np.array_equal(whole, starts[0]):
        starts.insert(0, whole)
    ends = [_descend(costing, start, excess) for start in starts]
    kept, best = min(ends, key=lambda end: end[1])
    if best > 0:
        lowest = ", ".join(
            f"{cost.name}={costing.one(cost, kept):.6g} (asked: {limit:.6g} {cost.unit}, "
            f"dense: {costing.one(cost, costing.dense()):.6g})"
            for cost, limit in budgets
        )
        raise InfeasibleBudget(
            f"every budget must be reachable under the rules, but the lowest found is {lowest}: "
            f"{_cure(costing, budgets)}"
        )
    return costing.settled(kept)


def _cure(costing: Costing, budgets: Sequence[Budget]) -> str:
    """What helps against budgets that cannot be kept."""
    ends = np.stack([costing.dense(), costing.lightest()])
    free = [
        cost.name
        for cost, limit in budgets
        if len(set(costing.many(cost, ends))) == 1 and costing.one(cost, ends[0]) > limit
    ]
    if free:
        return (
            f"nothing that may be changed carries {' or '.join(free)}, so bound another cost, or allow more to change"
        )
    return (
        "raise the budget, lower --min-ratio or --round-to, skip fewer layers, or try --branches or --attention heads"
    )


def _descend(costing: Costing, kept: IntArray, excess: Callable[[IntArray], FloatArray]) -> tuple[IntArray, float]:
    """An [S] assignment that no change of one site brings nearer to the budgets, and how far from them it is."""
    best = float(excess(kept[None, :])[0])
    improved = True
    while best > 0 and improved:
        improved = False
        for step, site in sorted(enumerate(costing.sites), key=lambda pair: pair[1].precedence):
            options = np.repeat(kept[None, :], len(site.choices), axis=0)
            options[:, step] = site.values()
            values = excess(options)
            if values.min() < best:
                kept = options[int(values.argmin())]
                best = float(values.min())
                improved = True
    return kept, best
