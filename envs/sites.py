"""Sites and their ordered choices: what a policy decides, one site per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw_profiles.layers import IntArray


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """One width of a unit.

    Attributes:
        kept: Channels kept.
        channels: Channels of the dense unit.
    """

    kept: int
    channels: int

    @property
    def ratio(self) -> float:
        """Preserve ratio, kept / original channels, in (0, 1]."""
        return self.kept / self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One decision: how many channels of a unit stay.

    Attributes:
        unit: Name of the unit.
        channels: Its full width.
        choices: Allowed widths before any budget, lightest first.
    """

    unit: str
    channels: int
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        """Refuses a site without choices or with unordered ones."""
        if not self.choices or list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"a site needs ordered, distinct choices, but {self.unit!r} has {self.choices}")

    def kept(self) -> IntArray:
        """[C] kept channels of the choices, lightest first."""
        return np.asarray([choice.kept for choice in self.choices], dtype=np.int64)

    def nearest(self, ratio: float, among: IntArray) -> int:
        """Index of the choice whose preserve ratio is closest to `ratio`; the lighter one on a tie.

        Args:
            ratio: Wanted preserve ratio.
            among: [C'] indices of the choices to look at, ascending.
        """
        distance = np.abs(self.kept()[among] / self.channels - ratio)
        return int(among[int(np.argmin(distance))])
