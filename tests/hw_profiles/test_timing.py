"""Times have a spread, and what makes them worth little is said in words; clocks and machines here are made up."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc.cli.commands import run_apply, run_export, run_resume, run_search
from amc.config.search import SearchConfig
from amc.profiling.timing import BY_WIDTH, MIN_ROUNDS, Timing, side_by_side, timing_remarks
from amc.reporting.tables import stored_comparison

SETTINGS: dict[str, Any] = {
    "task": "tests.tasks.small:make_task",
    "constraint": {"macs": 0.3},
    "agent": "uniform",
    "compression": {"images": 64, "positions": 8},
}


class Clock:
    """Seconds that pass only when something is timed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A network whose runs take given seconds, one after another."""

    def __init__(self, clock: Clock, takes: Iterator[float], log: list[str] | None = None, name: str = "") -> None:
        self.clock, self.takes, self.log, self.name = clock, takes, log if log is not None else [], name

    def seconds(self, runs: int) -> float:
        took = next(self.takes)
        self.clock.now += runs * took
        self.log.append(self.name)
        return took


def timing(median_ms: float, mad_ms: float = 0.01, others: float | None = 0.0) -> Timing:
    return Timing(median_ms=median_ms, mad_ms=mad_ms, rounds=40, others=others)


def printed(what: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def sentences(text: str) -> str:
    """Text without the line breaks of a narrow screen."""
    return " ".join(text.split())


def test_median_deviation_and_number_are_those_of_the_blocks() -> None:
    found = Timing.of([0.001, 0.002, 0.004, 0.009, 0.002], [3, 8, 5])
    assert (found.median_ms, found.mad_ms, found.rounds, found.others) == (2.0, 1.0, 5, 5)


def test_blocks_alternate_and_keep_their_spread() -> None:
    clock, log = Clock(), list[str]()
    # Each block begins with a run that does not count: two runs of each value.
    takes = chain(repeat(0.01, 4), cycle([0.01, 0.01, 0.01, 0.01, 0.02, 0.02]))
    graphs = {
        "dense": Scripted(clock, takes, log, "dense"),
        "found": Scripted(clock, repeat(0.005), log, "found"),
    }
    timings = side_by_side(graphs, rounds=6, seconds=0.1, clock=clock, others=lambda: 2.0)
    assert timings["found"] == Timing(median_ms=5.0, mad_ms=0.0, rounds=timings["found"].rounds, others=2.0)
    assert timings["dense"].median_ms == 10.0
    blocks = log[-4 * timings["dense"].rounds :][::2]
    assert blocks[:4] in (["dense", "found", "found", "dense"], ["found", "dense", "dense", "found"])


def test_time_that_is_up_ends_the_rounds_but_not_before_the_fewest() -> None:
    clock = Clock()
    slow = {"dense": Scripted(clock, repeat(10.0)), "found": Scripted(clock, repeat(10.0))}
    assert side_by_side(slow, rounds=40, seconds=3.0, clock=clock)["dense"].rounds == MIN_ROUNDS


def test_a_platform_that_does_not_tell_its_load_gives_none() -> None:
    clock = Clock()
    timings = side_by_side(
        {"dense": Scripted(clock, repeat(0.01))}, rounds=9, seconds=9, clock=clock, others=lambda: None
    )
    assert timings["dense"].others is None
    assert timing_remarks(timings, "found", cores=1) == ()


def test_a_quiet_machine_and_a_faster_network_need_no_remark() -> None:
    assert timing_remarks({"dense": timing(9.5), "found": timing(7.3)}, "found", cores=2) == ()


@pytest.mark.parametrize(("others", "threads", "busy"), [(8, 1, True), (1, 1, False), (1, 2, True), (2, 1, True)])
def test_more_programs_than_cores_are_a_remark(others: float, threads: int, busy: bool) -> None:
    timings = {"dense": timing(9.5, others=others), "found": timing(7.3, others=others)}
    said = timing_remarks(timings, "found", threads=threads, cores=2)
    assert [text.startswith("The machine was busy") and f"{others:g} other programs" in text for text in said] == (
        [True] if busy else []
    )


def test_scatter_is_a_remark_that_names_the_networks() -> None:
    (said,) = timing_remarks({"dense": timing(9.0, 1.8), "found": timing(5.0, 0.01)}, "found", cores=2)
    assert "dense by 20%" in said
    assert "found" not in said


def test_few_rounds_are_a_remark() -> None:
    few = {"dense": replace(timing(9.0), rounds=3), "found": replace(timing(5.0), rounds=3)}
    assert timing_remarks(few, "found", cores=2) == ("Only 3 rounds were timed, so the spread says little.",)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (timing(11.7, 0.1), "found is slower than dense (11.700 ± 0.100 against 9.500 ± 0.100 ms"),
        (timing(9.35, 0.1), "found is not faster than dense by more than the spread (9.350 ± 0.100 against"),
        (timing(9.5, 0.1), "found is not faster than dense"),
    ],
)
def test_a_pruned_network_that_is_not_faster_is_said_with_rule_and_cure(found: Timing, said: str) -> None:
    (text,) = timing_remarks({"dense": timing(9.5, 0.1), "found": found}, "found", cores=2)
    assert text.startswith(said)
    assert "medians must differ by more than both deviations together" in text
    assert "--constraint latency=" in text
    assert "--profile" in text
    assert "--round-to 8" in text


def test_a_cure_that_was_taken_already_is_not_named() -> None:
    (text,) = timing_remarks({"dense": timing(9.5), "found": timing(9.5)}, "found", cores=2, cures=[BY_WIDTH])
    assert "--constraint" not in text


# What a search, apply and export say


SLOWER = {"dense": timing(9.5, 0.1), "uniform": timing(10.3, 0.1), "found": timing(11.7, 0.2, others=9999)}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Networks take made-up times: whatever is pruned is slower, on a busy machine."""

    def made_up(networks: Sequence[str], *_: object, **__: object) -> dict[str, Timing]:
        return {name: SLOWER.get(name, SLOWER["found"]) for name in networks}

    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("amc.runs.ending.latency_ms", made_up)


