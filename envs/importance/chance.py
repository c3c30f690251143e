"""Chance: what a score is worth that knows nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.importance.importance import Evidence, Importance
from envs.units.units import Unit


class Chance(Importance):
    """Seeded random scores."""

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        key = sum((index + 1) * ord(letter) for index, letter in enumerate(unit.name))
        generator = torch.Generator().manual_seed(evidence.seed * 1_000_003 + key)
        return torch.rand(unit.channels, generator=generator, dtype=torch.float64, device="cpu").to(evidence.device)
