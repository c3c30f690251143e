"""Sites and their ordered choices: what a policy decides, one site per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hw_profiles.layers import IntArray


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """One width of a unit, or one pattern of a layer.

    Attributes:
        kept: Channels kept; of a pattern its rank, the sparsest is 1.
        channels: Channels of the dense unit; of a pattern the number of choices (dense is the last one).
        pattern: The pattern, "" for a width.
    """

    kept: int
    channels: int
    pattern: str = ""

    @property
    def ratio(self) -> float:
        """The action that means this choice, in (0, 1]: the preserve ratio, or the middle of the pattern's part."""
        return (self.kept - 0.5) / self.channels if self.pattern else self.kept / self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One decision: how many channels of a unit stay, or which pattern a layer's weight gets.

    Attributes:
        unit: Name of the unit; for a pattern the name of the weight ("layer1.0.conv1.weight").
        channels: Its full width, or the number of patterns: what the dense network has here.
        choices: What is allowed before any budget, lightest first.
        layer: The layer whose pattern is decided, "" for a width.
    """

    unit: str
    channels: int
    choices: tuple[Choice, ...]
    layer: str = ""

    def __post_init__(self) -> None:
        """Refuses a site without choices or with unordered ones."""
        if not self.choices or list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"a site needs ordered, distinct choices, but {self.unit!r} has {self.choices}")

    def kept(self) -> IntArray:
        """[C] kept channels (ranks of patterns) of the choices, lightest first."""
        return np.asarray([choice.kept for choice in self.choices], dtype=np.int64)

    def patterns(self) -> list[str]:
        """The patterns of the choices, lightest first; none for a unit."""
        return [choice.pattern for choice in self.choices if choice.pattern]

    def ratios(self) -> NDArray[np.float64]:
        """[C] the actions that mean the choices, lightest first."""
        return np.asarray([choice.ratio for choice in self.choices])

    def action(self, kept: int) -> float:
        """The action that means a width of the unit, or a rank of its patterns."""
        return Choice(int(kept), self.channels, "any" if self.layer else "").ratio

    def nearest(self, ratio: float, among: IntArray) -> int:
        """Index of the choice whose action is closest to `ratio`; the lighter one on a tie.

        Args:
            ratio: Wanted preserve ratio; patterns cut [0, 1] into equal parts.
            among: [C'] indices of the choices to look at, ascending.
        """
        return int(among[int(np.argmin(np.abs(self.ratios()[among] - ratio)))])


def pattern_site(layer: str, patterns: Sequence[str]) -> Site:
    """The site of a layer's weight; patterns sparsest first, the last one is dense."""
    count = len(patterns)
    choices = tuple(Choice(rank, count, pattern) for rank, pattern in enumerate(patterns, start=1))
    return Site(unit=f"{layer}.weight", channels=count, choices=choices, layer=layer)


class Decisions(NamedTuple):
    """What was decided: unit name -> kept channels, layer name -> pattern."""

    kept: dict[str, int]
    patterns: dict[str, str]


def decode(sites: Sequence[Site], values: Sequence[int] | IntArray) -> Decisions:
    """What [S] kept channels and ranks of patterns mean."""
    kept: dict[str, int] = {}
    patterns: dict[str, str] = {}
    for site, value in zip(sites, values, strict=True):
        if site.layer:
            patterns[site.layer] = next(choice.pattern for choice in site.choices if choice.kept == value)
        else:
            kept[site.unit] = int(value)
    return Decisions(kept, patterns)


def encode(sites: Sequence[Site], widths: Mapping[str, int], patterns: Mapping[str, str]) -> IntArray:
    """[S] the inverse of `decode`; layers that are not named are dense.

    Raises:
        ValueError: If a layer has a pattern that is no choice of its site.
    """
    values = []
    for site in sites:
        if not site.layer:
            values.append(widths[site.unit])
            continue
        wanted = patterns.get(site.layer, "dense")
        rank = next((choice.kept for choice in site.choices if choice.pattern == wanted), None)
        if rank is None:
            named = ", ".join(choice.pattern for choice in site.choices)
            raise ValueError(f"the pattern of {site.layer!r} must be one of {named}, but got {wanted!r}")
        values.append(rank)
    return np.asarray(values, dtype=np.int64)
