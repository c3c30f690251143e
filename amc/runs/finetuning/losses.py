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


class Untrainable(ValueError):
    """What the network returns cannot be trained by; the message has the cure."""


def check_outputs(outputs: object) -> None:
    """Refuses outputs in training mode that no loss, or no gradient, can be had of.

    Raises:
        Untrainable: If they are no tensor, or do not depend on what is trained.
    """
    if not isinstance(outputs, Tensor):
        several = f" of {len(outputs)}" if isinstance(outputs, tuple | list | dict) else ""
        raise Untrainable(
            f"forward must return one tensor in training mode as in evaluation, but in training mode it returns a "
            f"{type(outputs).__name__}{several}: pass a network whose forward returns the same in both, its auxiliary "
            "heads switched off (they are not pruned with the rest)"
        )
    if not outputs.requires_grad:
        raise Untrainable(
            "outputs must carry a gradient to what is trained, but those of this network carry none: take no_grad, "
            "inference_mode and detach out of its forward (around calls that only evaluate they do no harm)"
        )


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
