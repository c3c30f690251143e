"""Where a search stands after a round, and the one file that holds it: what resume starts from.

The file is the truth (law 2 of docs/architecture.md): safetensors for what the searcher has learned, JSON in its
header for the rest. Episodes stand beside it in `episodes.jsonl`; the file says how many of them count. Its digests
tell whether it, these episodes and the configuration are as they were written; seconds are outside of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from agents.searcher import SearcherState
from amc.pool.pool import Timing
from amc.search.episode import Line, read_line
from amc.search.state import Snapshot
from amc.storage.digests import digest, digest_of
from amc.storage.files import write_bytes
from envs.measure import ACCURACY, Measure
from hw_profiles.documents import one_line, parse_json

SCHEMA_VERSION = 2
UNKNOWN = Timing(0.0, "", 0)
"""Of an episode whose timing was lost."""


class Altered(ValueError):
    """A file of a run is not as the run wrote it.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, how: str) -> None:
        """Takes the file, and what is wrong with it."""
        super().__init__(f"a run goes on from its files as it wrote them, but {str(path)!r} {how}")
        self.path = path


def write_snapshot(path: Path, snapshot: Snapshot, configurations: Sequence[str], episodes: str) -> None:
    """Replaces a snapshot's file atomically.

    Args:
        path: The file.
        snapshot: Where the search stands.
        configurations: Digests of the configuration's file that may stand beside it.
        episodes: Digest of the lines of `episodes.jsonl` that count.

    Raises:
        OSError: If it cannot be written; the old file is still there then.
    """
    header = {
        "schema_version": SCHEMA_VERSION,
        "configurations": list(configurations),
        "episodes_digest": episodes,
        "origin": snapshot.origin,
        "starts": {label: list(widths) for label, widths in snapshot.starts.items()},
        "episodes": len(snapshot.lines),
        "numbers": snapshot.searcher.numbers,
        "image_forwards": snapshot.image_forwards,
        "evaluations": snapshot.evaluations,
        "metric": _measure(snapshot).to_json(),
    }
    arrays = snapshot.searcher.arrays
    sealed = digest_of(json.loads(json.dumps(header)), arrays)  # as it will be read
    whole = {**header, "digest": sealed, "elapsed": snapshot.elapsed}
    write_bytes(path, safetensors.numpy.save(arrays, metadata={"snapshot": json.dumps(whole)}))


def read_snapshot(path: Path, config: Path, episodes: Path, timings: Path) -> Snapshot:
    """Reads a snapshot back.

    Args:
        path: The snapshot's file.
        config: The configuration beside it.
        episodes: `episodes.jsonl`; lines beyond the snapshot are left out.
        timings: `timings.jsonl`; a line that is lost counts as no time.

    Raises:
        Altered: If a file is damaged, is not of this run, or of another version.
    """
    header, arrays = _read(path)
    if digest(_bytes(config)) not in header["configurations"]:
        raise Altered(config, f"is not the configuration that {path.name} goes with: put back what was changed")
    lines = _bytes(episodes).splitlines(keepends=True)[: header["episodes"]]
    if len(lines) < header["episodes"]:
        raise Altered(episodes, f"holds {len(lines)} of {header['episodes']} episodes")
    if digest(b"".join(lines)) != header["episodes_digest"]:
        raise Altered(episodes, "holds other episodes than were played")
    return Snapshot(
        origin=header["origin"],
        starts={label: tuple(widths) for label, widths in header["starts"].items()},
        lines=_episodes(episodes, lines, Measure.from_json(header["metric"])),
        timings=_timings(timings, len(lines)),
        searcher=SearcherState(arrays, header["numbers"]),
        image_forwards=header["image_forwards"],
        evaluations=header["evaluations"],
        elapsed=header["elapsed"],
    )


def _episodes(path: Path, lines: Sequence[bytes], measure: Measure) -> tuple[Line, ...]:
    """What was played."""
    try:
        return tuple(read_line(parse_json(line.decode(), path.name, "a line"), path.name, measure) for line in lines)
    except ValueError as error:
        raise Altered(path, f"cannot be read ({one_line(error)})") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a snapshot, as they were written."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = parse_json((file.metadata() or {}).get("snapshot", ""), path.name, "a snapshot's header")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if header["schema_version"] != SCHEMA_VERSION:
            raise Altered(path, f"has schema_version {header['schema_version']!r:.20}, not {SCHEMA_VERSION}")
        sealed = {key: value for key, value in header.items() if key not in ("digest", "elapsed")}
        if header["digest"] != digest_of(sealed, arrays) or not 0 <= header["elapsed"] < math.inf:
            raise Altered(path, "holds other values than were written")
    except Altered:
        raise
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Altered(path, f"cannot be read ({type(error).__name__}: {one_line(error)})") from error
    return header, arrays


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Altered(path, f"cannot be read ({error.strerror})") from error


def _timings(path: Path, count: int) -> tuple[Timing, ...]:
    """What each episode took; nothing but the clock depends on it."""
    lines = path.read_bytes().splitlines()[:count] if path.is_file() else []
    return (*map(_timing, lines), *[UNKNOWN] * (count - len(lines)))


def _timing(line: bytes) -> Timing:
    try:
        clock = json.loads(line)
        return Timing(float(clock["seconds"]), str(clock["host"]), int(clock["retries"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return UNKNOWN


def _measure(snapshot: Snapshot) -> Measure:
    """What the metric of the episodes says."""
    return next((episode.evaluation.measure for episode in snapshot.episodes), ACCURACY)
