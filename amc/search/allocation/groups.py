"""Sites that an allocation decides together: a unit's width and the patterns of layers that it makes narrower.

Damages add up over sites, but costs multiply: half of the weights of half of the channels. Options over both are
listed whole, so that a knapsack sees their true cost, and never a width that a pattern does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from envs.space.constraint import Costing
from envs.space.pattern_sites import PatternSite
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]

MAX_OPTIONS = 1024
"""Options of one group at most; patterns beyond are decided alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sites with all that they can be.

    Attributes:
        steps: [n] indices of the sites, ascending.
        options: [O, n] kept channels and ranks of patterns.
        damage: [O] of each option.
    """

    steps: IntArray
    options: IntArray
    damage: FloatArray

    def put(self, kept: IntArray) -> IntArray:
        """[O, S] an assignment with each option in its place."""
        rows = np.repeat(kept[None, :], len(self.options), axis=0)
        rows[:, self.steps] = self.options
        return rows

    def index(self, kept: IntArray) -> int:
        """Which option an [S] assignment has."""
        return int(np.flatnonzero((self.options == kept[self.steps]).all(axis=1))[0])


def alone(costing: Costing, damages: Sequence[FloatArray]) -> list[Group]:
    """Every site by itself, with the damage of each of its choices."""
    return [
        Group(steps=np.asarray([step]), options=site.values()[:, None], damage=damage)
        for step, (site, damage) in enumerate(zip(costing.sites, damages, strict=True))
    ]


def together(costing: Costing, damages: Sequence[FloatArray]) -> list[Group]:
    """Every pattern with the unit that touches its layer and the fewest others; all else by itself.

    Args:
        costing: The sites.
        damages: Damage of each choice per site.
    """
    sites, layers = costing.sites, costing.family.dense.layers
    touched = {
        step: {layers[row].name for row in site.layers(costing.family)}
        for step, site in enumerate(sites)
        if not isinstance(site, PatternSite)
    }
    members = {step: [step] for step in range(len(sites))}
    patterned = {step: site.layer for step, site in enumerate(sites) if isinstance(site, PatternSite)}
    for step, layer in patterned.items():
        units = sorted((unit for unit in touched if layer in touched[unit]), key=lambda unit: len(touched[unit]))
        room = (u for u in units if prod(len(sites[k].choices) for k in (*members[u], step)) <= MAX_OPTIONS)
        if (home := next(room, None)) is not None:
            members[home].append(members.pop(step)[0])
    groups = []
    for steps in map(sorted, members.values()):
        outside = {name for unit, names in touched.items() if unit not in steps for name in names}
        inside = {patterned[step] for step in steps if step in patterned} - outside
        groups.append(_group(costing, damages, steps, inside))
    return groups


def _group(costing: Costing, damages: Sequence[FloatArray], steps: list[int], inside: set[str]) -> Group:
    """All combinations, without those in which a layer that only these sites touch does not take its pattern."""
    kept = np.meshgrid(*(costing.sites[step].values() for step in steps), indexing="ij")
    losses = np.meshgrid(*(damages[step] for step in steps), indexing="ij")
    group = Group(
        steps=np.asarray(steps),
        options=np.stack(kept, axis=-1).reshape(-1, len(steps)),
        damage=np.asarray(sum(losses)).reshape(-1),
    )
    if not inside:
        return group
    rows = [row for row, layer in enumerate(costing.family.dense.layers) if layer.name in inside]
    legal = ~costing.unfit(group.put(costing.heaviest()))[:, rows].any(axis=1)
    return Group(steps=group.steps, options=group.options[legal], damage=group.damage[legal])
