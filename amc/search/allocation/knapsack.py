"""Allocation without search: the knapsack over measured damage. `uniform` is `Constraint.uniform`.

Sites whose costs multiply are decided together (`groups.py`). Where one cost is additive over groups the knapsack is
exact (dynamic programming over the Pareto front of cost and damage). Otherwise costs are linearized at the current
policy, solved with multipliers and repeated; greedy exchanges of one or two groups on the true costs finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amc.search.allocation.groups import Group, thinned, together
from envs.compression.damage import Curve
from envs.space.branch_sites import BranchSite
from envs.space.constraint import Constraint, Costing
from envs.space.sites import Site, moot_of
from hw_profiles.cost import Cost
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]

STATES = 20_000
"""Maximum of partial solutions that the dynamic program keeps; beyond, one per cell of a grid (still feasible)."""
ROUNDS = 40
SECTIONS, MULTIPLIERS = 6, 25
"""Rounds in which multipliers from 1e-12 to 1e12 are narrowed down, and how many are tried in each."""
MIN_GAIN = 1e-12
TRIES = 4096
"""Pairs of moves whose true costs are looked at in one round."""


def knapsack(constraint: Constraint, curves: Sequence[Curve], states: int = STATES) -> IntArray:
    """Minimum of total damage within every budget.

    Args:
        constraint: Sites and budgets.
        curves: Damage per unit, in site order.
        states: Maximum of partial solutions; fewer are faster, and exact for fewer sites.

    Returns:
        [S] kept channels.
    """
    thin = thinned(constraint.costing.sites)
    if thin == constraint.costing.sites:
        return _solved(constraint, curves, states)
    coarse = _solved(_over(constraint, thin), curves, states)  # which branches go; then all widths of those that stay
    fine = _solved(_over(constraint, _decided(constraint.costing.sites, coarse)), curves, states)
    return min((fine, coarse), key=lambda kept: _damage(constraint.costing, curves, kept))


def _over(constraint: Constraint, sites: Sequence[Site]) -> Constraint:
    """The same budgets over sites with fewer choices."""
    return Constraint.create(replace(constraint.costing, sites=tuple(sites)), constraint.budgets)


def _decided(sites: Sequence[Site], kept: IntArray) -> list[Site]:
    """The sites with their branches as an [S] assignment has them."""
    moot = moot_of(sites, kept)
    decided = []
    for site, value in zip(sites, kept, strict=True):
        choices = (site.choice(value),) if isinstance(site, BranchSite) or site.name in moot else site.choices
        decided.append(replace(site, choices=choices))
    return decided


def _damage(costing: Costing, curves: Sequence[Curve], kept: IntArray) -> float:
    values = costing.settled(kept)[:, None]
    return float(sum(curve.at(value)[0] for curve, value in zip(curves, values, strict=True)))


def _solved(constraint: Constraint, curves: Sequence[Curve], states: int) -> IntArray:
    costing = constraint.costing
    groups = together(costing, [curve.at(site.values()) for curve, site in zip(curves, costing.sites, strict=True)])
    starts = [constraint.uniform(), constraint.fallback]
    cost, limit = constraint.budgets[0]
    tables = additive_tables(costing, cost, groups) if len(constraint.budgets) == 1 else None
    if tables is not None:
        picks = solve_additive(tables, [group.damage for group in groups], limit, states)
        if picks is not None and constraint.keeps(_kept(costing, groups, picks))[0]:
            return _best(groups, [_kept(costing, groups, picks), *starts])
    starts = [_by_multipliers(constraint, groups), *starts]
    return _best(groups, [exchange(constraint, groups, kept) for kept in starts])


def additive_tables(costing: Costing, cost: Cost, groups: Sequence[Group], draws: int = 32) -> list[FloatArray] | None:
    """Per group the cost of each option, if the cost is their sum: tried on random assignments, as it is a black box.

    What the groups have in common is counted with the first one.
    """
    generator = np.random.default_rng(0)
    base, tables = linearize(costing, cost, costing.heaviest(), groups)
    picks = np.stack([generator.integers(len(group.options), size=draws) for group in groups], axis=1)
    kept = np.stack([_kept(costing, groups, row) for row in picks])
    sums = base + sum(table[picks[:, g]] for g, table in enumerate(tables))
    additive = np.allclose(costing.many(cost, kept), sums, rtol=1e-9, atol=1e-6)
    return [base + tables[0], *tables[1:]] if additive else None


def linearize(costing: Costing, cost: Cost, kept: IntArray, groups: Sequence[Group]) -> tuple[float, list[FloatArray]]:
    """Cost of `kept`, and for each group the change when it alone takes each of its options."""
    base = costing.one(cost, kept)
    changes = costing.many(cost, np.concatenate([group.put(kept) for group in groups])) - base
    ends = np.cumsum([len(group.options) for group in groups])
    return base, np.split(changes, ends[:-1])


def solve_additive(
    tables: Sequence[FloatArray], damages: Sequence[FloatArray], budget: float, states: int = STATES
) -> list[int] | None:
    """Exact multiple-choice knapsack: one option per group, least damage with summed cost <= budget.

    Keeps the Pareto front of (cost, damage) over the groups so far. Exact while the front stays below
    `states`; then one partial solution per cell of a grid of costs is kept, each with its true cost.

    Args:
        tables: Cost of each option per group.
        damages: Damage of each option per group.
        budget: Bound on the summed cost.
        states: Maximum of partial solutions that are kept.

    Returns:
        Index of the option per group, or None if nothing fits.
    """
    fronts = [_pareto(table, damage) for table, damage in zip(tables, damages, strict=True)]  # no other can be best
    tables, damages = ([own[front] for own, front in zip(every, fronts, strict=True)] for every in (tables, damages))
    lightest = [table.min() for table in tables]
    remaining = np.concatenate([np.cumsum(lightest[::-1])[::-1][1:], [0.0]])
    costs, losses = np.zeros(1), np.zeros(1)
    history: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for table, damage, rest in zip(tables, damages, remaining, strict=True):
        cost = (costs[:, None] + table[None, :]).ravel()
        loss = (losses[:, None] + damage[None, :]).ravel()
        fits = np.flatnonzero(cost + rest <= budget)
        if not len(fits):
            return None
        front = _pareto(cost[fits], loss[fits])
        if len(front) > states:
            low = cost[fits].min()
            grid = (budget - rest - low) / states
            rounded = np.ceil((cost[fits] - low) / grid)  # one partial solution per cell, the least damage in it
            front = _pareto(rounded, loss[fits])
        chosen = fits[front]
        history.append((chosen // len(table), chosen % len(table)))
        costs, losses = cost[chosen], loss[chosen]
    state = int(np.lexsort((costs, losses))[0])
    picks: list[int] = []
    for parents, choices in reversed(history):
        picks.append(int(choices[state]))
        state = int(parents[state])
    return [int(front[pick]) for front, pick in zip(fronts, picks[::-1], strict=True)]


def exchange(constraint: Constraint, groups: Sequence[Group], kept: IntArray) -> IntArray:
    """Greedy changes on the true costs, of one group or (where none helps) two, while the damage falls.

    Args:
        constraint: Sites and budgets.
        groups: What is decided together.
        kept: [S] a feasible assignment.

    Returns:
        [S] a feasible assignment of at most the same damage.
    """
    while True:
        moves = _moves(constraint, groups, kept)
        better = _single(constraint, moves, kept)
        if better is None:
            better = _pair(constraint, moves, kept)
        if better is None:
            return kept
        kept = better


class _Moves(NamedTuple):
    """All changes of one group: [M] group, [M, S] what its sites become (-1: as it is), fall of damage, [B, M] change
    of each cost, part of a pair.
    """

    group: IntArray
    after: IntArray
    gain: FloatArray
    cost: FloatArray
    near: NDArray[np.bool_]


def _moves(constraint: Constraint, groups: Sequence[Group], kept: IntArray) -> _Moves:
    costing = constraint.costing
    current = [group.index(kept) for group in groups]
    tables = [np.concatenate(linearize(costing, cost, kept, groups)[1]) for cost, _ in constraint.budgets]
    counts = [len(group.options) for group in groups]
    return _Moves(
        group=np.repeat(np.arange(len(groups)), counts),
        after=np.concatenate([group.put(np.full_like(kept, -1)) for group in groups]),
        gain=np.concatenate([g.damage[index] - g.damage for g, index in zip(groups, current, strict=True)]),
        cost=np.stack(tables),
        near=np.concatenate([_near(count, index) for count, index in zip(counts, current, strict=True)]),
    )


def _near(count: int, current: int) -> NDArray[np.bool_]:
    """[O] options one, two, four, ... steps away: fine and coarse pairs, but few."""
    distance = np.abs(np.arange(count) - current)
    return np.asarray((distance > 0) & (distance & (distance - 1) == 0))


def _single(constraint: Constraint, moves: _Moves, kept: IntArray) -> IntArray | None:
    """The feasible change of one group that lowers the damage most."""
    order = np.flatnonzero(moves.gain > MIN_GAIN)
    order = order[np.argsort(-moves.gain[order], kind="stable")]
    return _first_legal(constraint, kept, moves, order[:, None])


def _pair(constraint: Constraint, moves: _Moves, kept: IntArray) -> IntArray | None:
    """The feasible change of two groups that lowers the damage most, among pairs that look feasible one by one."""
    up = np.flatnonzero((moves.gain > MIN_GAIN) & moves.near)
    down = np.flatnonzero((moves.cost < 0).any(axis=0) & moves.near)
    room = [limit - constraint.costing.one(cost, kept) for cost, limit in constraint.budgets]
    gain = moves.gain[up][:, None] + moves.gain[down][None, :]
    gain[moves.group[up][:, None] == moves.group[down][None, :]] = 0
    for change, slack in zip(moves.cost, room, strict=True):
        gain[change[up][:, None] + change[down][None, :] > slack] = 0
    rows, columns = np.nonzero(gain > MIN_GAIN)
    order = np.argsort(-gain[rows, columns], kind="stable")[:TRIES]
    return _first_legal(constraint, kept, moves, np.stack([up[rows[order]], down[columns[order]]], axis=1))


def _first_legal(constraint: Constraint, kept: IntArray, moves: _Moves, order: IntArray) -> IntArray | None:
    """The assignment after the first [K, n] combination of moves that keeps every budget."""
    if not len(order):
        return None
    rows = np.repeat(kept[None, :], len(order), axis=0)
    for part in order.T:
        rows = np.where(moves.after[part] >= 0, moves.after[part], rows)
    legal = np.flatnonzero(constraint.keeps(rows))
    return np.asarray(rows[legal[0]]) if len(legal) else None


def _by_multipliers(constraint: Constraint, groups: Sequence[Group]) -> IntArray:
    """Linearize at the current policy, weigh budgets by multipliers, solve per group, repeat; best feasible kept.

    With multipliers fixed, each group minimizes damage + sum of multiplier x cost / budget on its own. One
    common factor is narrowed down to the largest feasible policy; the balance between budgets follows how full
    they are (a multiplicative-weights step).
    """
    costing = constraint.costing
    best, best_damage = constraint.fallback, _total(groups, constraint.fallback)
    kept = constraint.fallback
    weights = np.full(len(constraint.budgets), 1 / len(constraint.budgets))
    for _ in range(ROUNDS):
        shares = [np.zeros(len(group.options)) for group in groups]
        for weight, (cost, limit) in zip(weights, constraint.budgets, strict=True):
            for share, table in zip(shares, linearize(costing, cost, kept, groups)[1], strict=True):
                share += weight * table / limit
        candidate = _least_multiplier(constraint, groups, shares)
        if candidate is None:
            break
        total = _total(groups, candidate)
        if total < best_damage:
            best, best_damage = candidate, total
        fullness = np.asarray([costing.one(cost, candidate) / limit for cost, limit in constraint.budgets])
        weights = weights * np.exp(2 * (fullness - fullness.mean()))
        weights /= weights.sum()
        if np.array_equal(candidate, kept) and len(weights) == 1:
            break
        kept = candidate
    return best


def _least_multiplier(constraint: Constraint, groups: Sequence[Group], shares: Sequence[FloatArray]) -> IntArray | None:
    """The feasible policy of the smallest common multiplier; None if none is feasible.

    Each round asks for a whole grid of multipliers at once and closes in on the gap below the first feasible one.
    """
    low, high, found = -12.0, 12.0, None
    for _ in range(SECTIONS):
        grid = np.linspace(low, high, MULTIPLIERS)
        totals = [g.damage + 10 ** grid[:, None] * s for g, s in zip(groups, shares, strict=True)]
        picks = np.stack([np.argmin(total, axis=1) for total in totals], axis=1)
        candidates = constraint.costing.fitted(np.stack([_kept(constraint.costing, groups, row) for row in picks]))
        feasible = np.flatnonzero(constraint.keeps(candidates))
        if not len(feasible):
            break
        first = int(feasible[0])
        found = candidates[first]
        if first == 0:
            break
        low, high = grid[first - 1], grid[first]
    return found


def _best(groups: Sequence[Group], candidates: Sequence[IntArray]) -> IntArray:
    """The candidate of least total damage, the first one on a tie."""
    return min(candidates, key=lambda kept: _total(groups, kept))


def _total(groups: Sequence[Group], kept: IntArray) -> float:
    return float(sum(group.damage[group.index(kept)] for group in groups))


def _kept(costing: Costing, groups: Sequence[Group], picks: Sequence[int] | IntArray) -> IntArray:
    """[S] what an option per group makes of the sites."""
    kept = costing.heaviest()
    for group, pick in zip(groups, picks, strict=True):
        kept[group.steps] = group.options[pick]
    return kept


def _pareto(cost: FloatArray, loss: FloatArray) -> NDArray[np.int64]:
    """Indices of the points that no cheaper point matches in loss, by ascending cost."""
    order = np.lexsort((loss, cost))
    running = np.minimum.accumulate(loss[order])
    better = np.concatenate([[True], running[1:] < running[:-1]])
    return np.asarray(order[better])
