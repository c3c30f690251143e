"""Exploration noise: a normal distribution truncated to [0, 1], and how its width shrinks over episodes; normal scores.

Only functions of their arguments; the uniform draws come from the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_STANDARD_NORMAL = NormalDist()
_FLAT_SIGMA = 1e3  # beyond, the truncated density varies by less than 1e-6 over [0, 1]


def truncated_normal(mean: float, sigma: float, uniform: float) -> float:
    """A draw from the normal distribution around ``mean`` truncated to [0, 1], by its inverse distribution.

    The distribution is *truncated*, not clipped: it has no point mass at 0 and 1.

    Args:
        mean: centre before truncation; outside of [0, 1] the nearer border is taken.
        sigma: standard deviation before truncation, ``>= 0``; 0 gives ``mean`` itself.
        uniform: a uniform draw from [0, 1], the quantile that is returned.
    """
    if math.isnan(mean) or not sigma >= 0.0 or not 0.0 <= uniform <= 1.0:
        raise ValueError(
            "`sigma >= 0` and `0 <= uniform <= 1` must hold and no argument may be NaN, "
            f"but got mean={mean}, sigma={sigma}, uniform={uniform}"
        )
    mean = min(max(mean, 0.0), 1.0)
    if sigma >= _FLAT_SIGMA:
        return uniform
    if sigma * 40.0 < math.ulp(1.0):  # a normal draw never lies 40 sigma out; and dividing by it may overflow
        return mean
    below, above = _tail(mean / sigma), _tail((1.0 - mean) / sigma)  # probability cut off on either side
    left, right = below + uniform * (1.0 - above - below), above + (1.0 - uniform) * (1.0 - above - below)
    # Invert on the side with the smaller tail, where floating point resolves it.
    quantile = _lower_quantile(left) if left <= right else -_lower_quantile(right)
    return min(max(mean + sigma * quantile, 0.0), 1.0)


def decayed_sigma(start: float, decay: float, floor: float, episode: int) -> float:
    """The width for ``episode`` (from 0): ``start * decay**episode``, but never below ``floor``."""
    return max(start * decay**episode, floor)


def normal_quantile(uniform: float) -> float:
    """The standard normal's quantile, finite also at 0 and 1."""
    return _lower_quantile(uniform) if uniform <= 0.5 else -_lower_quantile(1.0 - uniform)


def along(uniforms: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """Quantiles whose normal draws are orthogonal to ``shares``: to first order they leave the cost as it is.

    Args:
        uniforms: ``[T]`` uniform draws from [0, 1].
        shares: ``[T]`` how much the cost changes per unit of each action; all zeros change nothing.
    """
    normal = np.array([normal_quantile(uniform) for uniform in uniforms])
    direction = np.asarray(shares, np.float64)
    length = float(direction @ direction)
    if length > 0.0:
        normal -= direction * float(direction @ normal) / length
    return tuple(_STANDARD_NORMAL.cdf(value) for value in normal.tolist())


def normal_scores(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard normal's quantile at each reward's mid-rank; equal rewards score alike."""
    ordered = np.sort(rewards)
    ranks = np.searchsorted(ordered, rewards, "left") + np.searchsorted(ordered, rewards, "right")
    levels, where = np.unique(ranks / (2 * len(rewards)), return_inverse=True)
    return np.array([_STANDARD_NORMAL.inv_cdf(level) for level in levels])[where]


def _tail(distance: float) -> float:
    """P(Z > distance) of a standard normal Z, precise far out."""
    return 0.5 * math.erfc(distance / math.sqrt(2.0))


def _lower_quantile(probability: float) -> float:
    return _STANDARD_NORMAL.inv_cdf(max(probability, math.ulp(0.0) * 2**60))
