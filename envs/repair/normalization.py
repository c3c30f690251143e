"""Batch normalization around a layer: what it multiplies each output by, and its statistics, re-estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from envs.network.graph import BATCH_NORMS


def output_scales(network: nn.Module, folds: Mapping[str, str]) -> dict[str, Tensor]:
    """[O] |scale| that the batch normalization alone reading a layer gives each of its outputs, by layer."""
    scales: dict[str, Tensor] = {}
    for name, reader in folds.items():
        norm = network.get_submodule(reader)
        if isinstance(norm, BATCH_NORMS) and norm.running_var is not None:
            scale = (norm.running_var + norm.eps).rsqrt()
            scales[name] = scale if norm.weight is None else scale * norm.weight.detach().abs()
    return scales


def reestimate_batch_norm(network: nn.Module, chunks: Sequence[Tensor], images: int) -> int:
    """Replaces batch-norm statistics by those of calibration images, in place; returns image-forwards.

    Args:
        network: A network whose buffers are its own or shared; new ones are assigned.
        chunks: Calibration inputs.
        images: Images to use at most.
    """
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        assert norm.running_mean is not None
        norm.running_mean, norm.running_var = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_mean)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=norm.running_mean.device)
        norm.momentum, norm.training = None, True  # cumulative average
    used = 0
    with torch.no_grad():
        for chunk in chunks:
            if used >= images:
                break
            network(chunk[: images - used])
            used += min(len(chunk), images - used)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.training = momentum, False
    return used
