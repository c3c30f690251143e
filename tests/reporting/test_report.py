"""The report shows every number it was given, hides no name, and needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from amc.profiling.timing import Timing
from amc.reporting.facts import NetworkFacts, ReportData, layer_costs
from amc.reporting.html import amount, difference, render, write_report
from amc.reporting.pictures import bullets, progress
from amc.search.result import NETWORKS
from amc.storage.files import write_text
from hw_profiles.cost import COSTS, Macs, cost_of

RATIOS = {"dense": 1.0, "uniform": 0.7, "start": 0.6, "found": 0.5}
ACCURACIES = {"dense": 0.9382, "uniform": 0.9002, "start": 0.9102, "found": 0.9181}


@pytest.fixture(scope="session")
def data(zoo: Callable[[str], Any]) -> ReportData:
    """A report on the residual test network."""
    family = zoo("residual").anatomy.family
    networks = {}
    for name, ratio in RATIOS.items():
        widths = [max(1, round(ratio * int(count))) for count in family.channels]
        kept = dict(zip(family.units, widths, strict=True))
        layout = family.at(family.channels.copy() * 0 + widths)
        networks[name] = NetworkFacts(
            accuracy={"validation": ACCURACIES[name] - 0.01, "test": ACCURACIES[name]},
            costs={cost: cost_of(COSTS[cost], layout) for cost in ("macs", "params", "memory")},
            widths=tuple(widths),
            layer_costs=layer_costs(family, Macs(), kept),
            latency=Timing(median_ms=2.5 * ratio, mad_ms=0.125 * ratio, rounds=40),
        )
    return ReportData(
        task="toy",
        agent="ddpg",
        budgets={"macs": 0.5 * networks["dense"].costs["macs"], "params": 1e9},
        networks=networks,
        sites=family.units,
        units=family.units,
        layer_cost="macs",
        layers=tuple(layer.name for layer in family.dense.layers if layer.has_weight),
        images={"validation": 5000, "test": 5000},
        rewards=(0.5, 0.91, 0.9, 0.92),
        searchers=("knapsack", "warm-up", "ddpg", "ddpg"),
        ratios=((0.5,) * len(family.units),) * 4,
        effort={"evaluations": "1,234"},
        configuration='task = "toy"\n[constraint]\nmacs = 0.5\n',
    )


@pytest.fixture(scope="session")
def page(data: ReportData) -> str:
    return render(data)


def pictures(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_the_headline_names_task_accuracy_and_budget(data: ReportData, page: str) -> None:
    headline = re.findall(r"<h1>(.*?)</h1>", page)
    share = data.networks["found"].costs["macs"] / data.networks["dense"].costs["macs"]
    assert headline == [f"toy keeps 91.8% test accuracy at {share:.1%} of its MACs"]


def test_found_is_compared_with_uniform_and_dense(page: str) -> None:
    assert "<strong>1.8 points above</strong> uniform" in page
    assert "<strong>2.0 points below</strong> the dense" in page


def test_every_unit_stands_in_the_table_and_in_the_picture(data: ReportData, page: str) -> None:
    for unit in data.units:
        assert f"<th>{unit}</th>" in page
        assert unit in pictures(page)[0]


def test_every_layer_stands_in_the_picture_of_costs(data: ReportData, page: str) -> None:
    assert all(layer in pictures(page)[1] for layer in data.layers)


def test_every_accuracy_cost_and_latency_is_in_the_table(data: ReportData, page: str) -> None:
    for facts in data.networks.values():
        assert all(f"<td>{value:.2%}</td>" in page for value in facts.accuracy.values())
        assert all(f'title="{value:,.0f}"' in page for value in facts.costs.values())
        assert f"<td>{facts.latency} ms</td>" in page


def test_a_network_that_was_not_timed_shows_no_latency(data: ReportData) -> None:
    untimed = {name: replace(facts, latency=None) for name, facts in data.networks.items()}
    page = render(replace(data, networks=untimed))
    assert page.count("<td>-</td>") == len(NETWORKS)
    assert "as fast in onnxruntime" not in page


def test_times_stand_with_their_spread_and_remarks_below(data: ReportData) -> None:
    page = render(replace(data, remarks=("found is not faster than dense: <cure>.",)))
    assert "<td>1.250 ± 0.062 ms</td>" in page
    assert "median ± median absolute deviation of 40 interleaved rounds" in page
    assert '<p class="remark">found is not faster than dense: &lt;cure&gt;.</p>' in page
    assert 'class="remark"' not in render(data)


def test_the_configuration_is_complete(data: ReportData, page: str) -> None:
    block = re.findall(r"<pre>(.*?)</pre>", page, flags=re.DOTALL)
    assert [unescape(text) for text in block] == [data.configuration]


def test_nothing_is_fetched_from_anywhere(page: str) -> None:
    page = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"<(script|link|img|iframe)\b|url\((?!#)|@import", page)


HOSTILE = '<script>alert("1")</script> & $x_{$'


@pytest.mark.parametrize("field", ["task", "agent", "configuration"])
def test_hostile_text_is_shown_not_run(data: ReportData, field: str) -> None:
    page = render(replace(data, **{field: HOSTILE}))  # type: ignore[arg-type]
    assert "<script" not in page
    assert HOSTILE in unescape(page)


@pytest.mark.parametrize("field", ["units", "layers", "searchers"])
def test_hostile_names_are_shown_not_run(data: ReportData, field: str) -> None:
    names = tuple(f"{HOSTILE}{k}" for k in range(len(getattr(data, field))))
    page = render(replace(data, **{field: names}))  # type: ignore[arg-type]
    assert "<script" not in page
    assert names[0] in unescape(page)


def test_one_episode_needs_no_picture_of_the_search(data: ReportData, page: str) -> None:
    assert len(pictures(page)) == 4
    assert len(pictures(render(replace(data, rewards=(0.9,), searchers=("uniform",))))) == 2


def test_a_search_without_a_start_shows_none(data: ReportData) -> None:
    page = render(replace(data, networks={name: data.networks[name] for name in ("dense", "uniform", "found")}))
    assert 'class="dot start"' not in page


def test_every_picture_is_well_formed(page: str) -> None:
    for picture in pictures(page):
        assert ElementTree.fromstring(picture).get("viewBox")


def test_no_two_elements_of_the_page_share_an_id(page: str) -> None:
    ids = re.findall(r' id="([^"]*)"', page)
    assert ids
    assert len(ids) == len(set(ids))


def test_the_same_data_gives_the_same_page(data: ReportData, page: str) -> None:
    assert render(data) == page


@pytest.mark.parametrize("count", [1, 5, 100, 300])
def test_any_number_of_columns_can_be_drawn(count: int) -> None:
    values = [1.0] * count
    names = [f"block{k}.a_rather_long_name.conv" for k in range(count)]
    picture = bullets({"channels": dict.fromkeys(NETWORKS, values)}, names, salt="test")
    labels = re.findall(r">(block\d+)\.a_rather_long_name\.conv<", picture)
    assert labels[0] == "block0"
    assert count / 3 <= len(labels) <= 110  # many columns: evenly thinned labels rather than overlapping ones


@pytest.mark.parametrize("rewards", [(0.5, 0.5), (0.0, 0.0, 0.0), (-5.0, 0.1, 0.9), (1e6, 1e-6)])
def test_any_rewards_can_be_drawn(rewards: tuple[float, ...]) -> None:
    assert progress(rewards, ["ddpg"] * len(rewards), salt="test").startswith("<svg")


def test_letters_that_matplotlib_lacks_do_no_harm() -> None:
    assert "层一" in bullets({"channels": {name: [1.0] for name in NETWORKS}}, ["层一"], salt="test")


def test_layer_costs_add_up_to_the_cost_of_the_network(specimen: Any) -> None:
    family = specimen.anatomy.family
    assert sum(layer_costs(family, Macs(), {})) == cost_of(Macs(), family.dense)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("macs", 125_485_706, "125.5 M"),
        ("macs", 9_999, "9,999"),
        ("macs", 12_345, "12.35 k"),
        ("macs", 4.1e9, "4.1 G"),
        ("params", 7, "7"),
        ("memory", 1_210_000, "1.21 MB"),
        ("memory", 512, "512 B"),
    ],
)
def test_amounts_are_written_for_people(name: str, value: float, text: str) -> None:
    assert amount(name, value) == text


@pytest.mark.parametrize(
    ("value", "other", "text"),
    [(0.92, 0.9, "2.0 points above"), (0.9, 0.92, "2.0 points below"), (0.9, 0.9004, "level with")],
)
def test_differences_are_in_points(value: float, other: float, text: str) -> None:
    assert difference(value, other) == text


def test_the_file_holds_the_page_and_a_failing_disk_keeps_the_old_one(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, nothing = tmp_path / "report.html", SimpleNamespace()
    monkeypatch.setattr("amc.reporting.facts.gather", lambda *_: data)
    write_report(path, nothing, nothing, {}, [])  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == render(data)

    def fails(*_: object) -> None:
        raise OSError("No space left on device")

    write_text(path, "old")
    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, nothing, nothing, {}, [])  # type: ignore[arg-type]
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("report.html", "old")]


def test_drawing_leaves_matplotlib_as_it_was(data: ReportData) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(data)
    assert dict(matplotlib.rcParams) == before
