"""Rules only narrow choices before a search: divisors, minimum and maximum ratio, skipped layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import gcd

from envs.space.settings import KERNEL_WIDTH, MIN_ROUNDED, RulesConfig
from envs.space.sites import WidthSite
from envs.units.units import Fixed, Unit


class Rules(RulesConfig):
    """What may be chosen at all, applied to units.

    Where `round_to` is left out, runtimes' kernels decide, as they work in blocks of channels: a multiple of
    `KERNEL_WIDTH` in units of at least `MIN_ROUNDED` channels.
    """

    @classmethod
    def of(cls, config: RulesConfig, *, profiled: bool = False) -> Rules:
        """The configured rules; with a profile every width stands for itself, unless rounding is asked for."""
        values = config.model_dump()
        return cls(**(values | {"round_to": 1} if profiled and config.round_to is None else values))

    def widths(self, unit: Unit) -> list[int]:
        """The unit's widths under these rules, lightest first; never zero channels."""
        steps = range(unit.granule, unit.channels + 1, unit.granule)
        multiple = self._multiple(unit)
        return [
            count
            for count in steps
            if (count % multiple == 0 or count == unit.channels)
            and self.min_ratio - 1e-9 <= count / unit.channels <= self.max_ratio + 1e-9
        ]

    def _multiple(self, unit: Unit) -> int:
        width = 1 if unit.kind == "channels" else len(unit.role("consumer")[0].positions[0])  # of a head
        multiple = self.round_to
        if multiple is None:
            multiple = KERNEL_WIDTH if unit.channels * width >= MIN_ROUNDED else 1
        return multiple // gcd(multiple, width)

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
                    f"channels (in steps of {unit.granule}) has none under {self!r}: widen the ratios, lower "
                    "round_to, or skip it"
                )
            sites.append(WidthSite.of(unit.name, unit.channels, widths))
        return sites, fixed
