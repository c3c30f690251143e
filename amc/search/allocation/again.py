"""Damage curves corrected around a solution: the first-order interactions that curves of single sites leave out.

Curves are measured with every other site dense. Around a solution a site may count more or less than there, because
the others are pruned as well: each curve is multiplied so that one step of it costs what it cost in the whole network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.compression.damage import Curve
from envs.space.sites import Site
from hw_profiles.layers import IntArray

STEP = 0.1
"""By how much of its width a site is changed to see what it counts, about: a smaller one drowns in noise."""
MOST = 4.0
"""The largest factor on a curve, and one over the smallest: one step says little of the far end."""


def steps_around(sites: Sequence[Site], solution: IntArray) -> list[IntArray]:
    """[S] assignments, each the solution with one site made lighter by about `STEP`, or heavier at its lightest."""
    changed = []
    for place, (site, value) in enumerate(zip(sites, solution, strict=True)):
        ratios, values = site.ratios(), site.values()
        wanted = site.action(int(value)) - STEP
        others = np.flatnonzero(values < value) if value > values[0] else np.flatnonzero(values > value)
        row = np.asarray(solution).copy()
        if len(others):
            row[place] = values[others[np.abs(ratios[others] - wanted).argmin()]]
        changed.append(row)
    return changed


def factors_around(
    curves: Sequence[Curve], solution: IntArray, steps: Sequence[IntArray], before: float, after: Sequence[float]
) -> NDArray[np.float64]:
    """[S] what to multiply each curve by: what its step really cost over what the curve says, relative to the median.

    Args:
        curves: Damage per site.
        solution: [S] the assignment around which steps were made.
        steps: [S] assignments of `steps_around`.
        before: Damage of the whole network at the solution.
        after: [S] the same at each step.
    """
    measured = np.asarray(after) - before
    foretold = np.asarray(
        [
            float(np.diff(curve.at(np.asarray([solution[place], step[place]])))[0])
            for place, (curve, step) in enumerate(zip(curves, steps, strict=True))
        ]
    )
    known = np.abs(foretold) > 0
    ratios = np.where(known, measured / np.where(known, foretold, 1.0), np.nan)
    usual = float(np.nanmedian(ratios)) if known.any() else 1.0  # repair has made all of them smaller
    return np.where(known, np.clip(ratios / max(usual, 1e-12), 1 / MOST, MOST), 1.0)


def corrected(curves: Sequence[Curve], factors: Sequence[NDArray[np.float64]]) -> list[Curve]:
    """The curves, each multiplied by the geometric mean of its factors around several solutions."""
    means = np.exp(np.mean(np.log(factors), axis=0))
    return [curve.scaled(float(factor)) for curve, factor in zip(curves, means, strict=True)]
