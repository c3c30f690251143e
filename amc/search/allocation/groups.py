"""Sites that an allocation decides together: a unit's width and the patterns of layers that it makes narrower, and a
residual branch with all that is decided inside of it.

Damages add up over sites, but costs multiply: half of the weights of half of the channels. Options over both are
listed whole, so that a knapsack sees their true cost, and never a width that a pattern does not fit. A branch that is
gone is one option, whatever its widths would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from envs.space.branch_sites import REMOVED, BranchSite
from envs.space.constraint import Costing
from envs.space.pattern_sites import PatternSite
from envs.space.sites import Site
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
    blocks = branch_blocks(sites)
    blocked = {step for block in blocks for step in block}
    touched = {
        step: {layers[row].name for row in site.layers(costing.family)}
        for step, site in enumerate(sites)
        if not isinstance(site, (PatternSite, BranchSite))
    }
    members = {step: [step] for step in range(len(sites)) if step not in blocked}
    patterned = {step: site.layer for step, site in enumerate(sites) if isinstance(site, PatternSite)}
    for step in [step for step in patterned if step in members]:
        units = [unit for unit in touched if unit in members and patterned[step] in touched[unit]]
        units.sort(key=lambda unit: len(touched[unit]))
        room = (u for u in units if prod(len(sites[k].choices) for k in (*members[u], step)) <= MAX_OPTIONS)
        if (home := next(room, None)) is not None:
            members[home].append(members.pop(step)[0])
    groups = []
    for steps in (*map(sorted, members.values()), *blocks):
        outside = {name for unit, names in touched.items() if unit not in steps for name in names}
        inside = {patterned[step] for step in steps if step in patterned} - outside
        whole = _of_branch(costing, damages, steps[0]) if steps in blocks else _of_all(costing, damages, steps)
        groups.append(_legal(costing, whole, inside))
    return groups


def branch_blocks(sites: Sequence[Site]) -> list[list[int]]:
    """[n] steps of each branch that is to be decided and lies in no other one, and of all sites inside of it."""
    steps = {site.name: step for step, site in enumerate(sites)}
    open_branches = [site for site in sites if isinstance(site, BranchSite) and len(site.choices) > 1]
    nested = {name for site in open_branches for name in site.inner}
    return [
        [steps[site.name], *sorted(steps[name] for name in site.inner if name in steps)]
        for site in open_branches
        if site.name not in nested
    ]


def thinned(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites, with fewer choices inside of branches that could otherwise be too much together; the ends stay."""
    thin = list(sites)
    for _, *inner in branch_blocks(sites):
        while prod(len(thin[step].choices) for step in inner) > MAX_OPTIONS:
            step = max(inner, key=lambda step: len(thin[step].choices))
            picks = np.linspace(0, len(thin[step].choices) - 1, max(2, 3 * len(thin[step].choices) // 4))
            choices = tuple(thin[step].choices[index] for index in np.unique(picks.round().astype(int)))
            if len(choices) == len(thin[step].choices):
                break  # so many sites that two choices of each are too many: patterns are left alone then
            thin[step] = replace(thin[step], choices=choices)
    return tuple(thin)


def _of_all(costing: Costing, damages: Sequence[FloatArray], steps: Sequence[int]) -> Group:
    """All combinations of some sites."""
    kept = np.meshgrid(*(costing.sites[step].values() for step in steps), indexing="ij")
    losses = np.meshgrid(*(damages[step] for step in steps), indexing="ij")
    return Group(
        steps=np.asarray(steps),
        options=np.stack(kept, axis=-1).reshape(-1, len(steps)),
        damage=np.asarray(sum(losses)).reshape(-1),
    )


def _of_branch(costing: Costing, damages: Sequence[FloatArray], step: int) -> Group:
    """A branch that is gone, with all that is decided inside of it as it is, and all combinations with it kept."""
    sites = costing.sites
    branch = sites[step]
    if not isinstance(branch, BranchSite):
        return _of_all(costing, damages, [step])
    steps = {site.name: place for place, site in enumerate(sites)}
    inner = [name for name in branch.inner if name in steps]
    nested = {deep for name in inner for deep in getattr(sites[steps[name]], "inner", ())}
    parts = [_of_branch(costing, damages, steps[name]) for name in inner if name not in nested]
    values, own = branch.values(), damages[step]
    columns = np.concatenate([np.asarray([step]), *(part.steps for part in parts)])
    rows, losses = [], []
    for value, damage in zip(values, own, strict=True):
        if value == REMOVED:
            rows.append(np.concatenate([[value], costing.heaviest()[columns[1:]]])[None, :])
            losses.append(np.asarray([damage]))
        else:
            options, damage_inside = _product(parts)
            rows.append(np.column_stack([np.full(len(options), value), options]))
            losses.append(damage + damage_inside)
    order = np.argsort(columns)
    return Group(steps=columns[order], options=np.concatenate(rows)[:, order], damage=np.concatenate(losses))


def _product(parts: Sequence[Group]) -> tuple[IntArray, FloatArray]:
    """[O, n] all combinations of the options of some groups, and their [O] damages."""
    picks = np.meshgrid(*(np.arange(len(part.options)) for part in parts), indexing="ij")
    chosen = [pick.reshape(-1) for pick in picks]
    if not parts:
        return np.zeros((1, 0), dtype=np.int64), np.zeros(1)
    options = [part.options[index] for part, index in zip(parts, chosen, strict=True)]
    losses = [part.damage[index] for part, index in zip(parts, chosen, strict=True)]
    return np.concatenate(options, axis=1), np.asarray(np.sum(losses, axis=0))


def _legal(costing: Costing, group: Group, inside: set[str]) -> Group:
    """A group without the combinations in which a layer that only its sites touch does not take its pattern."""
    if not inside:
        return group
    rows = [row for row, layer in enumerate(costing.family.dense.layers) if layer.name in inside]
    legal = ~costing.unfit(group.put(costing.heaviest()))[:, rows].any(axis=1)
    return Group(steps=group.steps, options=group.options[legal], damage=group.damage[legal])
