"""Network slimming: channels whose batch normalization scales them least go first."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.importance.importance import Evidence, Importance
from envs.network.kinds import BATCH_NORMS
from envs.units.units import Unit


class BatchNormScale(Importance):
    """Sum of |gamma| of the unit's batch normalizations (Liu et al., Network Slimming, ICCV 2017)."""

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64.

        Raises:
            ValueError: If the unit has no batch normalization with a scale.
        """
        scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
        found = False
        for member in unit.role("carrier"):
            module = evidence.network.get_submodule(member.module)
            if isinstance(module, BATCH_NORMS) and module.affine:
                found = True
                gamma = module.weight.detach().double().abs()
                scores += torch.stack([gamma[list(row)].sum() for row in member.positions])
        if not found:
            raise ValueError(
                f"importance `bn_scale` needs a batch normalization in every unit, but {unit.name!r} has none: "
                "use obs, l1 or l2, or skip that layer"
            )
        return scores
