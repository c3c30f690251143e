"""Magnitude: norms of the weights that read a channel.

Deviation: He et al. (AMC, ECCV 2018) score input channels of one layer by |W|; here all consumers of a unit count, each
relative to its own total, because a unit can have several.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.importance.consumers import consumer_norm
from envs.importance.importance import Evidence, Importance
from envs.units.units import Unit


class L1(Importance):
    """Sum of |W| over the consumers' weights that read a channel (AMC's criterion)."""

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        return consumer_norm(unit, evidence, torch.abs)


class L2(Importance):
    """Sum of W^2 over the consumers' weights that read a channel."""

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        return consumer_norm(unit, evidence, torch.square)
