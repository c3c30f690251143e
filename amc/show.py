"""The table for people: how dense, uniform and found compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from amc.result import NETWORKS, SearchResult


def comparison(result: SearchResult, latency_ms: Mapping[str, float]) -> Table:
    """Dense, uniform, start and found: accuracy, costs and latency."""
    return stored_comparison(result.to_json({}, latency_ms))


def stored_comparison(result: Mapping[str, Any]) -> Table:
    """The same from the content of `result.json`."""
    title = f"{result['task']}: no fine-tuning, test images seen once"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("validation", "test"):
        table.add_column(heading, justify="right")
    dense, latency_ms = result["dense"]["costs"], result["measured"]["latency_ms"]
    for cost in dense:
        table.add_column(cost, justify="right")
    table.add_column("measured", justify="right")
    for name in (name for name in NETWORKS if name in result):
        accuracies = [f"{result[name]['accuracy'][split]:.2%}" for split in ("validation", "test")]
        costs = [f"{value:{_digits(cost)}} {value / dense[cost]:4.0%}" for cost, value in result[name]["costs"].items()]
        latency = f"{latency_ms[name]:.3f} ms" if name in latency_ms else "-"
        table.add_row(name, *accuracies, *costs, latency, style="bold" if name == "found" else None)
    return table


def _digits(cost: str) -> str:
    return ".3f" if cost == "latency_ms" else ",.0f"
