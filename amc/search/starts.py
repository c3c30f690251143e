"""Where a search starts: solutions of the knapsack for several kinds of damage, judged as whole networks.

Damage per unit is measured one unit at a time, so every allocation made of it is a guess about how damages add
up. Different kinds of damage guess differently; their mean is one more guess. Each is made into a network with
the chosen repair, and the one whose outputs stay closest to the dense network's, on calibration images that
repair has not seen, goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from amc.pool.pool import Pool
from amc.problem.bounds import Ends
from amc.problem.prepare import Prepared
from amc.search.allocation.again import corrected, factors_around, steps_around
from amc.search.allocation.audition import audition, quick_audition
from amc.search.allocation.curves import damage_curves
from amc.search.allocation.knapsack import knapsack
from amc.search.ranges.budgets import Limits
from amc.search.ranges.guides import KNAPSACK, Guides, budgeted, kind_of, solutions
from amc.search.ranges.taught import Taught
from amc.search.tools import Tools
from envs.compression.damage import Curve
from envs.space.assignment import Assignment, Key
from envs.space.constraint import Constraint

PLAIN = "plain knapsack"
"""Label of the knapsack's solution on curves that were not corrected, where an agent has learned on corrected ones."""
RANGED_ROUNDS = 2
"""How often the knapsack is solved over a range where nothing is set: one correction serves all budgets."""
ANCHORS = 1 / 6, 1 / 2, 5 / 6
"""Where in a range curves are corrected: the middles of its thirds."""


def starting_keys(prepared: Prepared, pool: Pool, tools: Tools, taught: Taught | None = None) -> dict[str, Key]:
    """The solutions that the configured agent starts from by label, best guess first.

    Args:
        prepared: Task and settings.
        pool: Where the work is done.
        tools: Of the search.
        taught: An agent of many budgets, whose answers go first where there is one budget.
    """
    config, setup = prepared.config, prepared.setup
    if setup.ends is not None:
        return {KNAPSACK: best_knapsack(prepared, pool, tools, rounds=1).key}  # `guides_of` corrects for all budgets
    wanted: tuple[str, ...] = (config.agent,) if config.single else config.starts
    if config.agent == "random":
        wanted = ()
    answer = dict[str, Key]()
    solve = {KNAPSACK: lambda: best_knapsack(prepared, pool, tools), "uniform": setup.uniform}
    if taught is not None:
        ends, own, dense = taught.ends(setup), middle_of(prepared), None
        if ends is not None and taught.learned_with(config):
            middle = budgeted(ends[0], between(ends, 0.5))
            plain = plain_guides(prepared, pool, tools, taught.best, middle)
            guide = corrected_guides(prepared, pool, tools, plain, middle, ends).at(own)
            solve[KNAPSACK] = lambda: setup.assignment(guide.solution)
            solve[PLAIN] = lambda: setup.assignment(plain.at(own).solution)
            if KNAPSACK in wanted and not config.single:
                wanted = (*wanted, PLAIN)  # the correction is of the whole range: at this budget it can be worse
            dense = float(setup.reward(prepared.evaluate(setup.dense())))
        else:
            known = best_knapsack(prepared, pool, tools)
            solve[KNAPSACK] = lambda: known
            guide = guides_of(prepared, pool, tools, known.key, setup.constraint, ends).at(own)
        answer = {label: one.key for label, one in taught.answers(setup, guide, dense).items()}
    return {**answer, **{name: solve[name]().key for name in wanted}}


def best_knapsack(
    prepared: Prepared, pool: Pool, tools: Tools, constraint: Constraint | None = None, rounds: int | None = None
) -> Assignment:
    """The best knapsack solution, by audition if there are several.

    Args:
        prepared: Whose damage curves are used.
        pool: Where the work is done.
        tools: Of the search.
        constraint: A narrower one over the same sites, None for the setup's own.
        rounds: How often it is solved, on curves that are corrected in between; None: as configured.
    """
    constraint = constraint or prepared.setup.constraint
    setup = prepared.setup
    curves = damage_curves(prepared, pool, tools)
    distinct = list(dict.fromkeys(setup.assignment(values) for values in solutions(constraint, curves).values()))
    best = distinct[0]
    if len(distinct) > 1:
        judged = zip(audition(prepared, pool, tools, distinct), range(len(distinct)), strict=True)
        best = distinct[min(judged)[1]]
    further = (rounds or prepared.config.knapsack.rounds or 1) - 1
    own = curves[kind_of(constraint, curves, best.key)] if further else ()
    for _ in range(further):
        before, best = best, _solved_again(prepared, pool, tools, constraint, own, best)
        if best == before:
            break
    return best


