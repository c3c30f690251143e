"""From a profile's sum of kernels to the time of a whole network: the fitted correction and its held-out error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from amc.profiling.timing import Timing
from hw_profiles.device import now
from hw_profiles.latency.profile import Correction, Disturbance

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check found.

    Attributes:
        predicted: [N] milliseconds by the table, uncorrected.
        measured: [N] milliseconds of the whole networks, drift taken out.
        held_out: [N] corrected predictions, each by the correction fitted on the other half.
        correction: Fitted on all of them, with the held-out error.
        dense: The dense network's time, a round being its median beside one network; None if not known.
    """

    predicted: FloatArray
    measured: FloatArray
    held_out: FloatArray
    correction: Correction
    dense: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        c = self.correction
        columns = zip(self.predicted.tolist(), self.held_out.tolist(), self.measured.tolist(), strict=True)
        return {
            "task": c.task,
            "networks": c.networks,
            "median_relative_error": c.median_relative_error,
            "p95_relative_error": c.p95_relative_error,
            "spearman": c.spearman,
            "intercept_ms": c.intercept_ms,
            "slope": c.slope,
            "dense_ms": c.dense_ms,
            "dense_spread": self.dense.spread() if self.dense is not None else None,
            "disturbed": c.disturbed.model_dump() if c.disturbed is not None else None,
            "points": [{"predicted_ms": p, "held_out_ms": h, "measured_ms": m} for p, h, m in columns],
        }


def judge(
    predicted: FloatArray,
    measured: FloatArray,
    dense_ms: float,
    task: str,
    network: str,
    disturbed: Disturbance | None = None,
) -> CheckResult:
    """Fits the correction on each half and judges it on the other.

    Args:
        predicted: [N] milliseconds by the table, uncorrected.
        measured: [N] milliseconds of the whole networks.
        dense_ms: The dense network's time.
        task: Name of the task.
        network: Digest of the dense network (`network_digest`).
        disturbed: How disturbed the check was, if known.

    Raises:
        ValueError: If longer predictions go with shorter times.
    """
    held_out = np.zeros(len(predicted))
    for half in (0, 1):
        fit = np.arange(len(predicted)) % 2 == half
        intercept, slope = fit_correction(predicted[fit], measured[fit])
        held_out[~fit] = intercept + slope * predicted[~fit]
    errors = np.abs(held_out / measured - 1)
    intercept, slope = fit_correction(predicted, measured)
    correction = Correction(
        network=network,
        task=task,
        intercept_ms=intercept,
        slope=slope,
        networks=len(predicted),
        median_relative_error=float(np.median(errors)),
        p95_relative_error=float(np.quantile(errors, 0.95)),
        spearman=float(spearmanr(held_out, measured).statistic),
        dense_ms=dense_ms,
        date=now(),
        disturbed=disturbed,
    )
    return CheckResult(predicted=predicted, measured=measured, held_out=held_out, correction=correction)


def fit_correction(predicted: FloatArray, measured: FloatArray) -> tuple[float, float]:
    """Intercept and slope of least squared *relative* error.

    Raises:
        ValueError: If longer predictions go with shorter times.
    """
    columns = np.stack([np.ones(len(predicted)), predicted], axis=1) / measured[:, None]
    intercept, slope = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)[0]
    if not slope > 0:
        raise ValueError(
            f"measured latencies must grow with predicted ones, but the fitted slope is {slope:.3g}: measure again on "
            "a quiet machine, with more --networks"
        )
    return float(intercept), float(slope)
