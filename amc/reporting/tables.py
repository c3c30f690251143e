"""The table for people: how dense, uniform and found compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from amc.profiling.timing import Timing, rounds_in_words
from amc.search.result import FINETUNED, NETWORKS, SearchResult
from envs.measure import Measure


def comparison(result: SearchResult, latency: Mapping[str, Timing]) -> RenderableType:
    """Dense, uniform, start and found: metric, costs and latency; below, what has to be said of them."""
    return stored_comparison(result.to_json({}, latency))


def stored_comparison(result: Mapping[str, Any]) -> RenderableType:
    """The same from the content of `result.json`; one of an older version shows times without spread."""
    measure = Measure.from_json(result.get("metric"))
    direction = "" if measure.higher_is_better else f" ({measure.better})"
    tuned = "all but the last without fine-tuning" if FINETUNED in result else "no fine-tuning"
    title = f"{result['task']}: {measure.name}{direction}, {tuned}, test samples seen once"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("validation", "test"):
        table.add_column(heading, justify="right")
    dense, latency_ms = result["dense"]["costs"], result["measured"]["latency_ms"]
    spread = result["measured"].get("latency_spread", {})
    for cost in dense:
        table.add_column(Text(cost), justify="right")
    table.add_column("measured, ms", justify="right")
    for name in (name for name in (*NETWORKS, FINETUNED) if name in result):
        values = [measure.text(result[name][measure.name][split]) for split in ("validation", "test")]
        costs = [f"{value:{_digits(cost)}} {value / dense[cost]:4.0%}" for cost, value in result[name]["costs"].items()]
        latency = f"{latency_ms[name]:.3f}" if name in latency_ms else "-"
        latency += f" ± {spread[name]['mad_ms']:.3f}" if name in spread else ""
        table.add_row(name, *values, *costs, latency, style="bold" if name == "found" else None)
    notes = [Text(rounds_in_words([one["rounds"] for one in spread.values()]), style="dim")] if spread else []
    return Group(table, *notes, *remarks_below(result.get("remarks", ())))


def remarks_below(remarks: Iterable[str]) -> list[Text]:
    """Remarks as they stand under a table."""
    return [Text.assemble(("remark: ", "yellow"), sentence) for sentence in remarks]


def _digits(cost: str) -> str:
    return ".3f" if cost == "latency_ms" else ",.0f"
