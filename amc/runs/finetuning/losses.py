"""What training minimizes: the task's loss, and the distance from the dense network's outputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from amc.runs.finetuning.settings import FinetuneConfig
from amc.tasks.task import Loss


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for class indices, mean squared error for numbers of the outputs' shape.

    Args:
        outputs: [B, K, ...] class scores or [B, ...] numbers.
        targets: [B, ...].

    Returns:
        A scalar.

    Raises:
        ValueError: If the targets are neither.
    """
    if _classes(outputs, targets):
        return F.cross_entropy(outputs, targets)
    if outputs.shape == targets.shape:
        return F.mse_loss(outputs, targets.to(outputs.dtype))
    raise ValueError(
        f"training needs a loss, but for outputs {list(outputs.shape)} and targets {list(targets.shape)} there is no "
        "obvious one: give the task loss=function(outputs, targets)"
    )


def distance(outputs: Tensor, dense: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """How far outputs are from the dense network's, a scalar.

    Class scores: T^2 x KL divergence at temperature T (Hinton et al., Distilling the Knowledge in a Neural Network,
    2015, section 2.1). Other outputs: mean squared difference.
    """
    if not _classes(outputs, targets):
        return F.mse_loss(outputs, dense)
    wanted = F.log_softmax(dense / temperature, dim=1)
    got = F.log_softmax(outputs / temperature, dim=1)
    positions = outputs.numel() // outputs.shape[1]
    return F.kl_div(got, wanted, reduction="sum", log_target=True) / positions * temperature**2


def total(config: FinetuneConfig, loss: Loss, outputs: Tensor, targets: Tensor, dense: Tensor | None) -> Tensor:
    """The weighted sum of both; `dense` [B, ...] are the dense network's outputs, None without distillation."""
    own = loss(outputs, targets)
    if dense is None:
        return own
    share = config.distillation
    return (1 - share) * own + share * distance(outputs, dense.to(outputs.dtype), targets, config.temperature)


def _classes(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets are class indices of these scores."""
    return outputs.ndim >= 2 and targets.shape == (len(outputs), *outputs.shape[2:]) and not targets.is_floating_point()
