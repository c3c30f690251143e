"""Optimizer, learning rate and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amc.runs.finetuning.settings import FinetuneConfig


def make_optimizer(config: FinetuneConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; vectors (biases, normalization) do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    momentum = config.momentum
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0)


def learning_rate(config: FinetuneConfig, step: int, steps: int) -> float:
    """Rises linearly, then falls on a half cosine (Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, one period).

    Args:
        config: Highest rate and share of warm-up.
        step: From 0.
        steps: In all.
    """
    warm = int(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of the weights (and of what normalization counts), None without one."""
    if decay == 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
