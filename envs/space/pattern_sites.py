"""Sites of patterns: which layers may choose between which patterns, why others stay dense, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from envs.network.graph import Graph
from envs.space.patterns import refusal, unfit
from envs.space.sites import Choice, Decisions, Site, WidthsDraft, WidthSite, layer_named
from envs.units.layout import LayoutFamily
from envs.units.units import Fixed, Unit
from hw_profiles.layers import IntArray, LayerShape, Layout
from hw_profiles.patterns import parse_pattern
from hw_profiles.shape_rules import ShapeRules


@dataclass(frozen=True, kw_only=True)
class PatternSite(Site):
    """Which sparsity pattern a layer's weight gets; [0, 1] is cut into equal parts, the sparsest pattern first.

    Attributes:
        layer: Name of the layer.
        count: How many patterns there are, dense included: its rank.
    """

    layer: str
    count: int
    precedence: ClassVar[int] = 1
    shaped: ClassVar[bool] = True

    @classmethod
    def of(cls, layer: str, patterns: Sequence[str]) -> PatternSite:
        """The site of a layer's weight; patterns sparsest first, the last one is dense. A value is a rank from 1."""
        count = len(patterns)
        choices = tuple(Choice(rank, (rank - 0.5) / count, pattern) for rank, pattern in enumerate(patterns, start=1))
        return cls(name=f"{layer}.weight", layer=layer, count=count, choices=choices)

    @property
    def size(self) -> int:
        """The rank of dense."""
        return self.count

    def patterns(self) -> list[str]:
        """The patterns, sparsest first."""
        return [choice.label for choice in self.choices]

    def action(self, value: int) -> float:
        """The middle of the pattern's part of [0, 1]."""
        return (int(value) - 0.5) / self.size

    def decide(self, value: int, decisions: Decisions) -> None:
        """The layer has the pattern."""
        decisions.patterns[self.layer] = self.choice(int(value)).label

    def value_in(self, decisions: Decisions) -> int:
        """Rank of the layer's pattern; dense where nothing is said.

        Raises:
            ValueError: If the pattern is no choice here.
        """
        wanted = decisions.patterns.get(self.layer, "dense")
        if wanted not in self.patterns():
            named = ", ".join(self.patterns())
            raise ValueError(f"the pattern of {self.layer!r} must be one of {named}, but got {wanted!r}")
        return self.choices[self.patterns().index(wanted)].value

    def write(self, values: IntArray, draft: WidthsDraft) -> None:
        """Sets the layer's pattern."""
        codes = np.asarray([parse_pattern(pattern).code for pattern in self.patterns()], dtype=np.int64)
        draft.set_patterns(self.layer, codes[values - self.choices[0].value])

    def layers(self, family: LayoutFamily) -> list[int]:
        """The one layer."""
        return [family.dense.layers.index(layer_named(family.dense, self.layer))]

    def describing_layer(self, dense: Layout) -> LayerShape:
        """The layer itself."""
        return layer_named(dense, self.layer)

    def fitted(self, values: IntArray, unfit: NDArray[np.bool_], rows: dict[str, int]) -> IntArray:
        """Dense where the layer's shape does not take its pattern."""
        if self.choices[-1].label != "dense":
            return values
        return np.where(unfit[:, rows[self.layer]], self.size, values)


def pattern_sites(
    network: nn.Module,
    graph: Graph,
    dense: Layout,
    patterns: Sequence[str],
    skip: Sequence[str] = (),
    shapes: ShapeRules | None = None,
) -> tuple[list[PatternSite], list[Fixed]]:
    """One site per layer that can take some pattern, in execution order, and the others with the reason.

    Args:
        network: The dense network.
        graph: Its graph.
        dense: Its layout; a layer must take the pattern at its full width.
        patterns: What may be chosen beside dense.
        skip: Patterns (as in a shell) of layer names that stay dense.
        shapes: What a device takes.
    """
    ordered = sorted(dict.fromkeys(patterns), key=lambda text: (parse_pattern(text).density, text))
    sites, fixed = [], []
    for layer in (layer for layer in dense.layers if layer.has_weight):
        hit = next((text for text in skip if fnmatchcase(layer.name, text)), None)
        reasons = {text: _reason(network, graph, layer, text, shapes) for text in ordered}
        legal = [text for text, reason in reasons.items() if not reason]
        if hit is not None or not legal:
            reason = next(iter(reasons.values()), "no pattern is asked for")
            fixed.append(Fixed(f"{layer.name}.weight", reason if hit is None else f"skipped by the pattern {hit!r}"))
        else:
            sites.append(PatternSite.of(layer.name, [*legal, "dense"]))
    return sites, fixed


def _reason(network: nn.Module, graph: Graph, layer: LayerShape, text: str, shapes: ShapeRules | None) -> str:
    own = unfit(network, graph, layer.name) or refusal(layer, parse_pattern(text))
    return own or (shapes.refusal(layer, text) if shapes is not None else "")


def interleaved(widths: Sequence[WidthSite], patterns: Sequence[PatternSite], units: Sequence[Unit]) -> list[Site]:
    """A unit's site, then the sites of the layers it feeds (of several units the last one); others come first."""
    place = {site.name: index for index, site in enumerate(widths)}
    feeds: dict[str, int] = {}
    for unit in (unit for unit in units if unit.name in place):
        for member in unit.role("consumer"):
            feeds[member.module] = max(feeds.get(member.module, -1), place[unit.name])
    ordered: list[Site] = [site for site in patterns if site.layer not in feeds]
    for index, site in enumerate(widths):
        ordered += [site, *(one for one in patterns if feeds.get(one.layer) == index)]
    return ordered
