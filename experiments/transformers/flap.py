"""A rival: FLAP (An et al., Fluctuation-based Adaptive Structured Pruning, AAAI 2024), from its description.

The fluctuation of each channel (variance of what is read times the squares of the weights that read it, equation 5) is
standardized over its layer, so that heads and neurons of all layers are ranked together; means of what goes are added
to the bias (equation 4), which the importance `fluctuation` without repair does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from envs.regression.ridge import Sums
from envs.regression.rows import weight_rows
from envs.regression.statistics import energy_of
from envs.units.units import Unit

FloatArray = NDArray[np.float64]


def standardized(network: nn.Module, units: Sequence[Unit], moments: Mapping[str, Sums]) -> dict[str, FloatArray]:
    """[C] fluctuation of each channel less the layer's mean, over its deviation; a head's is the mean of its columns.

    Args:
        network: The dense network.
        units: Heads and neurons; each has one linear layer that reads them.
        moments: Of what these layers read.
    """
    found = {}
    for unit in units:
        reader = unit.role("consumer")[0]
        sums = moments[reader.module]
        variance = (energy_of(sums) - (sums.x.double() / sums.count).square()).clamp_min(0)[0]
        squares = weight_rows(network.get_submodule(reader.module)).double().square().sum(dim=2)[0]
        scores = (variance * squares)[torch.tensor(reader.positions)].mean(dim=1).numpy()
        found[unit.name] = (scores - scores.mean()) / scores.std()
    return found


def within(scores: Mapping[str, FloatArray], costs: Mapping[str, float], budget: float) -> dict[str, list[int]]:
    """Channels that stay of each unit: the lowest scores go, wherever they are, until the rest fits; one stays of each.

    Args:
        scores: [C] of each unit.
        costs: Multiply-accumulates of one channel of each unit.
        budget: What all channels together may cost.
    """
    order = sorted((float(value), name, k) for name, one in scores.items() for k, value in enumerate(one))
    kept = {name: set(range(len(one))) for name, one in scores.items()}
    total = sum(costs[name] * len(one) for name, one in scores.items())
    for _, name, channel in order:
        if total <= budget:
            break
        if len(kept[name]) > 1:
            kept[name].remove(channel)
            total -= costs[name]
    return {name: sorted(channels) for name, channels in kept.items()}
