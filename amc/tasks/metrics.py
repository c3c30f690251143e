"""The metrics that ship with the project, and how a function of the user's becomes one."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amc.tasks.metric import Metric
from envs.measure import ACCURACY, RESERVED

MAX_TOKEN_LOSS = 50.0
"""Largest cross-entropy of a token, in nats: the perplexity of a collapsed network must still be a number."""
IGNORED = -100
"""Target of a token that is not scored, as in `torch.nn.functional.cross_entropy`."""
MIN_SQUARED_ERROR = 1e-10
"""Mean squared error that PSNR takes for 0: 100 dB for values in [0, 1]."""


def as_metric(given: object) -> Metric:
    """The metric that a task was given: a `Metric`, or a function that scores each sample in [0, 1] (higher is better).

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(given, Metric):
        return given
    if given is top1:
        return accuracy
    if not callable(given):
        raise ValueError(
            f"a task's metric must be an amc.Metric or a function of outputs and targets, but got "
            f"{type(given).__name__}: write amc.Metric(name, function)"
        )
    name = getattr(given, "__name__", "")
    return Metric(name if name.isidentifier() and name not in RESERVED else "metric", given, fraction=True)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores 1 where the largest output is the target's class, else 0 (also where an output is not finite).

    Args:
        outputs: `[B, K]` class scores.
        targets: `[B]` integer classes in [0, K).

    Returns:
        `[B]` float32.

    Raises:
        ValueError: if the shapes do not fit or a class lies outside the outputs.
    """
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or targets.is_floating_point():
        raise ValueError(
            "top1 needs outputs [B, K] and integer targets [B], but got outputs "
            f"{list(outputs.shape)} and {targets.dtype} targets {list(targets.shape)}: "
            "give the task a metric of its own"
        )
    check_classes(targets, outputs.shape[1])
    finite = outputs.isfinite().all(dim=1)
    return ((outputs.argmax(dim=1) == targets) & finite).to(torch.float32)


def check_classes(targets: Tensor, classes: int) -> None:
    """Refuses integer targets `[N]` outside [0, classes), naming the first of them."""
    outside = targets[(targets < 0) | (targets >= classes)]
    if len(outside):
        raise ValueError(
            f"0 <= class < {classes} must hold for a network with {classes} outputs, but got "
            f"class={int(outside[0])}: correct the targets, or use a network with more outputs"
        )


def token_losses(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token in nats, `[B, T]`, and which of them count.

    Args:
        outputs: `[B, T, K]` scores of the words.
        targets: `[B, T]` integer words; -100 where nothing is asked.
    """
    losses = F.cross_entropy(outputs.float().flatten(0, 1), targets.long().flatten(), reduction="none")
    finite = losses.nan_to_num(nan=MAX_TOKEN_LOSS).clamp(max=MAX_TOKEN_LOSS)
    return finite.view(targets.shape), targets != IGNORED


def right_tokens(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """1 for every token whose largest output is the target's class, else 0, `[B, T]`, and which of them count.

    Args:
        outputs: `[B, T, K]` scores of the classes.
        targets: `[B, T]` integer classes; -100 where nothing is asked.
    """
    return (outputs.argmax(dim=-1) == targets).float(), targets != IGNORED


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared difference of every element, of the shape of the outputs `[B, ...]`."""
    return (outputs.float() - targets.reshape(outputs.shape).float()).square()


def decibels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every sample, `[B]` in dB, of values in [0, 1]: -10 log10(mean squared error)."""
    errors = squared_errors(outputs, targets).flatten(1).mean(dim=1)
    worst = torch.finfo(torch.float32).max
    return -10 * errors.nan_to_num(nan=worst, posinf=worst).clamp(min=MIN_SQUARED_ERROR).log10()


def rank_correlation(outputs: Tensor, targets: Tensor) -> float:
    """Spearman's rank correlation of outputs `[N]` or `[N, 1]` with targets; 0 where either is constant or NaN."""
    from scipy.stats import rankdata

    ranks = [rankdata(values.flatten().numpy()) for values in (outputs, targets.reshape(outputs.shape))]
    if any(np.isnan(one).any() or np.ptp(one) == 0 for one in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def mean_f1(outputs: Tensor, targets: Tensor) -> float:
    """Mean over the classes of F1 = 2 TP / (2 TP + FP + FN); classes that neither occur nor are named are left out.

    Args:
        outputs: `[N, K]` class scores.
        targets: `[N]` integer classes.
    """
    classes = outputs.shape[1]
    pairs = targets.long() * classes + outputs.argmax(dim=1)
    table = torch.bincount(pairs, minlength=classes**2).view(classes, classes).double()
    both = table.sum(dim=0) + table.sum(dim=1)
    return float((2 * table.diagonal()[both > 0] / both[both > 0]).mean())


accuracy = Metric(
    ACCURACY.name,
    top1,
    higher_is_better=ACCURACY.higher_is_better,
    unit=ACCURACY.unit,
    fraction=ACCURACY.fraction,
)
"""Share of samples whose largest output is the target's class: what a task without a metric is judged by."""
token_accuracy = Metric("token accuracy", right_tokens, per="element", unit="%", fraction=True)
"""Share of all tokens of all samples whose largest output is the target's class."""
perplexity = Metric("perplexity", token_losses, per="element", transform=math.exp, higher_is_better=False)
"""exp of the mean cross-entropy over all tokens of all samples."""
mean_squared_error = Metric("mean squared error", squared_errors, per="element", higher_is_better=False)
"""Mean over all elements of all samples."""
psnr = Metric("PSNR", decibels, unit="dB")
"""Peak signal-to-noise ratio, mean over samples, of values in [0, 1]."""
spearman = Metric("Spearman", rank_correlation, per="set")
"""Spearman's rank correlation over the whole set (Spearman 1904), in [-1, 1]."""
macro_f1 = Metric("macro F1", mean_f1, per="set", fraction=True)
"""F1, mean over classes, over the whole set."""
