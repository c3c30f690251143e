"""Report, result and inspection say which layer has which pattern, and why the others stay dense."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from rich.console import Console

from amc.config.search import load_config
from amc.problem.inspection import inspection
from amc.problem.layer_patterns import CHOSEN, layer_patterns
from amc.problem.prepare import prepare
from amc.problem.setup import Setup, set_up
from amc.reporting.html import render
from amc.reporting.inspection_view import inspection_tables
from amc.runs.ending import report_data
from amc.search.loop import search
from envs.space.sites import WidthSite

MIXED = {"choose": "mixed", "constraint": {"macs": 0.4, "sparsity": "2:4@multiple-of-4"}}


@cache
def digits(choose: str) -> Setup:
    chosen = MIXED if choose == "mixed" else {"choose": choose, "constraint": {"params": 0.7}}
    compression = {"images": 64, "quick_images": 64, "importance": "l1", "repair": "none"}
    values = {
        "task": "digits",
        "agent": "random",
        "reward_images": 64,
        "confirm": 1,
        "episodes": 2,
        "round_size": 2,
        "compression": compression,
        "backend": {"name": "fp32"},
        **chosen,
    }
    return set_up(load_config(None, values))


def said(choose: str) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(inspection_tables(inspection(digits(choose).task, digits(choose).config)))
    return file.getvalue()


def test_every_layer_is_named_with_its_pattern_or_the_reason() -> None:
    one = digits("mixed")
    layers = layer_patterns(one, one.uniform())
    weighted = [layer.name for layer in one.anatomy.family.dense.layers if layer.has_weight]
    assert [layer.layer for layer in layers] == weighted
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    assert all((layer.pattern == "dense") == bool(layer.reason) for layer in layers)
    assert "fewer than the 4 of 2:4" in layers[0].reason  # one channel of grey


def test_a_layer_whose_width_forbids_its_pattern_names_the_width() -> None:
    one = digits("mixed")
    free = layer_patterns(one, one.dense())
    assert {layer.reason for layer in free[1:] if layer.pattern == "dense"} == {CHOSEN}
    narrow = one.assignment([site.size - isinstance(site, WidthSite) for site in one.sites])
    reasons = [layer.reason for layer in layer_patterns(one, narrow)]
    assert any("no multiple of the 4 of 2:4" in reason for reason in reasons)


def test_without_patterns_nothing_is_said() -> None:
    one = digits("channels")
    assert layer_patterns(one, one.uniform()) == ()


@pytest.mark.parametrize("choose", ["channels", "patterns", "mixed"])
def test_result_and_report_show_patterns_where_they_were_decided(choose: str, parse: Callable[[str], Any]) -> None:
    one = prepare(digits(choose))
    result = search(one)
    found = result.to_json({}, {}).get("patterns")
    page = parse(render(report_data(one.setup, one.config, result.to_json({}, {}), [])))
    assert ("Channels that stay" in page.sections) == (choose != "patterns")
    assert ("Patterns of the weights" in page.sections) == (choose != "channels")
    assert (found is None) == (choose == "channels")
    if found is None:
        return
    assert {name: entry["pattern"] for name, entry in found.items()} == {
        layer.name: layer.pattern for layer in result.policy.layers
    }
    assert all(("reason" in entry) == (entry["pattern"] == "dense") for entry in found.values())
    rows = page.table("Patterns of the weights")
    assert list(rows) == list(found)
    for name, entry in found.items():
        assert rows[name]["found"] == entry["pattern"]
        assert rows[name]["why dense"] == entry.get("reason", "")


def test_gathered_facts_are_those_of_the_result() -> None:
    one = prepare(digits("mixed"))
    result = search(one)
    data = report_data(one.setup, one.config, result.to_json({}, {}), [])
    assert list(data.networks) == list(result.reports)
    for name, report in result.reports.items():
        facts = data.networks[name]
        assert facts.metric == report.metric
        assert facts.costs == report.costs
        sites = zip(one.setup.sites, report.key, strict=True)
        widths = [kept for site, kept in sites if isinstance(site, WidthSite)]
        assert list(facts.widths) == widths
        assert sum(facts.layer_costs) == pytest.approx(report.costs["macs"])
    assert data.samples == {"validation": len(one.setup.task.validation), "test": len(one.setup.task.test)}
    assert data.effort["forward passes"] == f"{result.image_forwards:,}"


@pytest.mark.parametrize(("choose", "shown"), [("channels", False), ("mixed", True)])
def test_inspection_lists_patterns_where_they_are_chosen(choose: str, shown: bool) -> None:
    text = said(choose)
    assert ("may take a pattern" in text) == shown
    assert (": 2:4, dense" in text) == shown
    assert ("dense: it reads 1 channels per group, fewer than the 4 of 2:4" in text) == shown
