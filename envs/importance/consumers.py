"""What the consumers of a unit read of each channel: shared by the scores that look at them.

Every consumer counts relative to its own total, because a unit can have several.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.importance.factors import factor_norm
from envs.importance.importance import Evidence
from envs.network.kinds import TRANSPOSED
from envs.regression.rows import can_gather, kernel_size, weight_of, weight_rows
from envs.units.units import Member, Unit


def consumer_norm(unit: Unit, evidence: Evidence, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[C] sum of `norm` of each weight over the weights that read a channel (of factors: that write it)."""
    scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
    for member in unit.role("consumer"):
        module = evidence.network.get_submodule(member.module)
        if can_gather(module):
            own = per_channel(member, norm(weight_rows(module).double()).sum(dim=2), kernel_size(module))
        else:  # transposed and 3-D convolutions
            weight = norm(weight_of(module).double())
            inputs = weight if isinstance(module, TRANSPOSED) else weight.transpose(0, 1)
            own = torch.stack([inputs[[p % len(inputs) for p in row]].sum() for row in member.positions])
        scores += relative(own)
    return scores + factor_norm(unit, evidence, norm)


def scaled_weights(member: Member, evidence: Evidence) -> Tensor:
    """[G, n, o] float64 weights of a consumer, times what the normalization behind it makes of its outputs."""
    weights = weight_rows(evidence.network.get_submodule(member.module)).double()
    even = torch.ones(weights.shape[0] * weights.shape[2], device=weights.device)
    scales = evidence.output_scales.get(member.module, even)
    return weights * scales.double().reshape(len(weights), 1, -1)


def per_channel(member: Member, values: Tensor, kernel: int) -> Tensor:
    """[C] sum of [G, n] values (one per column of `weight_rows`) over the columns that read a channel."""
    places = torch.tensor(member.positions, device=values.device)
    return values.reshape(-1, kernel).sum(dim=1)[places].sum(dim=1)


def relative(own: Tensor) -> Tensor:
    """[C] scores of one member as shares of its total."""
    return own / own.sum().clamp_min(1e-30)
