"""An assignment: one choice for every site. What an episode decides, an evaluation is remembered by, a policy is
made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.space.sites import Decisions, Site
from hw_profiles.layers import IntArray

Key = tuple[int, ...]
"""[S] values of an assignment: channels kept and ranks of patterns."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A value for every site; equal where the values are.

    Attributes:
        sites: [S] what is decided.
        key: [S] the value of each.
    """

    sites: tuple[Site, ...] = field(compare=False, repr=False)
    key: Key

    def __post_init__(self) -> None:
        """Refuses values that do not belong to the sites."""
        if len(self.key) != len(self.sites):
            raise ValueError(f"an assignment needs one value per site ({len(self.sites)}), but got {len(self.key)}")

    @classmethod
    def of(cls, sites: Sequence[Site], values: Sequence[int] | IntArray) -> Assignment:
        """From [S] values as the knapsack and the constraint give them."""
        return cls(tuple(sites), tuple(int(value) for value in values))

    @classmethod
    def from_decisions(cls, sites: Sequence[Site], decisions: Decisions) -> Assignment:
        """From widths and patterns by name.

        Raises:
            ValueError: If a pattern is no choice of its site.
        """
        return cls(tuple(sites), tuple(site.value_in(decisions) for site in sites))

    @property
    def values(self) -> IntArray:
        """[S] int64, as the constraint counts them."""
        return np.asarray(self.key, dtype=np.int64)

    @property
    def actions(self) -> list[float]:
        """[S] the actions that lead here."""
        return [site.action(value) for site, value in zip(self.sites, self.key, strict=True)]

    @property
    def decisions(self) -> Decisions:
        """Widths and patterns by name."""
        decided = Decisions()
        for site, value in zip(self.sites, self.key, strict=True):
            site.decide(value, decided)
        return decided

    def named(self) -> dict[str, int]:
        """Site name -> value."""
        return {site.name: value for site, value in zip(self.sites, self.key, strict=True)}
