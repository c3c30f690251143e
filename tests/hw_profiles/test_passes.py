"""Timing again what was disturbed: the better record stays, the time is bounded, every record is on disk at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hw_profiles.passes import (
    AGAIN,
    FIRST,
    MAX_REPEATS,
    Journal,
    TrustLimits,
    check_trust,
    disturbed,
    in_passes,
    settle,
)

LIMITS = TrustLimits(max_others=1)
Record = dict[str, Any]


def record(**changes: Any) -> Record:
    return {"n": 9, "median_ms": 1.0, "variance": 1e-6, "yardstick_ms": 0.08, "others": 0.0} | changes


BUSY = record(others=8.0)
QUIET = [record() for _ in range(8)]


def ignore(what: str, done: int, total: int, left: float) -> None:
    """Shows nothing."""


@pytest.mark.parametrize(
    ("one", "counts"),
    [
        (record(), False),
        (record(others=1.0), False),  # as many programs as cores
        (record(others=2.0), True),
        (record(others=None), False),  # a system that does not tell
        (record(yardstick_ms=0.085), False),
        (record(yardstick_ms=0.1), True),
        (record(yardstick_ms=0.06), True),
        (record(variance=0.01), False),  # standard error 4 %
        (record(variance=0.09), True),  # 12.5 %
        (record(median_ms=1e-4, variance=1e-8), False),  # nothing that a network would feel
    ],
)
def test_what_counts_as_disturbed(one: Record, counts: bool) -> None:
    assert disturbed([*QUIET, one], LIMITS) == ([8] if counts else [])


def test_nothing_is_not_disturbed() -> None:
    assert disturbed([], LIMITS) == []


def test_quiet_records_tell_the_usual_time_however_few_they_are() -> None:
    slow = [record(others=8.0, yardstick_ms=0.3) for _ in range(9)]
    assert disturbed([*slow, record()], LIMITS) == list(range(9))


def test_records_without_a_load_are_read() -> None:
    old = [{name: value for name, value in record().items() if name != "others"} for _ in range(3)]
    assert disturbed(old, LIMITS) == []


def test_a_worse_record_does_not_replace_a_better_one() -> None:
    bad, worse = record(variance=0.09), record(variance=0.9)
    records = [*QUIET, bad]
    found = settle(records, lambda index: worse, LIMITS, seconds=60, report=ignore)
    assert records[-1] is bad
    assert found == {"entries": 9, "at_first": 1, "left": 1}


def test_each_is_timed_again_only_a_few_times() -> None:
    timed: list[int] = []

    def again(index: int) -> Record:
        timed.append(index)
        return BUSY

    settle([*QUIET, BUSY], again, LIMITS, seconds=1e9, report=ignore)
    assert timed == [8] * MAX_REPEATS


def test_a_busy_first_pass_is_replaced_by_a_quiet_second() -> None:
    records = [record(others=8.0, yardstick_ms=0.3, median_ms=4.0) for _ in range(20)]
    found = settle(records, lambda index: record(), LIMITS, seconds=60, report=ignore)
    assert found == {"entries": 20, "at_first": 20, "left": 0}
    assert {one["median_ms"] for one in records} == {1.0}


class Clock:
    """Seconds that pass only while something is timed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def timing(self, result: Callable[[int], Record], seconds: float) -> Callable[[int], Record]:
        """Takes so many seconds."""

        def timed(index: int) -> Record:
            self.now += seconds
            return result(index)

        return timed


def test_the_second_pass_shows_progress_and_ends_when_its_time_is_up() -> None:
    clock, told = Clock(), list[tuple[str, int, int, float]]()
    records = [BUSY for _ in range(10)]
    found = settle(
        records,
        clock.timing(lambda index: BUSY, 2.0),
        LIMITS,
        seconds=7.0,
        clock=clock,
        report=lambda *what: told.append(what),
    )
    assert clock.now == 8.0  # what was begun is finished
    assert told == [(AGAIN, 1, 10, 5.0), (AGAIN, 2, 10, 3.0), (AGAIN, 3, 10, 1.0), (AGAIN, 4, 10, 0.0)]
    assert found["left"] == 10


def test_time_left_is_what_the_rest_takes() -> None:
    clock, left = Clock(), list[float]()
    settle(
        [*QUIET, BUSY, BUSY, BUSY],
        clock.timing(lambda index: record(), 2.0),
        LIMITS,
        seconds=60,
        clock=clock,
        report=lambda what, done, total, seconds: left.append(seconds),
    )
    assert left == [4.0, 2.0, 0.0]


@pytest.mark.parametrize("stop", range(14))
def test_whoever_is_stopped_anywhere_goes_on_and_loses_nothing(tmp_path: Path, stop: int) -> None:
    first = {index: BUSY if index in (2, 5) else record() for index in range(10)}

    def measure(journal: Journal, most: int) -> tuple[list[int], Any]:
        timed: list[int] = []

        def one(index: int) -> Record:
            if len(timed) == most:
                raise KeyboardInterrupt
            timed.append(index)
            second = index in [row.get("again") for row in journal.records] or len(journal.records) >= 10
            return record(median_ms=2.0) if second else first[index]

        try:
            return timed, in_passes(one, 10, journal, LIMITS, seconds=60, report=ignore)
        except KeyboardInterrupt:
            return timed, None

    path, header = tmp_path / "journal", {"device": "board"}
    before, _ = measure(Journal(path, header), stop)
    after, done = measure(Journal(path, header), 99)
    assert before + after == [*range(10), 2, 5]
    records, found = done
    assert [one["median_ms"] for one in records] == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1]
    assert all("again" not in one for one in records)
    assert found == {"entries": 10, "at_first": 2, "left": 0}


def test_both_passes_are_told_apart() -> None:
    told: list[str] = []
    in_passes(
        lambda index: BUSY, 3, Journal(None, {}), LIMITS, seconds=60, report=lambda what, *rest: told.append(what)
    )
    assert told == [FIRST] * 3 + [AGAIN] * 3 * MAX_REPEATS


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path: Path) -> None:
    path, header = tmp_path / "journal", {"device": "board"}
    journal = Journal(path, header)
    for k in range(3):
        journal.add({"k": k})
    path.write_text(path.read_text()[:-4])
    again = Journal(path, header)
    again.add({"k": 7})
    assert Journal(path, header).records == [{"k": 0}, {"k": 1}, {"k": 7}]
    assert json.loads(path.read_text().splitlines()[0]) == header


def test_a_journal_of_another_measurement_is_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", {"device": "board"}).add({"k": 1})
    assert Journal(tmp_path / "journal", {"device": "phone"}).records == []


def test_too_large_a_share_is_refused_in_one_line_with_the_cure() -> None:
    check_trust({"entries": 50, "at_first": 20, "left": 5})
    with pytest.raises(ValueError, match=r"at most 10%.*but 6 of 50 are: .*quiet.*--keep-disturbed") as error:
        check_trust({"entries": 50, "at_first": 20, "left": 6})
    assert "\n" not in str(error.value)
