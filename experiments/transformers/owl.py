"""A rival allocation: OWL (Yin et al., Outlier Weighed Layerwise Sparsity, ICML 2024), from its description.

A layer with a larger share of outliers, |W| times root mean square of the input above M times the layer's mean, stays
denser: densities differ by at most LAMBDA from their mean, which the budget says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from envs.regression.ridge import Sums
from envs.regression.rows import weight_rows
from envs.regression.statistics import energy_of

OUTLIER, LAMBDA = 5.0, 0.08
"""M and lambda of the paper's main results."""


def densities(
    network: nn.Module, layers: Sequence[str], moments: Mapping[str, Sums], density: float
) -> NDArray[np.float64]:
    """[L] density of each layer, weighed by its weights of mean `density`.

    Args:
        network: The dense network.
        layers: Names of the linear layers.
        moments: Of what they read.
        density: Share of all weights that stays.
    """
    shares, sizes = np.empty(len(layers)), np.empty(len(layers))
    for place, name in enumerate(layers):
        weights = weight_rows(network.get_submodule(name)).double()
        scores = weights.abs() * energy_of(moments[name]).sqrt()[:, :, None]
        shares[place] = float((scores > OUTLIER * scores.mean()).double().mean())
        sizes[place] = weights.numel()
    spread = max(float(np.ptp(shares)), 1e-12)
    scaled = (shares - shares.min()) / spread * 2 * LAMBDA
    return np.asarray(density + scaled - np.average(scaled, weights=sizes))
