"""Where a search stands after a round, and the one file that holds it: what resume starts from.

The file is the truth (law 2 of docs/architecture.md): safetensors for what the searcher has learned, JSON in its
header for the rest. Episodes stand beside it in `episodes.jsonl`; the file says how many of them count.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from agents.searcher import SearcherState
from amc.pool.pool import Timing
from amc.search.episode import read_line
from amc.search.state import Snapshot
from amc.storage.files import write_bytes
from envs.measure import ACCURACY, Measure

SCHEMA_VERSION = 1


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
        "metric": _measure(snapshot).to_json(),
    }
    write_bytes(path, safetensors.numpy.save(snapshot.searcher.arrays, metadata={"snapshot": json.dumps(header)}))


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
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["snapshot"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if header["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {header['schema_version']}, not {SCHEMA_VERSION}")
        lines = [json.loads(line) for line in episodes.read_text(encoding="utf-8").splitlines()[: header["episodes"]]]
        clocks = [json.loads(line) for line in timings.read_text(encoding="utf-8").splitlines()[: header["episodes"]]]
        if len(lines) < header["episodes"]:
            raise ValueError(f"{episodes.name} holds {len(lines)} of {header['episodes']} episodes")
        return Snapshot(
            origin=header["origin"],
            starts={label: tuple(widths) for label, widths in header["starts"].items()},
            lines=tuple(read_line(line, Measure.from_json(header.get("metric"))) for line in lines),
            timings=tuple(Timing(clock["seconds"], clock["host"], clock["retries"]) for clock in clocks),
            searcher=SearcherState(arrays, header["numbers"]),
            image_forwards=header["image_forwards"],
            evaluations=header["evaluations"],
            elapsed=header["elapsed"],
        )
    except (OSError, UnicodeDecodeError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"a run can be resumed from an undamaged snapshot only, but {str(path)!r} is not usable "
            f"({type(error).__name__}: {error}): start again with `amc search {path.parent / 'config.toml'} --out NEW`"
        ) from error


def _measure(snapshot: Snapshot) -> Measure:
    """What the metric of the episodes says."""
    return next((episode.evaluation.measure for episode in snapshot.episodes), ACCURACY)
