"""Budgets as people write them: `macs=0.5`, `latency_ms=1.5`, `sparsity=2:4@RULES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envs.lookup import passed_in, unknown
from hw_profiles.documents import shown

LATENCY = ("latency", "latency_ms")
"""Budgets on a profile's latency, as in `hw_profiles.cost`: that module needs numpy."""
COVERAGE = "coverage"
"""Budget on the share of MACs in layers that have a pattern (from below)."""
SYNONYMS = {"flops": "macs"}
"""AMC and most counters say FLOPs for multiply-accumulates; we accept it here and say MACs everywhere else."""


def checked_budgets(value: Any) -> dict[str, float]:
    """Budgets by the costs' own names.

    Args:
        value: A mapping of cost to budget, or `NAME=VALUE` texts.

    Raises:
        ValueError: If a cost is unknown, a budget is no positive number, or two of them contradict each other.
    """
    if isinstance(value, (list, tuple)):
        value = parse_constraints([str(text) for text in value])
    if not isinstance(value, Mapping) or not value:
        raise ValueError("needs at least one cost = budget, for example macs = 0.5")
    named = {SYNONYMS.get(str(name), str(name)): budget for name, budget in value.items()}
    for name, budget in named.items():
        _check_budget(name, budget)
    if named.get("latency", 1) > 1:
        raise ValueError(
            f"latency must be a fraction of dense, but got {named['latency']:g}: write latency_ms for milliseconds"
        )
    if all(name in named for name in LATENCY):
        raise ValueError("latency can have one budget, but has two: keep latency or latency_ms")
    return named


def _check_budget(name: str, budget: Any) -> None:
    from hw_profiles.cost import COSTS  # needs numpy, without which the command line's help is shown

    if name not in (*COSTS, *LATENCY, COVERAGE) and not passed_in(name):
        raise ValueError(f"cost {unknown(name, [*COSTS, *LATENCY, *SYNONYMS, 'sparsity', COVERAGE])}")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < float("inf"):
        raise ValueError(
            f"budget must be a positive number, but got {name}={shown(budget)}: "
            "write a fraction of the dense network (0.5) or an absolute value"
        )


def with_sparsity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration values in which `sparsity`, the one constraint that is no number, is a key of its own.

    Args:
        values: With a mapping at `constraint`.
    """
    budgets, result = dict(values["constraint"]), dict(values)
    if "sparsity" not in budgets:
        return result
    result["sparsity"] = budgets.pop("sparsity")
    result["constraint"] = budgets
    if not budgets:  # the default budget holds, as it does without any constraint
        del result["constraint"]
    result.setdefault("patterns", (str(result["sparsity"]).partition("@")[0],))
    return result


def with_range(values: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration values in which budgets that are ranges are a key of their own, and their middles the budgets.

    Args:
        values: With a mapping at `constraint`, or without any.

    Raises:
        ValueError: If a range is no pair of ascending positive numbers, both fractions or both absolute.
    """
    budgets = dict(values.get("constraint", {}))
    ranges = {name: _pair(str(name), value) for name, value in budgets.items() if _is_range(value)}
    if not ranges:
        return dict(values)
    middles = {name: round((low + high) / 2, 6) for name, (low, high) in ranges.items()}
    named = {SYNONYMS.get(name, name): pair for name, pair in ranges.items()}
    return {**values, "constraint": budgets | middles, "budget_range": named}


def _is_range(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, str) and ":" in value)


def _pair(name: str, value: Any) -> tuple[float, float]:
    """Lowest and highest budget of a range."""
    ends = value.split(":") if isinstance(value, str) else value
    try:
        low, high = (float(end) for end in ends)
    except (ValueError, TypeError):
        low = high = 0.0
    if not 0 < low < high < float("inf") or low <= 1 < high:
        raise ValueError(
            f"a range of budgets must read LOW:HIGH, both fractions or both absolute, but got {name}={shown(value)}: "
            "write for example macs=0.25:0.75"
        )
    return low, high


def parse_constraints(texts: Sequence[str]) -> dict[str, Any]:
    """Reads `NAME=VALUE` texts; the value of `sparsity` is PATTERN@RULES, all others are numbers or ranges LOW:HIGH.

    Raises:
        ValueError: If one is no `NAME=VALUE` with a number.
    """
    budgets: dict[str, Any] = {}
    for text in texts:
        written, separator, value = text.partition("=")
        name = SYNONYMS.get(written.strip(), written.strip())
        if name in budgets:
            raise ValueError(f"a cost can have one budget, but {name!r} has two: keep the one that is meant")
        try:
            ranged = name == "sparsity" or ":" in value
            budgets[name] = value.strip() if ranged else float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise ValueError(f"a constraint must read NAME=NUMBER, but got {shown(text)}: write for example macs=0.5")
    return budgets
