"""Finders: which sites a network has under the rules, for each kind of decision (`kinds.KINDS`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from envs.space.pattern_sites import PatternSite, interleaved, pattern_sites
from envs.space.rules import Rules
from envs.space.sites import Site, WidthSite
from envs.units.anatomy import Anatomy
from envs.units.units import Fixed
from hw_profiles.shape_rules import ShapeRules


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What a finder looks at.

    Attributes:
        network: The dense network.
        anatomy: Its graph, units and layouts.
        rules: What may be chosen at all.
        patterns: Sparsity patterns that may be chosen beside dense.
        densities: Densities of unstructured sparsity beside dense.
        shapes: Which shapes a device takes in which pattern, None without such rules.
    """

    network: nn.Module
    anatomy: Anatomy
    rules: Rules
    patterns: Sequence[str]
    densities: Sequence[float]
    shapes: ShapeRules | None = None


class Found(NamedTuple):
    """The sites in the order in which they are decided, and what stays, with the reason."""

    sites: Sequence[Site]
    fixed: Sequence[Fixed]


Finder = Callable[[Wanted], Found]
"""Finds the sites; raises ValueError where nothing can be decided."""


def channels(wanted: Wanted) -> Found:
    """Widths of units."""
    return Found(*wanted.rules.sites(wanted.anatomy.units))


def patterns(wanted: Wanted) -> Found:
    """A pattern per layer."""
    return Found(*_patterned(wanted, wanted.patterns))


def unstructured(wanted: Wanted) -> Found:
    """A density per layer."""
    return Found(*_patterned(wanted, [f"unstructured:{density:g}" for density in wanted.densities]))


def mixed(wanted: Wanted) -> Found:
    """Widths of units, and a pattern for each layer."""
    widths: list[WidthSite]
    widths, skipped = wanted.rules.sites(wanted.anatomy.units)
    layers, fixed = _patterned(wanted, wanted.patterns)
    return Found(interleaved(widths, layers, wanted.anatomy.units), [*skipped, *fixed])


def _patterned(wanted: Wanted, named: Sequence[str]) -> tuple[list[PatternSite], list[Fixed]]:
    """Layers that can take some of the patterns.

    Raises:
        ValueError: If there is none.
    """
    anatomy, skip = wanted.anatomy, wanted.rules.skip
    layers, fixed = pattern_sites(wanted.network, anatomy.graph, anatomy.family.dense, named, skip, wanted.shapes)
    if not layers:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in fixed[:3])
        raise ValueError(
            f"patterns need a layer that takes one of {', '.join(named)}, but none does ({reasons}): "
            "choose channels (--choose channels), or another pattern"
        )
    return layers, fixed
