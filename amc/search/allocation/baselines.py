"""The field's allocations of sparsity over layers, without search: uniform, ERK, LAMP, global magnitude, one pattern.

Each says how dense every layer is at a level between 0 and 1; the highest level within every budget is taken, each
layer with its choice of nearest density. Units stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.regression.rows import weight_of
from envs.space.branch_sites import BranchSite
from envs.space.constraint import Constraint, InfeasibleBudget
from envs.space.pattern_sites import PatternSite
from envs.space.sites import Site
from hw_profiles.layers import IntArray
from hw_profiles.patterns import parse_pattern

FloatArray = NDArray[np.float64]
Densities = Callable[[float], FloatArray]
"""Level in (0, 1] -> [L] density of every layer; none grows when the level falls."""
LEVELS = 1000


def uniform(weights: Sequence[Tensor]) -> Densities:
    """Every layer as dense as the others."""
    return lambda level: np.full(len(weights), level)


def erk(weights: Sequence[Tensor]) -> Densities:
    """Erdos-Renyi-Kernel: density as sum of the axes / their product (Evci et al., RigL, ICML 2020)."""
    shares = np.asarray([sum(weight.shape) / prod(weight.shape) for weight in weights])
    return lambda level: np.minimum(1.0, level * shares / shares.min())


def global_magnitude(weights: Sequence[Tensor]) -> Densities:
    """One threshold on |W| for all layers (Han et al., NeurIPS 2015)."""
    return _by_scores([weight.abs().flatten() for weight in weights])


def lamp(weights: Sequence[Tensor]) -> Densities:
    """One threshold on W^2 over the sum of all W^2 of the layer that are no smaller (Lee et al., LAMP, ICLR 2021)."""
    scores = []
    for weight in weights:
        ordered = torch.sort(weight.double().square().flatten()).values
        scores.append(ordered / ordered.flip(0).cumsum(0).flip(0).clamp_min(1e-300))
    return _by_scores(scores)


ALLOCATIONS: dict[str, Callable[[Sequence[Tensor]], Densities]] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "magnitude": global_magnitude,
}


def allocate(constraint: Constraint, network: nn.Module, name: str) -> IntArray:
    """[S] choices of an allocation by name, as dense as the budgets let it be.

    Raises:
        InfeasibleBudget: If it is above a budget even at its sparsest.
    """
    sites = constraint.costing.sites
    layers = [site for site in sites if isinstance(site, PatternSite)]
    found = ALLOCATIONS[name]([weight_of(network.get_submodule(site.layer)) for site in layers])
    levels = np.asarray([found(float(level)) for level in np.linspace(1, 1 / LEVELS, LEVELS)])  # [LEVELS, L]
    columns = dict(zip((site.name for site in layers), levels.T, strict=True))
    kept = np.stack([_nearest(s, columns.get(s.name)) for s in sites], axis=1)
    legal = np.flatnonzero(constraint.keeps(kept))
    if len(legal):
        return np.asarray(kept[legal[0]])
    raise InfeasibleBudget(
        f"allocation {name!r} must keep every budget at some density, but at its sparsest costs "
        f"{constraint.costs(kept[-1])} of {dict(constraint.limits())}: allow sparser choices, or raise the budget"
    )


def wherever_legal(sites: Sequence[Site], pattern: str) -> IntArray:
    """[S] the pattern in every layer that may choose it, all else dense (uniform N:M)."""
    ranks = [next((c.value for c in site.choices if c.label == pattern), site.size) for site in sites]
    return np.asarray(ranks, dtype=np.int64)


def narrowed(constraint: Constraint, pattern: str) -> Constraint:
    """The same budgets where every layer that may choose the pattern must have it, at widths that let it.

    Raises:
        InfeasibleBudget: If the budgets cannot be kept so.
    """
    costing = constraint.costing
    group = parse_pattern(pattern).group
    sites = []
    for site in costing.sites:
        if isinstance(site, PatternSite):
            wanted = [choice for choice in site.choices if choice.label == pattern]
        elif isinstance(site, BranchSite):
            wanted = []
        else:
            wanted = [choice for choice in site.choices if choice.value % max(group, 1) == 0]
        choices = wanted or site.choices
        sites.append(replace(site, choices=tuple(choices)))
    return Constraint.create(replace(costing, sites=tuple(sites)), constraint.budgets)


def _nearest(site: Site, densities: FloatArray | None) -> IntArray:
    """[K] ranks of the choices nearest to [K] densities; a unit stays whole."""
    if densities is None or not isinstance(site, PatternSite):
        return np.full(LEVELS, site.size, dtype=np.int64)
    own = np.asarray([parse_pattern(pattern).density for pattern in site.patterns()])
    return np.asarray(site.values()[np.abs(own[None, :] - densities[:, None]).argmin(axis=1)])


def _by_scores(scores: Sequence[Tensor]) -> Densities:
    """Layers keep what scores above one threshold; the level is the share kept of all weights."""
    ordered = [np.sort(score.double().numpy()) for score in scores]
    everything = np.sort(np.concatenate(ordered))

    def densities(level: float) -> FloatArray:
        threshold = everything[min(len(everything) - 1, round((1 - level) * len(everything)))]
        return np.asarray([1 - np.searchsorted(own, threshold) / len(own) for own in ordered])

    return densities
