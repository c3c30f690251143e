"""Differences between networks on the same images: small ones need pairing, and an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964
"""97.5 % quantile of the standard normal."""


class Difference(NamedTuple):
    """A mean difference of a metric, and the half width of its 95 % interval; both fractions."""

    mean: float
    half_width: float

    @property
    def more_than_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} ± {100 * self.half_width:.2f} points"


def paired_difference(first: Sequence[NDArray[np.float32]], second: Sequence[NDArray[np.float32]]) -> Difference:
    """Mean of first - second over images and seeds.

    Two things are drawn: images, and the seeds of the searches. The variance of the mean is taken as the
    image part (of the per-image differences, averaged over seeds) plus the seed part (of the mean
    differences); the first is in the second too, so with few seeds this errs to the side of caution.

    Args:
        first: One [N] array of per-image metrics for each seed.
        second: The same for the other network, same images, same seeds.

    Raises:
        ValueError: If images or seeds do not match.
    """
    if len(first) != len(second) or not first or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        raise ValueError(
            "paired scores must be of the same images and seeds, but got "
            f"{[a.shape for a in first]} and {[b.shape for b in second]}: compare runs of one task"
        )
    each = np.stack([a.astype(np.float64) - b for a, b in zip(first, second, strict=True)])  # [K, N]
    images = each.mean(axis=0)
    variance = images.var(ddof=1) / len(images) if len(images) > 1 else 0.0
    if len(each) > 1:
        variance += each.mean(axis=1).var(ddof=1) / len(each)
    return Difference(float(images.mean()), NORMAL_95 * float(np.sqrt(variance)))


def mean_interval(values: Sequence[float]) -> Difference:
    """Mean over seeds, with the 95 % interval of Student's t (0 wide for a single seed)."""
    from scipy.stats import t

    count = len(values)
    spread = float(np.std(values, ddof=1)) / count**0.5 * float(t.ppf(0.975, count - 1)) if count > 1 else 0.0
    return Difference(float(np.mean(values)), spread)
