"""FLAP: channels whose contribution is best replaced by its mean go first.

Deviation: all consumers of a unit count, because it can have several.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from envs.importance.consumers import consumer_norm, per_channel, relative, scaled_weights
from envs.importance.factors import fluctuating_products
from envs.importance.importance import Evidence, Importance
from envs.regression.rows import can_gather, kernel_size
from envs.regression.statistics import energy_of
from envs.units.units import Unit


class Fluctuation(Importance):
    """Variance of what the consumers read times the squares of the weights that read it.

    What remains of a channel's contribution once its mean is in the bias (An et al., FLAP, AAAI 2024, equation 5);
    `Compressor` puts it there, if no repair does. Weights count as the network sees them, behind the layer's
    normalization. Of queries and keys, which are multiplied with each other, it is the mean square of the one times the
    variance of the other. Consumers whose inputs cannot be gathered do not count; with none left it is `L2`.
    """

    reads_moments: ClassVar[bool] = True
    mean_shift: ClassVar[bool] = True

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        products = fluctuating_products(unit, evidence)
        if products is not None:
            return products
        scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
        found = False
        for member in unit.role("consumer"):
            sums = evidence.moments.get(member.module)
            module = evidence.network.get_submodule(member.module)
            if sums is not None and can_gather(module):
                found = True
                variance = (energy_of(sums) - (sums.x.double() / sums.count).square()).clamp_min(0)
                squares = scaled_weights(member, evidence).square().sum(dim=2)  # [G, n]
                scores += relative(per_channel(member, variance * squares, kernel_size(module)))
        return scores if found else consumer_norm(unit, evidence, torch.square)
