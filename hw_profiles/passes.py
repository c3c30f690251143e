"""Passes over what is measured: the journal on disk, what was disturbed, timing that again, refusing what stays so.

It travels to devices beside `device_script`, so it needs only Python and numpy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DRIFT = 0.1  # relative distance of the yardstick from its usual time at which a record is disturbed
MIN_ERROR = 2e-4  # ms: a standard error below this is none
MAX_REPEATS = 2  # times that one command times a disturbed record again
AGAIN_MINUTES = 5.0  # that it spends on this at most
MAX_DISTURBED = 0.1  # share of records that may stay disturbed

Record = dict[str, Any]
Report = Callable[[str, int, int, float], None]
"""Told which pass (`FIRST`, `AGAIN`), how many of how many are done, and the seconds left."""
FIRST, AGAIN = "measured", "disturbed ones timed again"


class TrustLimits(NamedTuple):
    """When a record counts as disturbed.

    Attributes:
        max_others: Other programs that may be ready to run meanwhile: cores that the measurement leaves free.
        max_scatter: Standard error over median above which it scatters too much.
    """

    max_others: int
    max_scatter: float = 0.1


class Journal:
    """Records on disk as they come, so that an interruption loses one at most; without a path only in memory."""

    def __init__(self, path: Path | None, header: Record) -> None:
        """Reads what an earlier process with the same header has written; anything else is put away."""
        self.path = path
        self.records: list[Record] = []
        rows = _rows(path.read_text()) if path is not None and path.exists() else []
        if rows and rows[0] == header:
            self.records = rows[1:]
        if path is not None:
            path.write_text("".join(json.dumps(row) + "\n" for row in [header, *self.records]))

    def add(self, record: Record) -> Record:
        """Appends one record."""
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def remove(self) -> None:
        """Deletes the file: what it held is stored elsewhere."""
        if self.path is not None:
            self.path.unlink()


def disturbed(records: Sequence[Record], limits: TrustLimits) -> list[int]:
    """Records during which the machine was busy or the yardstick unusually slow or fast, or that scatter too much.

    Args:
        records: Each with `median_ms`, `variance`, `n`, `yardstick_ms` and, where the system tells, `others`.
        limits: When a record counts as disturbed.
    """
    usual = _usual_ms(records, limits)
    return [index for index, record in enumerate(records) if _trouble(record, usual, limits) > (False, 1.0)]


def in_passes(
    timed: Callable[[int], Record],
    count: int,
    journal: Journal,
    limits: TrustLimits,
    *,
    seconds: float,
    report: Report,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Record], Record]:
    """Times everything once, then what was disturbed again, from where an interrupted process stopped.

    Args:
        timed: Times a record, by index.
        count: Records.
        journal: Holds every record as it comes; those of the second pass carry their index as `again`.
        limits: When a record counts as disturbed.
        seconds: Time for the second pass (`settle`).
        report: Told about progress.
        clock: Seconds.

    Returns:
        [count] records, and how disturbed they were (`settle`).
    """
    records = [row for row in journal.records if "again" not in row]
    earlier = [(row["again"], _without_mark(row)) for row in journal.records if "again" in row]
    began = clock()
    before = len(records)
    for index in range(before, count):
        records.append(journal.add(timed(index)))
        pace = (clock() - began) / (index + 1 - before)
        report(FIRST, index + 1, count, pace * (count - index - 1))

    def again(index: int) -> Record:
        return _without_mark(journal.add({**timed(index), "again": index}))

    return records, settle(records, again, limits, seconds=seconds, report=report, earlier=earlier, clock=clock)


def settle(
    records: list[Record],
    again: Callable[[int], Record],
    limits: TrustLimits,
    *,
    seconds: float,
    report: Report,
    earlier: Sequence[tuple[int, Record]] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Record:
    """Times disturbed records again and keeps the better ones, until none is left or the time is up.

    Args:
        records: [N] of the first pass; better ones replace them here.
        again: Times a record again, by index.
        limits: When a record counts as disturbed.
        seconds: Time to spend at most; a record that was begun is finished.
        report: Told about progress.
        earlier: What an interrupted process has timed again: index, record.
        clock: Seconds.

    Returns:
        `entries`: N; `at_first`, `left`: disturbed ones before and after.
    """
    at_first = len(disturbed(records, limits))
    until = clock() + seconds
    for index, record in earlier:
        _improve(records, index, record, limits)
    for _ in range(MAX_REPEATS):
        wanted = disturbed(records, limits)
        began = clock()
        for done, index in enumerate(wanted):
            if clock() >= until:
                break
            _improve(records, index, again(index), limits)
            pace = (clock() - began) / (done + 1)
            report(AGAIN, done + 1, len(wanted), max(0.0, min(pace * (len(wanted) - done - 1), until - clock())))
    return {"entries": len(records), "at_first": at_first, "left": len(disturbed(records, limits))}


def check_trust(found: Record, what: str = "entries") -> None:
    """Refuses measurements too many of which stay disturbed.

    Args:
        found: What `settle` returns.
        what: What was timed.

    Raises:
        ValueError: If more than a tenth do.
    """
    if found["left"] > MAX_DISTURBED * found["entries"]:
        raise ValueError(
            f"at most {MAX_DISTURBED:.0%} of the {what} may be disturbed, but {found['left']} of {found['entries']} "
            "are: repeat the command when the machine is quiet (it times only these again), or pass --keep-disturbed"
        )


def in_words(found: Record, what: str = "entries") -> str:
    """How disturbed a measurement was."""
    after = f", {found['left']} still are" if found["at_first"] else ""
    return f"{found['at_first']} of {found['entries']} {what} were disturbed{after}"


def _rows(text: str) -> list[Record]:
    """The complete lines, up to one that was cut off."""
    rows: list[Record] = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _without_mark(row: Record) -> Record:
    return {name: value for name, value in row.items() if name != "again"}


def _usual_ms(records: Sequence[Record], limits: TrustLimits) -> float:
    """The yardstick's usual time: of the records that nothing else ran beside, where there are any."""
    quiet = [record for record in records if not _busy(record, limits)] or records
    return float(np.median([record["yardstick_ms"] for record in quiet])) if quiet else 0.0


def _busy(record: Record, limits: TrustLimits) -> bool:
    others = record.get("others")
    return others is not None and others > limits.max_others


def _trouble(record: Record, usual_ms: float, limits: TrustLimits) -> tuple[bool, float]:
    """Whether the machine was busy, and how far the record is off, 1 being the limit; the smaller, the better."""
    error = 1.2533 * (record["variance"] / record["n"]) ** 0.5
    scatter = error / max(limits.max_scatter * record["median_ms"], MIN_ERROR)
    return _busy(record, limits), max(abs(record["yardstick_ms"] / usual_ms - 1) / DRIFT, scatter)


def _improve(records: list[Record], index: int, record: Record, limits: TrustLimits) -> None:
    usual = _usual_ms([*records, record], limits)
    records[index] = min(records[index], record, key=lambda one: _trouble(one, usual, limits))