def screen(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def shown(console: Console) -> str:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return sentences(text)


def test_search_apply_and_export_show_spread_and_remarks(timed: None, tmp_path: Path) -> None:
    run, console = tmp_path / "run", screen()
    result = run_search(SearchConfig(**SETTINGS), run, console)
    assert len(result.remarks) == 2
    stored = json.loads((run / "result.json").read_text())
    report = sentences((run / "report.html").read_text())
    assert stored["remarks"] == list(result.remarks)
    assert stored["measured"]["latency_ms"] == {name: one.median_ms for name, one in SLOWER.items()}
    assert stored["measured"]["latency_spread"]["found"] == {"mad_ms": 0.2, "rounds": 40, "others": 9999}
    again = screen()
    run_resume(run, 0, again)
    for text in (shown(console), shown(again), report):
        assert "11.700 ± 0.200" in text
        assert "median ± median absolute deviation of 40 interleaved rounds" in text
        assert "The machine was busy" in text
        assert "found is slower than dense" in text
    applied, exported = screen(), screen()
    own = {"task": SETTINGS["task"]}
    run_apply(run / "policy.json", own, tmp_path / "small", applied)
    run_export(run / "policy.json", own, tmp_path / "small.onnx", exported, again=True)
    for text in (shown(applied), shown(exported)):
        assert "pruned: 11.700 ± 0.200 ms" in text
        assert "dense: 9.500 ± 0.100 ms" in text
        assert "of 40 interleaved rounds" in text
        assert "The machine was busy" in text
        assert "pruned is slower than dense" in text


def test_a_network_that_onnxruntime_cannot_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> dict[str, Timing]:
        raise ValueError("the network must be expressible in ONNX, but is not [x]: use known operators")

    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("amc.runs.ending.latency_ms", fails)
    console = screen()
    result = run_search(SearchConfig(**SETTINGS), tmp_path / "run", console)
    assert "must be expressible in ONNX, but is not [x]" in result.remarks[-1]
    assert "No latency was measured" in shown(console)


def stored_result(**measured: Any) -> dict[str, Any]:
    network = {"accuracy": {"validation": 0.91, "test": 0.92}, "costs": {"macs": 1000.0, "latency_ms": 2.0}}
    names = ("dense", "uniform", "found")
    times = {"latency_ms": {"dense": 9.5, "uniform": 10.3, "found": 11.7}, **measured}
    return {"task": "toy", **dict.fromkeys(names, network), "measured": times}


def test_a_result_of_an_older_version_shows_its_times_without_spread() -> None:
    text = printed(stored_comparison(stored_result()))
    assert "11.700" in text
    assert "±" not in text
    assert "remark" not in text


def test_remarks_of_a_result_are_shown_as_they_are() -> None:
    spread = {name: replace(one).spread() for name, one in SLOWER.items()}
    said = ["found is [not] faster than dense: search with `--round-to 8`."]
    text = printed(stored_comparison(stored_result(latency_spread=spread) | {"remarks": said}))
    assert said[0] in sentences(text)
    assert "11.700 ± 0.200" in text
    assert max(map(len, text.splitlines())) <= 80
