"""The report shows every number it was given, hides no name, and needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from amc.problem.layer_patterns import LayerPattern
from amc.profiling.layer_times import LayerTime
from amc.profiling.timing import Timing
from amc.reporting.facts import NetworkFacts, ReportData, layer_costs
from amc.reporting.html import render, write_report
from amc.reporting.pictures import MAX_LABELS, bullets, progress
from amc.reporting.words import amount
from amc.search.result import NETWORKS
from envs.measure import ACCURACY
from hw_profiles.cost import COSTS, Macs, cost_of

Parse: TypeAlias = Callable[[str], Any]

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
            metric={"validation": ACCURACIES[name] - 0.01, "test": ACCURACIES[name]},
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
        samples={"validation": 5000, "test": 5000},
        rewards=(0.5, 0.91, 0.9, 0.92),
        searchers=("knapsack", "warm-up", "ddpg", "ddpg"),
        ratios=((0.5,) * len(family.units),) * 4,
        effort={"evaluations": "1,234"},
        standard_errors={"validation": 0.0041, "test": 0.0039},
        configuration='task = "toy"\n[constraint]\nmacs = 0.5\n',
    )


@pytest.fixture(scope="session")
def html(data: ReportData) -> str:
    return render(data)


@pytest.fixture(scope="session")
def page(html: str, parse: Parse) -> Any:
    return parse(html)


def labels(picture: Element) -> set[str]:
    return {"".join(text.itertext()) for text in picture.iter("text")}


def number(text: str) -> float:
    return float(text.rstrip("% ").replace(",", ""))


def test_the_headline_names_task_accuracy_and_budget(data: ReportData, page: Any) -> None:
    share = data.networks["found"].costs["macs"] / data.networks["dense"].costs["macs"]
    assert page.texts("h1") == [f"toy keeps 91.8% test accuracy at {share:.1%} of its MACs"]


def test_found_is_compared_with_uniform_and_dense(page: Any) -> None:
    assert page.texts("strong") == ["1.8 points above", "2.0 points below"]
    (lead,) = page.texts("p", "lead")
    assert "(90.0%)" in lead
    assert "(93.8%)" in lead


def test_every_budget_is_said_with_its_share_of_dense(data: ReportData, page: Any) -> None:
    (budget,) = (note for note in page.texts("p", "note") if note.startswith("Budget"))
    assert "(50.0% of dense), parameters at most 1 G" in budget


def test_a_card_says_how_much_is_left_of_every_cost_and_of_the_time(data: ReportData, page: Any) -> None:
    cards = [
        (card.findtext("b"), card.findtext("span")) for card in page.root.iter("div") if card.get("class") == "card"
    ]
    names = {"macs": "of the MACs", "params": "of the parameters", "memory": "of the peak memory"}
    dense, found = data.networks["dense"].costs, data.networks["found"].costs
    expected = [(f"{found[cost] / dense[cost]:.1%}", text) for cost, text in names.items()]
    assert cards == [*expected, ("2.00 times", "as fast in onnxruntime")]


def test_the_first_table_holds_every_network_with_all_its_numbers(data: ReportData, page: Any) -> None:
    rows = page.table()
    assert list(rows) == list(NETWORKS)
    dense = data.networks["dense"].costs
    for name, facts in data.networks.items():
        row = rows[name]
        assert number(row["validation"]) == pytest.approx(100 * facts.metric["validation"])
        assert number(row["test"]) == pytest.approx(100 * facts.metric["test"])
        shares = {"MACs": "macs", "parameters": "params", "peak memory": "memory"}
        for heading, cost in shares.items():
            assert row[heading].endswith(f"{facts.costs[cost] / dense[cost]:.1%}")
        assert number(row["measured"].partition(" ")[0]) == pytest.approx(2.5 * RATIOS[name])


def test_a_cost_that_is_rounded_tells_all_its_digits_on_demand(data: ReportData, page: Any) -> None:
    told = [number(span.get("title")) for span in page.root.iter("span") if span.get("title")]
    assert told == [value for name in NETWORKS for value in data.networks[name].costs.values()]


def test_every_unit_stands_in_the_table_and_in_the_picture(data: ReportData, page: Any) -> None:
    rows = page.table("Channels that stay")
    assert list(rows) == list(data.units)
    assert set(data.units) <= labels(page.pictures[0])
    for k, row in enumerate(rows.values()):
        assert [number(row[name]) for name in NETWORKS] == [data.networks[name].widths[k] for name in NETWORKS]
        assert number(row["kept"]) == pytest.approx(100 * number(row["found"]) / number(row["dense"]), abs=0.5)


def test_every_layer_stands_in_the_picture_of_costs(data: ReportData, page: Any) -> None:
    assert set(data.layers) <= labels(page.pictures[1])


def test_layer_shares_add_up_to_those_of_the_networks(data: ReportData, page: Any) -> None:
    shares = data.layer_shares
    assert sum(shares["dense"]) == pytest.approx(100)
    (said,) = page.sections["Where the MACs are"].findall("p")
    assert f"found's to {sum(shares['found']):.1f} %" in said.text


def test_a_network_that_was_not_timed_shows_no_latency(data: ReportData, parse: Parse) -> None:
    untimed = {name: replace(facts, latency=None) for name, facts in data.networks.items()}
    page = parse(render(replace(data, networks=untimed)))
    assert {row["measured"] for row in page.table().values()} == {"-"}
    assert "as fast in onnxruntime" not in page.texts("span")


def test_times_stand_with_their_spread_and_remarks_below(data: ReportData, page: Any, parse: Parse) -> None:
    noted = parse(render(replace(data, remarks=("found is not faster than dense: <cure>.",))))
    assert noted.table()["found"]["measured"] == "1.250 ± 0.062 ms"
    assert any("median absolute deviation of 40 interleaved rounds" in note for note in noted.texts("p", "note"))
    assert noted.texts("p", "remark") == ["found is not faster than dense: <cure>."]
    assert page.texts("p", "remark") == []


def test_the_standard_error_of_each_split_is_said_with_its_size(data: ReportData, page: Any) -> None:
    said = (
        "Standard error of found's accuracy: validation 0.41 points (5,000 samples), test 0.39 points (5,000 samples)."
    )
    assert any(said in note for note in page.texts("p", "note"))


def predicted(data: ReportData) -> ReportData:
    """The same with a profile's predictions."""
    networks = {
        name: replace(facts, costs={**facts.costs, "latency_ms": 3.0 * RATIOS[name]})
        for name, facts in data.networks.items()
    }
    times = (
        LayerTime(layer="first", predicted_ms=0.25, measured_ms=0.2),
        LayerTime(layer="second", predicted_ms=0.5, measured_ms=None),
    )
    return replace(data, networks=networks, layer_times={"dense": times, "found": times[1:]})


