"""The report's section on latency: what the profile predicted and what was measured, whole and per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from amc.profiling.layer_times import LayerTime
from amc.profiling.runtimes.runtime import COUNTED_RUNS

if TYPE_CHECKING:
    from amc.reporting.facts import NetworkFacts


def latency_section(networks: Mapping[str, NetworkFacts], layers: Mapping[str, Sequence[LayerTime]]) -> str:
    """HTML of the section; networks without a prediction are left out."""
    rows = []
    for name, facts in networks.items():
        predicted, measured = facts.costs.get("latency_ms"), facts.latency
        if predicted is None:
            continue
        error = f"{predicted / measured.median_ms - 1:+.1%}" if measured else "-"
        cells = [f"{predicted:.3f} ms", f"{measured} ms" if measured else "-", error]
        rows.append(_row(name, cells))
    whole = _table(("network", "predicted", "measured", "difference"), rows)
    return (
        "<h2>Latency, predicted and measured</h2>\n<p>Predicted by the profile; measured on the machine that searched "
        "(the difference means something where that is the profile's device).</p>\n"
        f'<div class="wide">{whole}</div>\n{"".join(_layers(name, times) for name, times in layers.items())}'
    )


def _layers(name: str, times: Sequence[LayerTime]) -> str:
    rows = [_row(time.layer, [_us(time.predicted_ms), _us(time.measured_ms)]) for time in times]
    known = [time.measured_ms for time in times if time.measured_ms is not None]
    total = [_us(sum(time.predicted_ms for time in times)), _us(sum(known) if known else None)]
    rows.append(_row("all layers with a weight", total))
    table = _table(("layer", "predicted, us", "measured, us"), rows, "small")
    return (
        f"<details><summary>{escape(name)}: all {len(times)} layers with a weight, by the profile and by the runtime's "
        f"own profiler inside the network (mean of {COUNTED_RUNS} runs, whole microseconds)</summary>{table}</details>"
    )


def _table(heads: Sequence[str], rows: Sequence[str], style: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _us(value: float | None) -> str:
    return "-" if value is None else f"{1e3 * value:.1f}"
