"""Sites of residual branches: kept whole or removed, and the sites that then no longer matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from envs.space.pattern_sites import PatternSite
from envs.space.sites import Choice, Decisions, Site, WidthsDraft, layer_named
from envs.units.branches.trial import VerifiedBranch
from envs.units.layout import LayoutFamily
from envs.units.units import Fixed, Unit
from hw_profiles.layers import IntArray, LayerShape, Layout

REMOVED, KEPT = 0, 1
"""Values of a branch's site."""
REMOVING = 0.2
"""Actions below this remove a branch: few, or random policies would take half of a network's blocks away."""


@dataclass(frozen=True, kw_only=True)
class BranchSite(Site):
    """Whether a residual branch stays; actions in [0, 0.2) remove it.

    Attributes:
        layer: Its last layer with a weight.
        weighted: All of them.
        rows: The layout's operators inside of it.
        row: The addition's.
        extra_params: Parameters that change with it beside those of operators and of the constant.
        inner: Names of the sites inside of it, which do not matter once it is gone.
        precedence: See `Site`: widths are lowered before branches go.
    """

    layer: str
    weighted: tuple[str, ...]
    rows: tuple[int, ...]
    row: int
    extra_params: int
    inner: tuple[str, ...] = ()
    precedence: ClassVar[int] = 2
    scaled: ClassVar[bool] = False

    @classmethod
    def of(cls, one: VerifiedBranch, inner: Sequence[str]) -> BranchSite:
        """The site of a branch, given the names of the sites inside of it."""
        return cls(
            name=one.name,
            choices=(Choice(REMOVED, REMOVING / 2, "removed"), Choice(KEPT, (1 + REMOVING) / 2, "kept")),
            layer=one.branch.layer,
            weighted=one.found.layers,
            rows=one.found.rows,
            row=one.found.row,
            extra_params=one.extra_params,
            inner=tuple(inner),
        )

    @property
    def size(self) -> int:
        """It is there."""
        return KEPT

    def action(self, value: int) -> float:
        """The middle of the choice's part of [0, 1]."""
        return self.choice(int(value)).ratio

    def nearest(self, ratio: float, among: IntArray) -> int:
        """Removed below `REMOVING`, else kept; whatever is left where that is not allowed."""
        wanted = int(ratio >= REMOVING) if len(self.choices) > 1 else 0
        return wanted if wanted in among else int(among[0])

    def decide(self, value: int, decisions: Decisions) -> None:
        """The branch is gone, or nothing is said."""
        if int(value) == REMOVED:
            decisions.removed[self.name] = None

    def value_in(self, decisions: Decisions) -> int:
        """Kept where nothing is said."""
        return REMOVED if self.name in decisions.removed else KEPT

    def moot(self, value: int) -> tuple[str, ...]:
        """What lies inside of a branch that is gone."""
        return self.inner if int(value) == REMOVED else ()

    def write(self, values: IntArray, draft: WidthsDraft) -> None:
        """Takes its operators out."""
        draft.remove(self.rows, self.row, self.extra_params, values == REMOVED)

    def layers(self, family: LayoutFamily) -> list[int]:
        """Its operators that multiply."""
        layers = family.dense.layers
        return [row for row in self.rows if layers[row].has_weight or layers[row].products]

    def describing_layer(self, dense: Layout) -> LayerShape:
        """Its last layer with a weight."""
        return layer_named(dense, self.layer)


def with_branches(
    sites: Sequence[Site], branches: Sequence[VerifiedBranch], units: Sequence[Unit], dense: Layout, skip: Sequence[str]
) -> tuple[list[Site], list[Fixed]]:
    """The sites with one more for each branch, in front of those inside of it, and branches left out with the reason.

    Args:
        sites: Sites of units and patterns, in order.
        branches: Branches that can go, in the order of their additions.
        units: The network's units.
        dense: Its layout.
        skip: Patterns (as in a shell) of layer names that stay as they are.
    """
    fixed, chosen = [], []
    for one in branches:
        hit = next((text for text in skip if any(fnmatchcase(name, text) for name in one.found.layers)), None)
        if hit is None:
            chosen.append(one)
        else:
            fixed.append(Fixed(one.name, f"skipped by the pattern {hit!r}"))
    ordered = list(sites)
    rows = {layer.name: row for row, layer in enumerate(dense.layers)}
    homes = _homes(sites, units)
    for one in sorted(chosen, key=lambda one: (one.found.rows[0], -len(one.found.rows))):
        inside = {dense.layers[row].name for row in one.found.rows}
        inner = [site.name for site in sites if homes.get(site.name) and homes[site.name] <= inside]
        inner += [other.name for other in chosen if one.around(other)]
        place = _place(ordered, one, inner, homes, rows)
        ordered.insert(place, BranchSite.of(one, inner))
    return ordered, fixed


def _homes(sites: Sequence[Site], units: Sequence[Unit]) -> dict[str, set[str]]:
    """Name of a site -> all layers whose weights it changes."""
    homes = {site.name: {site.layer} for site in sites if isinstance(site, PatternSite)}
    return homes | {unit.name: {member.module for member in unit.members} for unit in units}


def _place(
    ordered: Sequence[Site],
    one: VerifiedBranch,
    inner: Sequence[str],
    homes: Mapping[str, set[str]],
    rows: Mapping[str, int],
) -> int:
    """In front of the first site inside of a branch; without one, of the first that begins where it does, or later."""
    start = one.found.rows[0]

    def follows(site: Site) -> bool:
        if site.name in inner:
            return True
        if isinstance(site, BranchSite):
            return site.rows[0] >= start and one.name not in site.inner
        return min((rows[name] for name in homes[site.name] if name in rows), default=0) >= start

    return next((place for place, site in enumerate(ordered) if follows(site)), len(ordered))