def test_predicted_and_measured_latency_stand_side_by_side(data: ReportData, page: Any, parse: Parse) -> None:
    heading = "Latency, predicted and measured"
    assert heading not in page.sections
    rows = parse(render(predicted(data))).table(heading)
    assert list(rows) == list(NETWORKS)
    assert rows["found"] == {"predicted": "1.500 ms", "measured": "1.250 ± 0.062 ms", "difference": "+20.0%"}


def test_layers_are_listed_with_their_times_and_the_sum_of_what_is_known(data: ReportData, parse: Parse) -> None:
    page = parse(render(predicted(data)))
    dense, found = (page.table("Latency, predicted and measured", number) for number in (1, 2))
    assert dense["first"] == {"predicted, us": "250.0", "measured, us": "200.0"}
    assert dense["second"] == {"predicted, us": "500.0", "measured, us": "-"}
    assert dense["all layers with a weight"] == {"predicted, us": "750.0", "measured, us": "200.0"}
    assert found["all layers with a weight"] == {"predicted, us": "500.0", "measured, us": "-"}


def test_effort_and_configuration_are_complete(data: ReportData, page: Any) -> None:
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True)) == data.effort
    assert ["".join(block.itertext()) for block in page.root.iter("pre")] == [data.configuration]


def test_nothing_is_fetched_from_anywhere(html: str, page: Any) -> None:
    elements = list(page.root.iter())
    assert not {element.tag for element in elements} & {"script", "link", "img", "iframe", "object"}
    links = ("src", "href", "xlink:href")
    targets = [value for element in elements for name, value in element.items() if name in links]
    assert all(target.startswith(("#", "data:")) for target in targets)
    assert not re.search(r"url\((?!#)|@import", html)


HOSTILE = '<script>alert("1")</script> & $x_{$ {{ 7 * 7 }}'


