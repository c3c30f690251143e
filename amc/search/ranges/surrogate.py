"""What was learned over a range of whole assignments: a Gaussian process of what the knapsack's curves leave out.

What a policy loses depends on what was decided, not on what was allowed, so that all episodes of all budgets and
devices serve every budget. Far from them the surrogate says what the curves say. Its best assignment under a budget is
found by the knapsack itself, on the surrogate's own curves around the best one so far (Bayesian optimization: Jones et
al., Efficient Global Optimization of Expensive Black-Box Functions, 1998).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amc.config.search import SearchConfig
from amc.problem.setup import Setup
from amc.search.allocation.knapsack import knapsack
from amc.search.episode import Episode, Line
from amc.search.ranges.guides import Guide
from amc.search.searchers import sees_whole
from envs.compression.damage import Curve
from envs.space.assignment import Key
from envs.space.constraint import Constraint, Costing
from hw_profiles.layers import IntArray

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

FloatArray = NDArray[np.float64]

LEAST = 0.01
"""Losses below this share of the largest count as that much: a reward's noise must not become a large logarithm."""
MOST = 1000
"""The latest episodes that are fitted; the time grows with their cube."""
CHOICES = 32
"""Choices of a site at which a curve is computed, about; between them it is interpolated."""
NEAR = 2
"""Remembered assignments within a budget from which its best is looked for, beside the knapsack's."""
ROUNDS = 6
"""How often the knapsack is solved again from one start, if it still gets better."""
STATES = 500
"""Partial solutions of the knapsack: a surrogate is not known so well that it would have to be solved exactly."""
PARTS = 0.5, 0.25
"""How far of the way to the knapsack's solution is tried, too: its curves hold near where they were computed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """The expected logarithm of an assignment's loss against the dense network.

    Attributes:
        costing: Sites.
        curves: Damage per site, as the knapsack has it.
        played: [N, S] assignments that were evaluated.
        scale: Intercept and slope of the log loss over the log of the summed damage.
        process: The regression of what that line leaves, on preserve ratios.
    """

    costing: Costing
    curves: tuple[Curve, ...]
    played: IntArray
    scale: FloatArray
    process: GaussianProcessRegressor

    @classmethod
    def of(
        cls, costing: Costing, curves: Sequence[Curve], dense: float, played: Sequence[tuple[Key, float]]
    ) -> Surrogate:
        """Fitted to evaluated assignments; the same with any number of threads.

        Args:
            costing: Sites.
            curves: Damage per site.
            dense: Reward of the dense network.
            played: Assignments and their rewards; the latest `MOST` count.

        Raises:
            ValueError: If there are none.
        """
        if not played:
            raise ValueError("a surrogate is fitted to evaluated assignments, but there are none: play episodes first")
        keys, rewards = zip(*played[-MOST:], strict=True)
        kept = _settled(costing, np.asarray(keys, np.int64))
        losses = dense - np.asarray(rewards, np.float64)
        logs = np.log(np.maximum(losses, max(LEAST * float(losses.max()), 1e-12)))
        line = _line(curves, kept)
        with threadpool_limits(1):
            scale = np.linalg.lstsq(line, logs, rcond=None)[0].astype(np.float64)
            process = _regression(_ratios(costing, kept), logs - line @ scale)
        return cls(costing=costing, curves=tuple(curves), played=kept, scale=scale, process=process)

    def expected(self, kept: IntArray, daring: float = 0.0) -> FloatArray:
        """[K] expected log losses of [K, S] assignments, less so many of their standard deviations."""
        kept = _settled(self.costing, kept)
        ratios = _ratios(self.costing, kept)
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # variances that rounding makes negative are 0
            line = _line(self.curves, kept) @ self.scale
            if not daring:
                return np.asarray(line + self.process.predict(ratios))
            mean, deviation = self.process.predict(ratios, return_std=True)
        return np.asarray(line + mean - daring * deviation)

    def best(self, guide: Guide, daring: float = 0.0, further: Sequence[IntArray] = ()) -> IntArray:
        """[S] the least expected loss within the budgets of a guide.

        Args:
            guide: Whose solution is one start.
            daring: How many standard deviations an assignment may turn out better than expected.
            further: More starts, [S] each, within the budgets.
        """
        constraint = guide.constraint
        known = self.played[constraint.keeps(self.played)]
        near = known[np.argsort(self.expected(known, daring), kind="stable")[:NEAR]] if len(known) else known
        starts = [guide.solution, *further, *near]
        found = np.asarray([self._improved(constraint, start, daring) for start in starts])
        return np.asarray(found[self.expected(found, daring).argmin()])

    def _improved(self, constraint: Constraint, start: IntArray, daring: float) -> IntArray:
        """[S] a local optimum."""
        best, least = start, float(self.expected(start[None], daring)[0])
        for _ in range(ROUNDS):
            solved = knapsack(constraint, self._around(best, least, daring), STATES)
            own, there = _ratios(self.costing, np.asarray([best, solved]))
            tried = [solved, *(constraint.scaled(own + part * (there - own)) for part in PARTS)]
            expected = self.expected(np.asarray(tried), daring)
            if expected.min() >= least - 1e-6:
                break
            best, least = tried[int(expected.argmin())], float(expected.min())
        return best

    def _around(self, kept: IntArray, least: float, daring: float) -> list[Curve]:
        """What each site alone would change of an assignment's expectation."""
        grids = [_thinned(site.values(), int(value)) for site, value in zip(self.costing.sites, kept, strict=True)]
        rows = np.repeat(kept[None], sum(map(len, grids)), axis=0)
        ends = np.cumsum([len(grid) for grid in grids])
        for place, (grid, end) in enumerate(zip(grids, ends, strict=True)):
            rows[end - len(grid) : end, place] = grid
        changes = np.split(self.expected(rows, daring) - least, ends[:-1])
        return [
            Curve(unit=site.name, kept=tuple(grid.tolist()), damage=tuple(change.tolist()))
            for site, grid, change in zip(self.costing.sites, grids, changes, strict=True)
        ]


