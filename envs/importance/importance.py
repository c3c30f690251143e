"""What an importance is, what it may look at, and the order of channels that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from envs.regression.factors import Factors
from envs.regression.ridge import Sums
from envs.units.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What importance may look at.

    Attributes:
        network: The dense network.
        moments: Input moments of consumers, by layer name (empty unless the importance needs them).
        output_scales: [O] scale that the normalization behind a layer gives each of its outputs.
        factors: Moments of units whose channels are multiplied and summed (queries and keys), by unit name.
        sensitivities: [C] what the output suffers from each channel, by unit (empty unless the importance needs them).
        seed: Seed of random scores.
    """

    network: nn.Module
    moments: Mapping[str, Sums]
    output_scales: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, Factors] = field(default_factory=dict)
    sensitivities: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where the network is, and so its scores."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))


class Importance(Protocol):
    """Scores the channels of a unit.

    Attributes:
        reads_moments: Whether it reads `Evidence.moments`.
        reads_gradients: Whether it reads `Evidence.sensitivities`.
        mean_shift: Whether it takes for granted that removed channels leave their mean in the bias, even without
            repair.
    """

    reads_moments: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False
    mean_shift: ClassVar[bool] = False

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] finite scores of the unit's channels, more important ones higher.

        Args:
            unit: C channels that are kept or dropped one by one (or granule by granule).
            evidence: What may be looked at.

        Raises:
            ValueError: If the unit has nothing that could be scored.
        """
        ...


Score: TypeAlias = Callable[[Unit, Evidence], Tensor]
"""A function that scores, and declares nothing."""


def channel_order(unit: Unit, scores: Tensor) -> list[int]:
    """Channels by descending score, whole granules at a time (a granule scores the sum of its channels); where
    equally many stay of several shares, the best of each, then the second of each, and so on.
    """
    scores = scores.cpu()  # one transfer, and the same order among equals on every device
    totals = torch.stack([scores[list(granule)].double().sum() for granule in unit.granules])
    ranked = torch.sort(totals, descending=True, stable=True).indices.tolist()
    return unit.in_steps(unit.granules[granule] for granule in ranked)