@pytest.mark.parametrize("field", ["task", "agent", "configuration"])
def test_hostile_text_is_shown_not_run(data: ReportData, parse: Parse, field: str) -> None:
    html = render(replace(data, **{field: HOSTILE}))  # type: ignore[arg-type]
    assert "<script" not in html
    assert HOSTILE in "".join(parse(html).root.itertext())


@pytest.mark.parametrize("field", ["units", "sites", "layers", "searchers", "remarks"])
def test_hostile_names_are_shown_not_run(data: ReportData, parse: Parse, field: str) -> None:
    names = tuple(f"{HOSTILE}{k}" for k in range(len(getattr(data, field)) or 1))
    html = render(replace(data, **{field: names}))  # type: ignore[arg-type]
    assert "<script" not in html
    assert names[0] in "".join(parse(html).root.itertext())


def test_hostile_layers_are_shown_not_run(data: ReportData, parse: Parse) -> None:
    layer = LayerPattern(layer=HOSTILE, inputs=4, outputs=4, share=1.0, pattern="dense", reason=HOSTILE)
    time = LayerTime(layer=HOSTILE, predicted_ms=1.0, measured_ms=None)
    html = render(replace(data, layer_patterns=(layer,), layer_times={HOSTILE: (time,)}))
    assert "<script" not in html
    page = parse(html)
    assert page.table("Patterns of the weights")[HOSTILE]["why dense"] == HOSTILE
    assert page.table("Latency, predicted and measured", 1)[HOSTILE]["predicted, us"] == "1000.0"


def test_the_best_episode_is_named(page: Any) -> None:
    (said, _) = page.sections["The search"].findall("p")
    assert "each of 4 episodes; the best, 0.9200, was number 4, by ddpg" in said.text


def test_one_episode_needs_no_picture_of_the_search(data: ReportData, page: Any, parse: Parse) -> None:
    single = parse(render(replace(data, rewards=(0.9,), searchers=("uniform",))))
    assert "The search" in page.sections
    assert "The search" not in single.sections
    assert len(page.pictures) == len(single.pictures) + 2


def test_a_search_without_a_start_shows_none(data: ReportData, parse: Parse) -> None:
    page = parse(render(replace(data, networks={name: data.networks[name] for name in ("dense", "uniform", "found")})))
    assert "start" not in page.table()
    assert all("start" not in labels(picture) for picture in page.pictures)


def test_every_picture_is_well_formed(html: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        assert ElementTree.fromstring(picture).get("viewBox")


def test_no_two_elements_of_the_page_share_an_id(page: Any) -> None:
    ids = [element.get("id") for element in page.root.iter() if element.get("id")]
    assert ids
    assert len(ids) == len(set(ids))


def test_the_same_data_gives_the_same_page(data: ReportData, html: str) -> None:
    assert render(data) == html


@pytest.mark.parametrize("count", [1, 5, 100, 300])
def test_any_number_of_columns_can_be_drawn(count: int) -> None:
    values = [1.0] * count
    names = [f"block{k}.a_rather_long_name.conv" for k in range(count)]
    picture = bullets({"channels": dict.fromkeys(NETWORKS, values)}, names, salt="test")
    drawn = re.findall(r">(block\d+)\.a_rather_long_name\.conv<", picture)
    assert drawn[0] == "block0"
    assert count / 3 <= len(drawn) <= MAX_LABELS  # many columns: evenly thinned labels rather than overlapping ones


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
    assert amount(value, name) == text


@pytest.mark.parametrize(
    ("value", "other", "text"),
    [(0.92, 0.9, "2.0 points above"), (0.9, 0.92, "2.0 points below"), (0.9, 0.9004, "level with")],
)
def test_differences_are_in_points(value: float, other: float, text: str) -> None:
    assert ACCURACY.against(value, other) == text


def test_the_file_holds_the_page_and_a_failing_disk_keeps_the_old_one(
    data: ReportData, html: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_report(path, data)
    assert path.read_text(encoding="utf-8") == html

    def fails(*_: object) -> None:
        raise OSError("No space left on device")

    path.write_text("old")
    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, data)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("report.html", "old")]


def test_drawing_leaves_matplotlib_as_it_was(data: ReportData) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(data)
    assert dict(matplotlib.rcParams) == before
