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
SMALLEST_SCATTER = 2e-4  # ms: a standard error below this is none
MOST_AGAIN = 2  # times that one command times a disturbed record again
AGAIN_MINUTES = 5.0  # that it spends on this at most
MOST_DISTURBED = 0.1  # share of records that may stay disturbed

Record = dict[str, Any]
Report = Callable[[str, int, int, float], None]
"""Told which pass (`FIRST`, `AGAIN`), how many of how many are done, and the seconds left."""
FIRST, AGAIN = "measured", "disturbed ones timed again"


class Law(NamedTuple):
    """When a record counts as disturbed.

    Attributes:
        room: Other programs that may be ready to run meanwhile: cores that the measurement leaves free.
        scatter: Standard error over median from which on it scatters too much.
    """

    room: int
    scatter: float = 0.1


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


def disturbed(records: Sequence[Record], law: Law) -> list[int]:
    """Records during which the machine was busy or the yardstick unusually slow or fast, or that scatter too much.

    Args:
        records: Each with `median_ms`, `variance`, `n`, `yardstick_ms` and, where the system tells, `others`.
        law: When a record counts as disturbed.
    """
    usual = _usual_ms(records, law)
    return [index for index, record in enumerate(records) if _trouble(record, usual, law) > (False, 1.0)]


def in_passes(
    timed: Callable[[int], Record],
    count: int,
    journal: Journal,
    law: Law,
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
        law: When a record counts as disturbed.
        seconds: Time for the second pass (`settle`).
        report: Told about progress.
        clock: Seconds.

    Returns:
        [count] records, and how disturbed they were (`settle`).
    """
    records = [row for row in journal.records if "again" not in row]
    earlier = [(row["again"], _without_mark(row)) for row in journal.records if "again" in row]
    began, before = clock(), len(records)
    for index in range(before, count):
        records.append(journal.add(timed(index)))
        pace = (clock() - began) / (index + 1 - before)
        report(FIRST, index + 1, count, pace * (count - index - 1))

    def again(index: int) -> Record:
        return _without_mark(journal.add({**timed(index), "again": index}))

    return records, settle(records, again, law, seconds=seconds, report=report, earlier=earlier, clock=clock)


def settle(
    records: list[Record],
    again: Callable[[int], Record],
    law: Law,
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
        law: When a record counts as disturbed.
        seconds: Time to spend at most; a record that was begun is finished.
        report: Told about progress.
        earlier: What an interrupted process has timed again: index, record.
        clock: Seconds.

    Returns:
        `entries`: N; `at_first`, `left`: disturbed ones before and after.
    """
    at_first, until = len(disturbed(records, law)), clock() + seconds
    for index, record in earlier:
        _improve(records, index, record, law)
    for _ in range(MOST_AGAIN):
        wanted, began = disturbed(records, law), clock()
        for done, index in enumerate(wanted):
            if clock() >= until:
                break
            _improve(records, index, again(index), law)
            pace = (clock() - began) / (done + 1)
            report(AGAIN, done + 1, len(wanted), max(0.0, min(pace * (len(wanted) - done - 1), until - clock())))
    return {"entries": len(records), "at_first": at_first, "left": len(disturbed(records, law))}


def check_trust(found: Record, what: str = "entries") -> None:
    """Refuses measurements too many of which stay disturbed.

    Args:
        found: What `settle` returns.
        what: What was timed.

    Raises:
        ValueError: If more than a tenth do.
    """
    if found["left"] > MOST_DISTURBED * found["entries"]:
        raise ValueError(
            f"at most {MOST_DISTURBED:.0%} of the {what} may be disturbed, but {found['left']} of {found['entries']} "
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


def _usual_ms(records: Sequence[Record], law: Law) -> float:
    """The yardstick's usual time: of the records that nothing else ran beside, where there are any."""
    quiet = [record for record in records if not _busy(record, law)] or records
    return float(np.median([record["yardstick_ms"] for record in quiet])) if quiet else 0.0


def _busy(record: Record, law: Law) -> bool:
    others = record.get("others")
    return others is not None and others > law.room


def _trouble(record: Record, usual_ms: float, law: Law) -> tuple[bool, float]:
    """Whether the machine was busy, and how far the record is off, 1 being the limit; the smaller, the better."""
    error = 1.2533 * (record["variance"] / record["n"]) ** 0.5
    scatter = error / max(law.scatter * record["median_ms"], SMALLEST_SCATTER)
    return _busy(record, law), max(abs(record["yardstick_ms"] / usual_ms - 1) / DRIFT, scatter)


def _improve(records: list[Record], index: int, record: Record, law: Law) -> None:
    usual = _usual_ms([*records, record], law)
    records[index] = min(records[index], record, key=lambda one: _trouble(one, usual, law))
