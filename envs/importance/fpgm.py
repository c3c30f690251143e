"""Filter pruning via geometric median: filters that the others replace best go first.

Deviation: all producers of a unit count, because it can have several.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.importance.consumers import relative
from envs.importance.importance import Evidence, Importance
from envs.network.kinds import TRANSPOSED
from envs.regression.rows import weight_of
from envs.units.units import Unit


class GeometricMedian(Importance):
    """Sum of distances of a channel's filter to all others, over the producers.

    The filter nearest to the geometric median is the one that the others replace best (He et al., Filter Pruning
    via Geometric Median, CVPR 2019, equation 8).
    """

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
        for member in (*unit.role("producer"), *unit.role("factor")):
            filters = _filters(evidence.network.get_submodule(member.module))
            own = filters[torch.tensor(member.positions, device=filters.device)].flatten(1)
            total = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
            scores += relative(total)
        return scores


def _filters(module: nn.Module) -> Tensor:
    """[O, n] float64 what each output of a convolution or linear layer is computed with."""
    weight = weight_of(module).double()
    if isinstance(module, TRANSPOSED):  # [I, O / groups, ...], the inputs of a group one after the other
        weight = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)
