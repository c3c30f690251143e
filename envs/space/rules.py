"""Rules only narrow choices before a search: divisors, smallest and largest ratio, skipped layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from envs.space.sites import WidthSite
from envs.units.units import Fixed, Unit

KERNEL_WIDTH, MIN_ROUNDED = 8, 96
"""Channels that the kernels of runtimes compute together (onnxruntime: 8 with AVX2, 16 with AVX-512), and the narrowest
unit whose widths keep to that unasked: there it costs no accuracy (experiments/results/rounding.md).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may be chosen at all.

    Attributes:
        round_to: Kept channels are a multiple of this, or all channels; None: of `KERNEL_WIDTH` in units of at least
            `MIN_ROUNDED` channels, as runtimes' kernels work in blocks of channels.
        min_ratio: Smallest preserve ratio.
        max_ratio: Largest preserve ratio.
        skip: Patterns (as in a shell) of layer names; a unit with such a member stays dense.
    """

    round_to: int | None = 1
    min_ratio: float = 0.0
    max_ratio: float = 1.0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses rules that cannot hold."""
        if self.round_to is not None and self.round_to < 1:
            raise ValueError(f"`round_to >= 1` must hold, but got {self.round_to}: write 1 for no rounding")
        if not 0 <= self.min_ratio <= self.max_ratio <= 1 or self.max_ratio == 0:
            raise ValueError(
                "`0 <= min_ratio <= max_ratio <= 1` and `max_ratio > 0` must hold, but got "
                f"min_ratio={self.min_ratio}, max_ratio={self.max_ratio}: write fractions of kept channels"
            )

    def widths(self, unit: Unit) -> list[int]:
        """The unit's widths under these rules, lightest first; never zero channels."""
        steps, multiple = range(unit.granule, unit.channels + 1, unit.granule), self._multiple(unit.channels)
        return [
            count
            for count in steps
            if (count % multiple == 0 or count == unit.channels)
            and self.min_ratio - 1e-9 <= count / unit.channels <= self.max_ratio + 1e-9
        ]

    def _multiple(self, channels: int) -> int:
        if self.round_to is not None:
            return self.round_to
        return KERNEL_WIDTH if channels >= MIN_ROUNDED else 1

    def sites(self, units: Sequence[Unit]) -> tuple[list[WidthSite], list[Fixed]]:
        """One site per unit that may change, in order, and the skipped ones with the reason.

        Raises:
            ValueError: If a pattern matches nothing, or if a unit is left without any width.
        """
        names = {member.module for unit in units for member in unit.members}
        for pattern in self.skip:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"every `skip` pattern must match a layer of a unit, but {pattern!r} matches none: "
                    "`amc inspect` lists the names"
                )
        sites, fixed = [], []
        for unit in units:
            hit = next((p for p in self.skip if any(fnmatchcase(m.module, p) for m in unit.members)), None)
            if hit is not None:
                fixed.append(Fixed(unit.name, f"skipped by the pattern {hit!r}"))
                continue
            widths = self.widths(unit)
            if not widths:
                raise ValueError(
                    f"every unit needs a width that the rules allow, but {unit.name!r} with {unit.channels} "
                    f"channels (in steps of {unit.granule}) has none under {self}: widen the ratios, lower "
                    "round_to, or skip it"
                )
            sites.append(WidthSite.of(unit.name, unit.channels, widths))
        return sites, fixed
