"""The tables and pictures of the report's sections, from its data. Text without markup: the template makes the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amc.profiling.layer_times import LayerTime
from amc.reporting.facts import NetworkFacts, ReportData
from amc.reporting.pictures import bullets, choices, progress
from amc.reporting.words import amount, cost_label, microseconds
from hw_profiles.patterns import parse_pattern

MEANING = {
    "dense": "the network as it came",
    "uniform": "one preserve ratio for all units, the largest that keeps the budget",
    "start": "the best solution that the search started from",
    "found": "the policy of this run",
    "fine-tuned": "found, trained afterwards",
}

REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, a value in more digits to be shown on demand, a share that stands beside the text."""

    text: str
    exact: str = ""
    share: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        name: What the row is about.
        cells: One per column after the first.
        network: The reported network that it is drawn in the colour of, "" for none.
        note: What the name means.
    """

    name: str
    cells: tuple[Cell, ...]
    network: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first column holds the rows' names."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def comparison_table(data: ReportData) -> Table:
    """Metric, costs and latency of every network."""
    dense = data.networks["dense"].costs
    headings = ("network", "validation", "test", *(cost_label(cost) for cost in dense), "measured")
    rows = []
    for name, facts in data.compared.items():
        values = [Cell(data.measure.text(facts.metric[split])) for split in ("validation", "test")]
        costs = [
            Cell(amount(value, cost), exact=f"{value:,.0f}", share=f"{value / dense[cost]:.1%}")
            for cost, value in facts.costs.items()
        ]
        cells = (*values, *costs, Cell(_latency(facts)))
        rows.append(Row(name, cells, network=name, note=MEANING[name]))
    return Table(headings, tuple(rows))


def width_table(data: ReportData) -> Table:
    """Kept channels of every unit."""
    kept = data.kept_percent["found"]
    rows = (
        _row(unit, *(_channels(facts.widths[k]) for facts in data.shown.values()), f"{kept[k]:.0f} %")
        for k, unit in enumerate(data.units)
    )
    return Table(("unit", *data.shown, "kept"), tuple(rows))


def _channels(kept: int) -> str:
    """Channels that stay of a unit; none do where it lies in a branch that is gone."""
    return f"{kept:,}" if kept else REMOVED


def branch_table(data: ReportData) -> Table:
    """Which residual branches are gone."""
    rows = (
        _row(branch, ", ".join(layers), *(REMOVED if branch in one.removed else "kept" for one in data.shown.values()))
        for branch, layers in data.branches.items()
    )
    return Table(("branch", "layers", *data.shown), tuple(rows))


def pattern_table(data: ReportData) -> Table:
    """Pattern of every layer with a weight, and why the others are dense."""
    others = {name: facts for name, facts in data.shown.items() if name not in ("dense", "found")}
    rows = (
        _row(
            layer.layer,
            str(layer.inputs),
            str(layer.outputs),
            f"{layer.share:.1%}",
            *(facts.patterns.get(layer.layer, "dense") for facts in others.values()),
            layer.pattern,
            layer.reason,
        )
        for layer in data.layer_patterns
    )
    return Table(("layer", "inputs per group", "outputs", "MACs", *others, "found", "why dense"), tuple(rows))


def latency_table(data: ReportData) -> Table:
    """Predicted and measured latency of every network with a prediction."""
    rows = []
    for name, facts in data.shown.items():
        predicted = facts.costs.get("latency_ms")
        if predicted is None:
            continue
        error = f"{predicted / facts.latency.median_ms - 1:+.1%}" if facts.latency else "-"
        rows.append(_row(name, f"{predicted:.3f} ms", _latency(facts), error))
    return Table(("network", "predicted", "measured", "difference"), tuple(rows))


def layer_time_table(times: Sequence[LayerTime]) -> Table:
    """Predicted and measured time of every layer of one network, and their sums."""
    known = [time.measured_ms for time in times if time.measured_ms is not None]
    total = (sum(time.predicted_ms for time in times), sum(known) if known else None)
    rows = [_row(time.layer, microseconds(time.predicted_ms), microseconds(time.measured_ms)) for time in times]
    rows.append(_row("all layers with a weight", *(microseconds(value) for value in total)))
    return Table(("layer", "predicted, us", "measured, us"), tuple(rows))


def width_picture(data: ReportData) -> str:
    """SVG: channels of every unit, absolute and in per cent of dense."""
    channels = {name: facts.widths for name, facts in data.shown.items()}
    return bullets({"channels": channels, "kept, %": data.kept_percent}, data.units, salt="widths")


def pattern_picture(data: ReportData) -> str:
    """SVG: share of every layer's weights that its pattern lets stay."""
    names = [layer.layer for layer in data.layer_patterns]
    density = {
        network: [100 * parse_pattern(facts.patterns.get(name, "dense")).density for name in names]
        for network, facts in data.shown.items()
    }
    return bullets({"weights that may stay, %": density}, names, salt="patterns")


def layer_picture(data: ReportData) -> str:
    """SVG: every layer's share of the dense network's cost."""
    label = f"{cost_label(data.layer_cost)}, % of dense"
    return bullets({label: data.layer_shares}, data.layers, salt="layers")


def reward_picture(data: ReportData) -> str:
    """SVG: reward of every episode."""
    return progress(data.rewards, data.searchers, salt="rewards")


def choice_picture(data: ReportData) -> str:
    """SVG: what every episode decided."""
    return choices(data.ratios, data.sites, salt="choices")


def _row(name: str, *texts: str) -> Row:
    return Row(name, tuple(Cell(text) for text in texts))


def _latency(facts: NetworkFacts) -> str:
    return f"{facts.latency} ms" if facts.latency else "-"
