"""How the report says a number: amounts of a cost, names of costs, differences of a metric."""

from __future__ import annotations

from envs.measure import Measure
from hw_profiles.cost import display_of


def amount(value: float, name: str) -> str:
    """A cost in digits that a person reads: 125.5 M, 853.2 k, 1.21 MB."""
    return display_of(name).text(value)


def cost_label(name: str) -> str:
    """What a cost is called in a sentence."""
    return display_of(name).label


def written(measure: Measure) -> str:
    """How a metric is written, as the beginning of a sentence: "Accuracy in per cent", "PSNR in dB"."""
    name = measure.name[0].upper() + measure.name[1:]
    unit = {"%": " in per cent", "": ""}.get(measure.unit, f" in {measure.unit}")
    return name + unit + ("" if measure.higher_is_better else " (lower is better)")


def agreeing(measure: Measure, difference: float) -> str:
    """How near a metric's values are to others, before what they are near to."""
    if measure.fraction:
        return f"{measure.name} within {measure.spread(difference)} of"
    return f"{measure.name} within {difference:.4f} of its value in"


def microseconds(milliseconds: float | None) -> str:
    """A layer's time; "-" where it is not known."""
    return "-" if milliseconds is None else f"{1e3 * milliseconds:.1f}"
