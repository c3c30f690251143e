"""Allocation without search: the knapsack over measured damage. `uniform` is `Constraint.uniform`.

Where one cost is additive over sites the knapsack is exact (dynamic programming over the Pareto front of
cost and damage). Otherwise costs are linearized at the current policy, solved with multipliers and repeated;
greedy single-site exchanges on the true costs finish.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc.sensitivity import Curve
from envs.constraint import Constraint, Costing
from hw_profiles.cost import Cost
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]

STATES = 20_000
"""Most partial solutions the dynamic program keeps; beyond, costs are rounded up to a grid (still feasible)."""
ROUNDS = 40


def knapsack(constraint: Constraint, curves: Sequence[Curve]) -> IntArray:
    """Least total damage within every budget.

    Args:
        constraint: Sites and budgets.
        curves: Damage per unit, in site order.

    Returns:
        [S] kept channels.
    """
    costing = constraint.costing
    damages = [curve.at(site.kept()) for curve, site in zip(curves, costing.sites, strict=True)]
    if len(constraint.budgets) == 1 and is_additive(costing, constraint.budgets[0].cost):
        cost, limit = constraint.budgets[0]
        base, tables = linearize(costing, cost, costing.dense())
        picks = solve_additive(tables, damages, limit - base)
        if picks is not None:
            return _kept(costing, picks)
    return exchange(constraint, damages, _by_multipliers(constraint, damages))


def is_additive(costing: Costing, cost: Cost, draws: int = 32) -> bool:
    """Whether a cost is a sum over sites, tried on random assignments (a cost is a black box)."""
    generator = np.random.default_rng(0)
    base, tables = linearize(costing, cost, costing.dense())
    picks = np.stack([generator.integers(len(site.choices), size=draws) for site in costing.sites], axis=1)
    kept = np.stack([site.kept()[picks[:, s]] for s, site in enumerate(costing.sites)], axis=1)
    sums = base + sum(table[picks[:, s]] for s, table in enumerate(tables))
    return bool(np.allclose(costing.many(cost, kept), sums, rtol=1e-9, atol=1e-6))


def linearize(costing: Costing, cost: Cost, kept: IntArray) -> tuple[float, list[FloatArray]]:
    """Cost of `kept`, and for each site the change when it alone takes each of its choices."""
    base = costing.one(cost, kept)
    tables = []
    for step, site in enumerate(costing.sites):
        rows = np.repeat(kept[None, :], len(site.choices), axis=0)
        rows[:, step] = site.kept()
        tables.append(costing.many(cost, rows) - base)
    return base, tables


def solve_additive(tables: Sequence[FloatArray], damages: Sequence[FloatArray], budget: float) -> list[int] | None:
    """Exact multiple-choice knapsack: one choice per site, least damage with summed cost <= budget.

    Keeps the Pareto front of (cost, damage) over the sites so far. Exact while the front stays below
    `STATES`; then costs are rounded up to a grid, which can only waste budget, never break it.

    Args:
        tables: Cost of each choice per site.
        damages: Damage of each choice per site.
        budget: Bound on the summed cost.

    Returns:
        Index of the choice per site, or None if nothing fits.
    """
    lightest = [table.min() for table in tables]
    remaining = np.concatenate([np.cumsum(lightest[::-1])[::-1][1:], [0.0]])
    costs, losses = np.zeros(1), np.zeros(1)
    history: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    slack = 1e-9 * max(1.0, abs(budget))
    for table, damage, rest in zip(tables, damages, remaining, strict=True):
        cost = (costs[:, None] + table[None, :]).ravel()
        loss = (losses[:, None] + damage[None, :]).ravel()
        fits = np.flatnonzero(cost + rest <= budget + slack)
        if not len(fits):
            return None
        front = _pareto(cost[fits], loss[fits])
        if len(front) > STATES:
            grid = (budget - cost[fits].min()) / STATES
            rounded = np.ceil(cost[fits] / grid) * grid
            legal = np.flatnonzero(rounded + rest <= budget + slack)
            front = legal[_pareto(rounded[legal], loss[fits][legal])]
        chosen = fits[front]
        history.append((chosen // len(table), chosen % len(table)))
        costs, losses = cost[chosen], loss[chosen]
    state = int(np.lexsort((costs, losses))[0])
    picks: list[int] = []
    for parents, choices in reversed(history):
        picks.append(int(choices[state]))
        state = int(parents[state])
    return picks[::-1]


def exchange(constraint: Constraint, damages: Sequence[FloatArray], kept: IntArray) -> IntArray:
    """Greedy single-site changes on the true costs, until none lowers the damage within the budgets."""
    sites = constraint.costing.sites
    kept = kept.copy()
    current = [int(np.flatnonzero(site.kept() == width)[0]) for site, width in zip(sites, kept, strict=True)]
    while True:
        best_gain, best = 1e-12, None
        for step, site in enumerate(sites):
            gains = damages[step][current[step]] - damages[step]
            better = np.flatnonzero(gains > best_gain)
            if not len(better):
                continue
            rows = np.repeat(kept[None, :], len(better), axis=0)
            rows[:, step] = site.kept()[better]
            legal = better[constraint.keeps(rows)]
            if len(legal):
                pick = int(legal[np.argmax(gains[legal])])
                best_gain, best = float(gains[pick]), (step, pick)
        if best is None:
            return kept
        step, pick = best
        current[step], kept[step] = pick, sites[step].kept()[pick]


def _by_multipliers(constraint: Constraint, damages: Sequence[FloatArray]) -> IntArray:
    """Linearize at the current policy, weigh budgets by multipliers, solve per site, repeat; best feasible kept.

    With multipliers fixed, each site minimizes damage + sum of multiplier x cost / budget on its own. One
    common factor is bisected to the largest feasible policy; the balance between budgets follows how full
    they are (a multiplicative-weights step).
    """
    costing, sites = constraint.costing, constraint.costing.sites
    best, best_damage = constraint.fallback, _total(damages, sites_index(costing, constraint.fallback))
    kept, weights = constraint.fallback, np.full(len(constraint.budgets), 1 / len(constraint.budgets))
    for _ in range(ROUNDS):
        shares = [np.zeros(len(site.choices)) for site in sites]
        for weight, (cost, limit) in zip(weights, constraint.budgets, strict=True):
            for share, table in zip(shares, linearize(costing, cost, kept)[1], strict=True):
                share += weight * table / limit
        candidate = _bisect(constraint, damages, shares)
        if candidate is None:
            break
        total = _total(damages, sites_index(costing, candidate))
        if total < best_damage:
            best, best_damage = candidate, total
        fullness = np.asarray([costing.one(cost, candidate) / limit for cost, limit in constraint.budgets])
        weights = weights * np.exp(2 * (fullness - fullness.mean()))
        weights /= weights.sum()
        if np.array_equal(candidate, kept) and len(weights) == 1:
            break
        kept = candidate
    return best


def _bisect(constraint: Constraint, damages: Sequence[FloatArray], shares: Sequence[FloatArray]) -> IntArray | None:
    """The feasible policy of the smallest common multiplier, found by bisection; None if none is feasible."""
    low, high, found = -12.0, 12.0, None
    for _ in range(40):
        middle = (low + high) / 2
        picks = [int(np.argmin(d + 10**middle * s)) for d, s in zip(damages, shares, strict=True)]
        candidate = _kept(constraint.costing, picks)
        if constraint.keeps(candidate)[0]:
            found, high = candidate, middle
        else:
            low = middle
    return found


def sites_index(costing: Costing, kept: IntArray) -> list[int]:
    """Index of the choice that each width is."""
    return [int(np.flatnonzero(s.kept() == width)[0]) for s, width in zip(costing.sites, kept, strict=True)]


def _total(damages: Sequence[FloatArray], picks: Sequence[int]) -> float:
    return float(sum(damage[pick] for damage, pick in zip(damages, picks, strict=True)))


def _kept(costing: Costing, picks: Sequence[int]) -> IntArray:
    return np.asarray([s.choices[pick].kept for s, pick in zip(costing.sites, picks, strict=True)], dtype=np.int64)


def _pareto(cost: FloatArray, loss: FloatArray) -> NDArray[np.int64]:
    """Indices of the points that no cheaper point matches in loss, by ascending cost."""
    order = np.lexsort((loss, cost))
    running = np.minimum.accumulate(loss[order])
    better = np.concatenate([[True], running[1:] < running[:-1]])
    return np.asarray(order[better])
