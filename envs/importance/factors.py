"""Scores of channels over which queries and keys are multiplied and summed: no weight reads them, another factor does.

Shared by the scores that look at what reads a channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.importance.importance import Evidence
from envs.regression.rows import weight_rows
from envs.units.units import Unit


def factor_norm(unit: Unit, evidence: Evidence, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[C] product of both factors' sums of `norm` of each weight that writes a channel; zeros in other units."""
    members = unit.role("factor")
    if not members:
        return torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
    modules = [evidence.network.get_submodule(member.module) for member in members]
    return torch.stack([norm(weight_rows(module).double()[0]).sum(dim=0) for module in modules]).prod(dim=0)


def fluctuating_products(unit: Unit, evidence: Evidence) -> Tensor | None:
    """[C] mean square of queries times variance of keys, per channel; None where moments are not known."""
    factors = evidence.factors.get(unit.name)
    if factors is None:
        return None
    queries = factors.weights[0].square().sum(dim=0)
    return queries * factors.gram()[0].diagonal().clamp_min(0)
