"""Tables for people: what can be pruned, and how dense, uniform and found compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from amc.anatomy import Anatomy, dissect
from amc.bounds import choose_sites
from amc.config import SearchConfig
from amc.pattern_view import mac_shares, weight_reasons
from amc.result import NETWORKS, SearchResult
from amc.tasks import Task
from amc.timing import Timing, rounds_in_words
from hw_profiles.cost import COSTS, Macs, cost_of
from hw_profiles.layers import Layout
from hw_profiles.shape_rules import load_rules


def inspection(task: Task, config: SearchConfig) -> RenderableType:
    """Units with members and share of MACs, every layer that stays with the reason, and patterns where chosen."""
    anatomy = dissect(task.network, task.example_input)
    dense = anatomy.family.dense
    costs = ", ".join(
        f"{name} {cost_of(cost, dense):,.0f}" for name, cost in COSTS.items() if dense.edges_known or name != "memory"
    )
    notes = [f"dense: {costs}"]
    if not anatomy.graph.traced:
        notes.append(
            f"torch.fx could not trace this network ({anatomy.graph.reason}): layer-wise repair is used "
            "instead of sequential, and memory= budgets are not available"
        )
    patterns = [_patterns(task, config, anatomy)] if config.choose != "channels" else []
    return Group(*_units(task, config, anatomy), *patterns, *notes)


def _units(task: Task, config: SearchConfig, anatomy: Anatomy) -> tuple[Table, Table]:
    """What can be pruned, and what stays."""
    sites, skipped = config.rules.rules().sites(anatomy.units)
    dense = anatomy.family.dense
    total = cost_of(Macs(), dense)
    units = Table(title=f"{task.name}: {len(sites)} units can be pruned", title_justify="left")
    for heading, side in (("unit", "left"), ("channels", "right"), ("step", "right"), ("MACs", "right")):
        units.add_column(heading, justify=side, no_wrap=heading == "unit")  # type: ignore[arg-type]
    units.add_column("members (> writes, = carries, < reads)")
    chosen = {site.unit for site in sites}
    marks = {"producer": ">", "carrier": "=", "consumer": "<"}
    for unit in anatomy.units:
        if unit.name not in chosen:
            continue
        touched = Layout(layers=tuple(dense.layers[row] for row in anatomy.family.layers_of(unit.name)))
        members = " ".join(f"{marks[member.role]}{member.module}" for member in unit.members)
        share = f"{cost_of(Macs(), touched) / total:.1%}"
        units.add_row(unit.name, str(unit.channels), str(unit.granule), share, members)
    stays = Table(title="layers whose output channels stay", title_justify="left")
    stays.add_column("layer", no_wrap=True)
    stays.add_column("reason")
    for entry in (*anatomy.fixed, *skipped):
        stays.add_row(entry.name, entry.reason)
    return units, stays


def _patterns(task: Task, config: SearchConfig, anatomy: Anatomy) -> Table:
    """What each layer may choose at its full width, or why it stays dense."""
    shapes = load_rules(config.shapes) if config.shapes is not None else None
    sites, fixed = choose_sites(config, task.network, anatomy, shapes)
    choices = {site.layer: ", ".join(site.patterns()) for site in sites if site.layer}
    reasons = weight_reasons(fixed)
    table = Table(title=f"{len(choices)} layers may take a pattern, at full width", title_justify="left")
    table.add_column("layer", no_wrap=True)
    for heading in ("inputs per group", "outputs", "MACs"):
        table.add_column(heading, justify="right")
    table.add_column("choices, or why dense")
    shares = mac_shares(anatomy.family.dense)
    for layer in (layer for layer in anatomy.family.dense.layers if layer.has_weight):
        inputs, share = str(layer.in_channels // layer.groups), f"{shares[layer.name]:.1%}"
        said = choices.get(layer.name) or f"dense: {reasons[layer.name]}"
        table.add_row(layer.name, inputs, str(layer.out_channels), share, said)
    return table


def comparison(result: SearchResult, latency: Mapping[str, Timing]) -> RenderableType:
    """Dense, uniform, start and found: accuracy, costs and latency; below, what has to be said of them."""
    return stored_comparison(result.to_json({}, latency))


def stored_comparison(result: Mapping[str, Any]) -> RenderableType:
    """The same from the content of `result.json`; one of an older version shows times without spread."""
    title = f"{result['task']}: no fine-tuning, test images seen once"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("validation", "test"):
        table.add_column(heading, justify="right")
    dense, latency_ms = result["dense"]["costs"], result["measured"]["latency_ms"]
    spread = result["measured"].get("latency_spread", {})
    for cost in dense:
        table.add_column(cost, justify="right")
    table.add_column("measured, ms", justify="right")
    for name in (name for name in NETWORKS if name in result):
        accuracies = [f"{result[name]['accuracy'][split]:.2%}" for split in ("validation", "test")]
        costs = [f"{value:{_digits(cost)}} {value / dense[cost]:4.0%}" for cost, value in result[name]["costs"].items()]
        latency = f"{latency_ms[name]:.3f}" if name in latency_ms else "-"
        latency += f" ± {spread[name]['mad_ms']:.3f}" if name in spread else ""
        table.add_row(name, *accuracies, *costs, latency, style="bold" if name == "found" else None)
    notes = [Text(rounds_in_words([one["rounds"] for one in spread.values()]), style="dim")] if spread else []
    return Group(table, *notes, *remarks_below(result.get("remarks", ())))


def remarks_below(remarks: Iterable[str]) -> list[Text]:
    """Remarks as they stand under a table."""
    return [Text.assemble(("remark: ", "yellow"), sentence) for sentence in remarks]


def _digits(cost: str) -> str:
    return ".3f" if cost == "latency_ms" else ",.0f"