def _solved_again(
    prepared: Prepared, pool: Pool, tools: Tools, constraint: Constraint, curves: Sequence[Curve], best: Assignment
) -> Assignment:
    """The knapsack on curves corrected around a solution, or that one if the audition prefers it; charged."""
    new = corrected(curves, factors(prepared, pool, tools, curves, [best]))
    found = prepared.setup.assignment(knapsack(constraint, new))
    if found == best:
        return best
    before, after = audition(prepared, pool, tools, [best, found])
    return found if after < before else best


def factors(
    prepared: Prepared, pool: Pool, tools: Tools, curves: Sequence[Curve], around: Sequence[Assignment]
) -> list[NDArray[np.float64]]:
    """For each assignment, [S] what to multiply the curves by around it; all steps are judged together, and charged."""
    setup = prepared.setup
    costing = setup.constraint.costing  # a step can leave a layer too narrow for its pattern
    steps = [list(costing.fitted(np.asarray(steps_around(setup.sites, one.values)))) for one in around]
    tried = [each for one, own in zip(around, steps, strict=True) for each in (one, *map(setup.assignment, own))]
    damages = iter(quick_audition(prepared, pool, tools, tried))
    found = []
    for one, own in zip(around, steps, strict=True):
        before, *after = islice(damages, 1 + len(own))
        found.append(factors_around(curves, one.values, own, before, after))
    return found


def guides_of(prepared: Prepared, pool: Pool, tools: Tools, best: Key, solved: Constraint, ends: Ends | None) -> Guides:
    """The knapsack for any budgets of a range, on curves that are corrected around some of its solutions.

    Args:
        prepared: Whose damage curves are used.
        pool: Where the work is done.
        tools: Of the search.
        best: A solution of the plain curves, whose kind of damage is taken.
        solved: The budgets that it is of.
        ends: The lowest and the highest budgets of the range, None where those budgets are all; they and those of
            `solved` may be of another device than the setup's.
    """
    return corrected_guides(prepared, pool, tools, plain_guides(prepared, pool, tools, best, solved), solved, ends)


def plain_guides(prepared: Prepared, pool: Pool, tools: Tools, best: Key, solved: Constraint) -> Guides:
    """`guides_of` on curves that are not corrected."""
    curves = damage_curves(prepared, pool, tools)
    return Guides(prepared.setup.constraint, curves[kind_of(solved, curves, best)])


def corrected_guides(
    prepared: Prepared, pool: Pool, tools: Tools, plain: Guides, solved: Constraint, ends: Ends | None
) -> Guides:
    """`guides_of` from the plain ones."""
    if (prepared.config.knapsack.rounds or RANGED_ROUNDS) == 1:
        return plain
    anchors = [tuple(solved.limits().values())] if ends is None else [between(ends, share) for share in ANCHORS]
    there = plain.under(solved if ends is None else ends[0])
    around = list(dict.fromkeys(prepared.setup.assignment(there.at(anchor).solution) for anchor in anchors))
    measured = factors(prepared, pool, tools, plain.curves, around)
    return Guides(prepared.setup.constraint, corrected(plain.curves, measured))


def between(ends: Ends, share: float) -> Limits:
    """The budgets at a share of the way from the lowest to the highest."""
    low, high = (end.limits().values() for end in ends)
    return tuple(one + share * (other - one) for one, other in zip(low, high, strict=True))


def middle_of(prepared: Prepared) -> Limits:
    """The budgets of the setup's own constraint: of a range, its middle."""
    return tuple(prepared.setup.constraint.limits().values())
