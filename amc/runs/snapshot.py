"""Where a search stands after a round, and the one file that holds it: what resume starts from.

The file is the truth (law 2 of docs/architecture.md): safetensors for what the searcher has learned, JSON in its
header for the rest. Episodes stand beside it in `episodes.jsonl`; the file says how many of them count.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open

from agents.searcher import SearcherState
from amc.pool.pool import Timing
from amc.search.episode import read_line
from amc.search.state import Snapshot
from amc.storage.files import write_bytes
from hw_profiles.documents import Strict, parse_json, validated

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)]


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Replaces a snapshot's file atomically.

    Raises:
        OSError: If it cannot be written; the old file is still there then.
    """
    header = {
        "schema_version": SCHEMA_VERSION,
        "origin": snapshot.origin,
        "starts": {label: list(widths) for label, widths in snapshot.starts.items()},
        "episodes": len(snapshot.lines),
        "numbers": snapshot.searcher.numbers,
        "image_forwards": snapshot.image_forwards,
        "evaluations": snapshot.evaluations,
        "elapsed": snapshot.elapsed,
    }
    write_bytes(path, safetensors.numpy.save(snapshot.searcher.arrays, metadata={"snapshot": json.dumps(header)}))


class SnapshotHeader(Strict):
    """What the snapshot's file says beside the searcher's arrays."""

    schema_version: Literal[1]
    origin: str
    starts: dict[str, list[int]]
    episodes: Count
    numbers: dict[str, Any]
    image_forwards: Count
    evaluations: Count
    elapsed: Annotated[float, Field(ge=0)]


class TimingEntry(Strict):
    """One line of `timings.jsonl`."""

    episode: Count
    seconds: Annotated[float, Field(ge=0)]
    host: str
    retries: Count


def read_snapshot(path: Path, episodes: Path, timings: Path) -> Snapshot | None:
    """Reads a snapshot back; None if no round was finished yet.

    Args:
        path: The snapshot's file.
        episodes: `episodes.jsonl`; lines beyond the snapshot are left out.
        timings: `timings.jsonl`.

    Raises:
        ValueError: If a file is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        header, arrays = _read_header(path)
        lines = _read_lines(episodes, header.episodes)
        clocks = [
            validated(TimingEntry, row, timings.name, "a timing") for row in _read_lines(timings, header.episodes)
        ]
        return Snapshot(
            origin=header.origin,
            starts={label: tuple(widths) for label, widths in header.starts.items()},
            lines=tuple(read_line(line, episodes.name) for line in lines),
            timings=tuple(Timing(clock.seconds, clock.host, clock.retries) for clock in clocks),
            searcher=SearcherState(arrays, header.numbers),
            image_forwards=header.image_forwards,
            evaluations=header.evaluations,
            elapsed=header.elapsed,
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"a run can be resumed from an undamaged snapshot only, but {str(path)!r} is not usable "
            f"({type(error).__name__}: {error}): start again with `amc search {path.parent / 'config.toml'} --out NEW`"
        ) from error


def _read_header(path: Path) -> tuple[SnapshotHeader, dict[str, NDArray[Any]]]:
    """The header, and what the searcher has learned."""
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get("snapshot", "")
        data = parse_json(text, path.name, "a snapshot's header")
        header = validated(SnapshotHeader, data, path.name, "a snapshot's header")
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (KeyError, TypeError, AttributeError) as error:  # a kind of number that numpy does not have
            raise ValueError(f"its arrays are not readable ({type(error).__name__}: {error})") from error
    return header, arrays


def _read_lines(path: Path, count: int) -> list[Any]:
    """The first lines of a file, each a JSON text."""
    with path.open(encoding="utf-8") as file:
        lines = [parse_json(line, path.name, "a line") for line in islice(file, count)]
    if len(lines) < count:
        raise ValueError(f"{path.name} holds {len(lines)} of {count} lines")
    return lines
