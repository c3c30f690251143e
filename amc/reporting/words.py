"""How the report says a number: amounts of a cost, names of costs, differences of accuracies."""

from __future__ import annotations

from hw_profiles.cost import display_of


def amount(value: float, name: str) -> str:
    """A cost in digits that a person reads: 125.5 M, 853.2 k, 1.21 MB."""
    return display_of(name).text(value)


def cost_label(name: str) -> str:
    """What a cost is called in a sentence."""
    return display_of(name).label


def difference(value: float, other: float) -> str:
    """How far an accuracy lies above or below another one, in points."""
    points = round(100 * (value - other), 1)
    if not points:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def microseconds(milliseconds: float | None) -> str:
    """A layer's time; "-" where it is not known."""
    return "-" if milliseconds is None else f"{1e3 * milliseconds:.1f}"
