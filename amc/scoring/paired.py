"""Differences between networks on the same images: small ones need pairing, and an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.searcher import keyed_generator
from amc.scoring.scorer import Score
from envs.measure import ACCURACY, Measure

NORMAL_95 = 1.959964
"""97.5 % quantile of the standard normal."""
RESAMPLES = 100
"""Bootstrap resamples of a standard error: 50 often suffice and more than 200 are seldom needed (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, section 6.4); of 100, its own relative error is 1 / sqrt(2 * 99) = 7 %."""


class Difference(NamedTuple):
    """A mean difference of a metric, and the half width of its 95 % interval; both in the metric's own values."""

    mean: float
    half_width: float

    @property
    def more_than_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width

    def text(self, measure: Measure) -> str:
        """With sign and unit."""
        return measure.change(self.mean, self.half_width)

    def __str__(self) -> str:
        return self.text(ACCURACY)


class Resampled(NamedTuple):
    """A metric's value on some samples, and [R] values on bootstrap resamples of them."""

    value: float
    resampled: NDArray[np.float64]


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


def resampled_difference(first: Sequence[Resampled], second: Sequence[Resampled]) -> Difference:
    """The same for a metric that is no mean over samples, by the bootstrap: both are resampled jointly.

    Args:
        first: One network's values for each seed.
        second: The same for the other network, same samples, same seeds.

    Raises:
        ValueError: If seeds do not match, or the metric has no value on the resamples.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired values must be of the same seeds, but got {len(first)} and {len(second)} of them")
    pairs = list(zip(first, second, strict=True))
    values = np.asarray([a.value - b.value for a, b in pairs])
    resampled = np.stack([a.resampled - b.resampled for a, b in pairs]).mean(axis=0)  # [R]
    variance = _spread(resampled) ** 2
    if len(values) > 1:
        variance += values.var(ddof=1) / len(values)
    return Difference(float(values.mean()), NORMAL_95 * float(np.sqrt(variance)))


def score_difference(first: Score, second: Score, stream: str) -> Difference:
    """Difference of two networks on the same samples.

    Args:
        first: One network's score.
        second: The other's.
        stream: Names the resamples, see `resampled`.
    """
    if first.metric.is_mean:
        return paired_difference([first.each], [second.each])
    one, other = (Resampled(score.value, resampled(score, stream)) for score in (first, second))
    return resampled_difference([one], [other])


def resampled(score: Score, stream: str) -> NDArray[np.float64]:
    """[R] values of a metric on bootstrap resamples of its samples, drawn with replacement; NaN where it has none.

    Scores of equally many samples are resampled alike, so that differences pair.

    Args:
        score: Of one network.
        stream: Names the draw: samples that are unrelated must not be resampled alike.
    """
    count = len(score)
    draws = (
        keyed_generator(count, f"bootstrap {stream}", draw).integers(count, size=count) for draw in range(RESAMPLES)
    )
    return np.asarray([_value_or_nan(score, indices) for indices in draws])


def standard_error(score: Score, values: NDArray[np.float64] | None) -> float:
    """Standard error of a score's value over samples.

    Args:
        score: Of one network.
        values: [R] values on resamples; None for a metric that is a mean over samples.
    """
    if values is not None:
        return _spread(values)
    return float(np.std(score.each, dtype=np.float64) / np.sqrt(len(score)))


def _value_or_nan(score: Score, indices: NDArray[np.int64]) -> float:
    try:
        return score.at(indices).value
    except ValueError:  # a class that is not among the samples drawn, for example
        return float("nan")


def _spread(values: NDArray[np.float64]) -> float:
    """Standard deviation over the resamples that have a value."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        raise ValueError(
            f"a metric must have a value on resamples of its samples, but had one on {len(known)} of {len(values)}: "
            "let it take any samples, also twice the same one"
        )
    return float(known.std(ddof=1))


def mean_interval(values: Sequence[float]) -> Difference:
    """Mean over seeds, with the 95 % interval of Student's t (0 wide for a single seed)."""
    from scipy.stats import t

    count = len(values)
    spread = float(np.std(values, ddof=1)) / count**0.5 * float(t.ppf(0.975, count - 1)) if count > 1 else 0.0
    return Difference(float(np.mean(values)), spread)
