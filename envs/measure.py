"""What a metric's number says: its name, which way is better, how it is written. How it is computed is the task's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PER_CENT = "%"
RESERVED = frozenset(
    {
        "actions",
        "blocks",
        "choices",
        "costs",
        "episode",
        "failed",
        "image_forwards",
        "images",
        "loss",
        "output_error",
        "reward",
        "searcher",
    }
)
"""Keys that stand beside a metric's name in `episodes.jsonl` and `result.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a metric's number says.

    Attributes:
        name: In tables and sentences, and its key in files.
        higher_is_better: Its direction.
        unit: Written behind a value: "dB", "" for none; "%" for what is written in per cent, while values stay
            shares (0.93 is written 93.00%).
        fraction: Whether it lies in [0, 1], so that an error bounded by 1 belongs to it.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    unit: str = PER_CENT
    fraction: bool = True

    def __post_init__(self) -> None:
        """Refuses a name that files could not hold.

        Raises:
            ValueError: If the name is no text, or that of another field.
        """
        if not isinstance(self.name, str) or not self.name.strip() or self.name in RESERVED:
            raise ValueError(
                f"a metric's name must be a text that is not {', '.join(sorted(RESERVED))}, but got {self.name!r}: "
                "it is the metric's key in the files of a run"
            )

    @property
    def scale(self) -> float:
        """What a value is multiplied by before it is written."""
        return 100.0 if self.unit == PER_CENT else 1.0

    @property
    def heading(self) -> str:
        """What follows the heading of a column or an axis whose values have no unit of their own: ", dB"."""
        return f", {self.unit}" if self.unit else ""

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "higher is better" if self.higher_is_better else "lower is better"

    def signed(self, value: float) -> float:
        """The value where higher is better, else its negative: of two, the larger one is better."""
        return value if self.higher_is_better else 0.0 - value  # no -0.0, which would be written so

    def error(self, value: float) -> float:
        """The error in [0, 1] that belongs to a value.

        Raises:
            ValueError: If the metric does not lie in [0, 1].
        """
        if not self.fraction:
            raise ValueError(
                f"this reward needs a metric in [0, 1], for its error, but the task's is {self.name!r}: "
                "use --reward accuracy, which is the metric itself, or declare the metric with fraction=True"
            )
        return 1.0 - value if self.higher_is_better else value

    def bounded(self, value: float) -> float:
        """An estimate, kept in [0, 1] where the metric lies there."""
        return min(1.0, max(0.0, value)) if self.fraction else value

    def text(self, value: float) -> str:
        """A value with its unit: 93.20%, 31.20 dB, 12.34."""
        return self._with_unit(self.bare(value))

    def rounded(self, value: float) -> str:
        """The same in a headline: 93.2%."""
        return f"{value:.1%}" if self.unit == PER_CENT else self.text(value)

    def bare(self, value: float) -> str:
        """A value without its unit, for a column that names it: two decimals of per cent, else four digits."""
        return f"{100 * value:.2f}" if self.unit == PER_CENT else f"{value:#.4g}".rstrip(".")

    def interval(self, mean: float, half_width: float) -> str:
        """A value and the half width of its interval, without unit."""
        return f"{self.bare(mean)} ± {self._width(half_width)}"

    def change(self, mean: float, half_width: float) -> str:
        """A difference and the half width of its interval, with sign and unit: +0.36 ± 0.20 points."""
        if self.unit == PER_CENT:
            return f"{100 * mean:+.2f} ± {self._width(half_width)} points"
        return self._with_unit(f"{mean:+.3g} ± {self._width(half_width)}")

    def spread(self, width: float) -> str:
        """A standard error, with its unit: 0.39 points."""
        return f"{self._width(width)} points" if self.unit == PER_CENT else self._with_unit(self._width(width))

    def against(self, value: float, other: float) -> str:
        """How far a value is from another one, before the other's name: "1.8 points above", "0.31 dB worse than"."""
        gap = value - other
        amount = f"{abs(100 * gap):.1f} points" if self.unit == PER_CENT else self._with_unit(f"{abs(gap):.3g}")
        if not float(amount.split()[0]):
            return "level with"
        if not self.higher_is_better:
            return f"{amount} {'worse' if gap > 0 else 'better'} than"
        return f"{amount} {'above' if gap > 0 else 'below'}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Measure:
        """Reads `to_json` back; accuracy where a file of an earlier version says nothing."""
        return cls(**data) if data else ACCURACY

    def _width(self, width: float) -> str:
        return f"{100 * width:.2f}" if self.unit == PER_CENT else f"{width:.2g}"

    def _with_unit(self, number: str) -> str:
        if self.unit == PER_CENT:
            return f"{number}%"
        return f"{number} {self.unit}" if self.unit else number


ACCURACY = Measure()
