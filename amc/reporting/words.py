"""How the report says a number: amounts of a cost, names of costs, differences of accuracies."""

from __future__ import annotations

from hw_profiles.cost import COSTS

LABELS = {"memory": "peak memory", "latency_ms": "predicted latency"}


def amount(value: float, cost: str) -> str:
    """A cost in digits that a person reads: 125.5 M, 853.2 k, 1.21 MB."""
    if cost == "latency_ms":
        return f"{value:.3f} ms"
    unit = "B" if cost == "memory" else ""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e4):
            return f"{value / size:.4g} {letter}{unit}"
    return f"{value:,.4g} {unit}".strip() if value < 1000 else f"{value:,.0f} {unit}".strip()


def cost_label(cost: str) -> str:
    """How a cost is called in a sentence."""
    return LABELS.get(cost) or (COSTS[cost].unit if cost in COSTS else cost)


def difference(value: float, other: float) -> str:
    """How far an accuracy lies above or below another one, in points."""
    points = round(100 * (value - other), 1)
    if not points:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def microseconds(milliseconds: float | None) -> str:
    """A layer's time; "-" where it is not known."""
    return "-" if milliseconds is None else f"{1e3 * milliseconds:.1f}"