def learned_by(
    config: SearchConfig, setup: Setup, curves: Sequence[Curve], dense: float, lines: Sequence[Line]
) -> Surrogate | None:
    """What the episodes of a search over a range say of whole assignments; None if its agent does not learn of these.

    Args:
        config: Of that search.
        setup: Its sites and its reward.
        curves: Damage per site.
        dense: Reward of the dense network.
        lines: Its episodes; failed ones say nothing.

    Raises:
        ValueError: If all of them failed.
    """
    if not sees_whole(config):
        return None
    played = [(line.key, float(setup.reward(line.evaluation))) for line in lines if isinstance(line, Episode)]
    return Surrogate.of(setup.constraint.costing, curves, dense, played)


def _regression(ratios: FloatArray, left: FloatArray) -> GaussianProcessRegressor:
    """A process with one width for all sites: a width for each fits a few hundred episodes too well."""
    from sklearn.exceptions import ConvergenceWarning  # heavy
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(0.5, (0.1, 10.0), nu=2.5) + WhiteKernel(1e-2, (1e-5, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is as good as any
        return GaussianProcessRegressor(kernel, normalize_y=True).fit(ratios, left)


def _line(curves: Sequence[Curve], kept: IntArray) -> FloatArray:
    """[K, 2] a one, and the log of the summed damage of [K, S] assignments."""
    damage = np.sum([curve.at(kept[:, place]) for place, curve in enumerate(curves)], axis=0)
    top = sum(max(curve.damage) for curve in curves)
    return np.stack([np.ones(len(kept)), np.log(np.maximum(damage, max(1e-4 * top, 1e-12)))], axis=1)


def _settled(costing: Costing, kept: IntArray) -> IntArray:
    """[K, S] assignments with one for each network that comes out."""
    return np.asarray([costing.settled(row) for row in kept])


def _ratios(costing: Costing, kept: IntArray) -> FloatArray:
    """[K, S] preserve ratios of [K, S] assignments."""
    places = (np.searchsorted(site.values(), own) for site, own in zip(costing.sites, kept.T, strict=True))
    return np.stack([site.ratios()[own] for site, own in zip(costing.sites, places, strict=True)], axis=1)


def _thinned(values: IntArray, kept: int) -> IntArray:
    """Ascending choices, few enough, the ends and one that is kept among them."""
    places = np.linspace(0, len(values) - 1, min(CHOICES, len(values))).round().astype(int)
    return np.union1d(values[places], [kept])
