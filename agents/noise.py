"""Exploration noise: a normal distribution truncated to [0, 1], and how its width shrinks over episodes.

Only scalar functions of their arguments; the uniform draws come from the caller.
"""

from __future__ import annotations

import math
from statistics import NormalDist

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


def _tail(distance: float) -> float:
    """P(Z > distance) of a standard normal Z, precise far out."""
    return 0.5 * math.erfc(distance / math.sqrt(2.0))


def _lower_quantile(probability: float) -> float:
    return _STANDARD_NORMAL.inv_cdf(max(probability, math.ulp(0.0) * 2**60))
