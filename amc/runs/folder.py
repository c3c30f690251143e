"""The run folder: what a search writes, atomically, and nothing else knows its file names."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Container, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray

from amc.config.search import SearchConfig, load_config
from amc.export.applied import FINETUNING, POLICY, WEIGHTS
from amc.export.structure import STRUCTURE, write_structure
from amc.runs.events import Events
from amc.runs.result_file import read_result
from amc.runs.snapshot import Altered, read_snapshot, write_snapshot
from amc.search.episode import Line
from amc.search.result import FINETUNED, SearchResult
from amc.search.state import Snapshot
from amc.storage.digests import digest, digest_of
from amc.storage.files import append_text, json_text, move_aside, write_bytes, write_json, write_text
from envs.network.outputs import unselected

CONFIG, RESULT, SNAPSHOT, SCORES = "config.toml", "result.json", "snapshot.safetensors", "scores.safetensors"
EPISODES, TIMINGS, REPORT, EVENTS = "episodes.jsonl", "timings.jsonl", "report.html", "tensorboard"
PREVIOUS = "snapshot.previous.safetensors"
SEALED = (POLICY, WEIGHTS, SCORES)
"""What a run that has ended has written, whose digests its result holds."""
PACKAGES = ("amc", "torch", "numpy", "gymnasium", "stable-baselines3", "torch-pruning", "onnxruntime")


class RunFolder:
    """One run on disk; documented field by field in docs/run_folder.md. A `Watcher`."""

    def __init__(self, path: Path) -> None:
        """Names the folder; `amc.runs.opening` makes one ready."""
        self.path = path
        self._events: Events | None = None
        self._logged = 0  # episodes that are in the events already
        self._written: int | None = None  # episodes that this process has written
        self._saved = 0  # episodes of the snapshot on disk
        self._configurations: list[str] = []  # digests of what `config.toml` may be
        self._played = hashlib.sha256()  # of the episodes written

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> RunFolder:
        """Makes a folder for a new run, with the complete resolved configuration in it.

        Raises:
            ValueError: If it cannot be written.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder.replace_config(config)
            write_text(path / EPISODES, "")
        except OSError as error:
            raise ValueError(
                f"the run folder must be writable, but {str(path)!r} is not ({error.strerror or error}): "
                "choose another --out"
            ) from error
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            ValueError: If it holds none.
        """
        if not (path / CONFIG).is_file():
            inside = sorted(str(one.parent) for one in path.glob(f"*/{CONFIG}"))
            cure = (
                f"name a run in it ({', '.join(inside)})" if inside else "name the folder that `amc search --out` wrote"
            )
            raise ValueError(f"only a run can be resumed, but {str(path)!r} holds no {CONFIG}: {cure}")
        folder = cls(path)
        folder._configurations = [digest((path / CONFIG).read_bytes())]
        return folder

    def config(self) -> SearchConfig:
        """The configuration of the run.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.path / CONFIG
        try:
            return load_config(path, {})
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{error} (in {str(path)!r})") from error

    def replace_config(self, config: SearchConfig, snapshot: Snapshot | None = None) -> None:
        """Writes another configuration (a longer search).

        Args:
            config: The configuration.
            snapshot: Where the run stands, if it has begun; until the next round it goes with both configurations.
        """
        text = config.to_toml()
        before, after = self._configurations[-1:], digest(text.encode())
        if before == [after]:
            return
        self._configurations = [*before, after]
        if snapshot is not None:
            self._write_snapshot(snapshot, digest(_lines(snapshot.lines).encode()))
        write_text(self.path / CONFIG, text)
        self._configurations = [after]

    def snapshot(self) -> Snapshot | None:
        """Where the run stopped; None before the first round's end.

        Raises:
            ValueError: If a file is damaged, altered, or missing beside those that are there; names the file, and
                how to go on.
        """
        try:
            snapshot = self._read(SNAPSHOT) if self._begun() else None
        except Altered as error:
            raise ValueError(f"{error}{self._cure(error.path)}") from error
        if snapshot is not None:
            self._saved = len(snapshot.lines)
            self._logged = self._saved if (self.path / EVENTS).is_dir() else 0
        return snapshot

    def step_back(self) -> None:
        """Takes the run back to the round before its last one.

        Raises:
            ValueError: If that round is not kept, or is damaged.
        """
        if not (self.path / PREVIOUS).exists():
            raise ValueError(
                f"a run keeps the round before its last one, but {str(self.path)!r} has none: "
                f"{self._start_again()}, or go on without --previous"
            )
        try:
            self._read(PREVIOUS)
        except Altered as error:
            raise ValueError(f"{error}: {self._start_again()}") from error
        os.replace(self.path / PREVIOUS, self.path / SNAPSHOT)

    def _read(self, name: str) -> Snapshot:
        return read_snapshot(self.path / name, self.path / CONFIG, self.path / EPISODES, self.path / TIMINGS)

    def _begun(self) -> bool:
        """Whether there must be a snapshot: what was killed in its first round has none, and nothing of a later one."""
        if any((self.path / name).exists() for name in (SNAPSHOT, PREVIOUS, RESULT)):
            return True
        try:
            played = (self.path / EPISODES).read_bytes().count(b"\n")
        except OSError:
            return False
        return played > self.config().round_size

    def _cure(self, damaged: Path) -> str:
        """How to go on from a damaged file, as the end of a message."""
        if damaged.name == CONFIG:
            return ""
        try:
            self._read(PREVIOUS)
        except Altered:
            return f": {self._start_again()}"
        return f": `amc resume {self.path} --previous` goes on from the round before the last one"

    def _start_again(self) -> str:
        return f"start again with `amc search {self.path / CONFIG} --out NEW`"

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`, None if the run has not ended.

        Raises:
            ValueError: If it is damaged or altered.
        """
        path = self.path / RESULT
        if not path.exists():
            return None
        found = read_result(path)
        digests = found.get("digests") if isinstance(found, dict) else None
        if not isinstance(digests, dict) or digests.get(RESULT) != _digest_of_result(found):
            raise ValueError(f"{Altered(path, 'holds other values than were written')}: {_remove(RESULT)}")
        return found

    def owed(self, result: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of what a run that has ended promises and is not there.

        Args:
            result: The content of `result.json`.

        Raises:
            ValueError: If a file is not the one that the run wrote.
        """
        missing = [name for name in (*SEALED, REPORT, EVENTS) if not (self.path / name).exists()]
        for name in (EPISODES, *SEALED):
            path = self.path / name
            if name not in missing and digest(path.read_bytes()) != result["digests"][name]:
                altered = RESULT if name == EPISODES else name  # the snapshot has told that episodes are the run's
                raise ValueError(f"{Altered(path, f'is not what {RESULT} says')}: {_remove(altered)}")
        return tuple(missing)

    def round(self, snapshot: Snapshot) -> None:
        """Appends the round's episodes (seconds apart, so that equal runs have equal files), then the snapshot.

        The first round of a process writes all episodes: what a crash left behind those of the snapshot goes.
        """
        first = self._written or 0
        lines = _lines(snapshot.lines[first:], first)
        clocks = [
            json.dumps({"episode": index, "seconds": round(seconds, 4), "host": host, "retries": retries})
            for index, (seconds, host, retries) in enumerate(snapshot.timings[first:], start=first)
        ]
        write = write_text if self._written is None else append_text
        write(self.path / EPISODES, lines)
        write(self.path / TIMINGS, "".join(line + "\n" for line in clocks))
        self._played.update(lines.encode())
        self._written = len(snapshot.lines)
        if 0 < self._saved < self._written:
            _keep(self.path / SNAPSHOT, self.path / PREVIOUS)
        self._write_snapshot(snapshot, self._played.hexdigest())
        self.log(snapshot)

    def _write_snapshot(self, snapshot: Snapshot, episodes: str) -> None:
        write_snapshot(self.path / SNAPSHOT, snapshot, self._configurations, episodes)
        self._saved = len(snapshot.lines)

    def standing(self) -> str:
        """How far the run is, and how to go on with it; for people."""
        saved = f"{self._saved} episodes are saved" if self._saved else "no round has ended yet"
        return f"{saved} in {self.path}: `amc resume {self.path}` goes on"

    def finish(
        self, result: SearchResult, document: Mapping[str, Any], names: Container[str] = SEALED
    ) -> Mapping[str, Any]:
        """Writes policy, weights, each image's score and, last, the result; returns the content of the latter.

        Args:
            result: What was found.
            document: The content of `result.json`, without digests; one that has them stands there already.
            names: Which of the others are written.

        Raises:
            ValueError: If one that is written again differs from what it was.
        """
        state = {k: v.detach().clone().contiguous() for k, v in result.networks["found"].state_dict().items()}
        scores: dict[str, NDArray[Any]] = {}
        for name, report in result.reports.items():
            scores |= {f"{name}|{split}": each for split, each in report.each.items()}
            scores |= {f"{name}|{split}|resampled": values for split, values in report.resampled.items()}
        products = {
            POLICY: json_text(result.policy.to_json()).encode(),
            WEIGHTS: safetensors.torch.save(state),
            SCORES: safetensors.numpy.save(scores),
        }
        digests = {name: digest(data) for name, data in products.items()}
        if "digests" in document:
            self._check_again(digests, document["digests"])
        else:
            (self.path / RESULT).unlink(missing_ok=True)  # it says that all of this is there
            if (self.path / FINETUNING).exists():  # of what was found before
                move_aside(self.path / FINETUNING)
            digests[EPISODES] = self._played.hexdigest()
            document = json.loads(json.dumps({**document, "digests": digests}))
            document["digests"][RESULT] = _digest_of_result(document)
        for name in (name for name in products if name in names):
            write_bytes(self.path / name, products[name])
        if WEIGHTS in names or not (self.path / STRUCTURE).exists():
            write_structure(unselected(result.networks["found"]), self.path / STRUCTURE)
        if not (self.path / RESULT).exists():
            write_json(self.path / RESULT, document)
        return document

    def add_finetuned(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Adds what training came to; the report, which lacks it, goes. Returns the content of the result.

        Raises:
            OSError: If it cannot be written; the earlier result still stands then.
        """
        document = json.loads(json.dumps({**(self.result() or {}), FINETUNED: entry}))
        document["digests"][RESULT] = _digest_of_result(document)
        (self.path / REPORT).unlink(missing_ok=True)
        write_json(self.path / RESULT, document)
        return document  # type: ignore[no-any-return]

    def _check_again(self, digests: Mapping[str, str], stored: Mapping[str, str]) -> None:
        for name, value in digests.items():
            if value != stored[name]:
                raise ValueError(
                    f"{name} must be the same when it is written again, but is not: "
                    f"it needs the processor and the versions that {RESULT} names"
                )

    def log(self, snapshot: Snapshot) -> None:
        """TensorBoard events of the episodes that are new."""
        self._events = self._events or Events(self.path / EVENTS, self._logged)
        self._events.write(snapshot.lines, self._logged)
        self._logged = len(snapshot.lines)

    def close(self) -> None:
        """Ends the file of events."""
        if self._events is not None:
            self._events.close()


def versions() -> dict[str, str]:
    """Versions of everything that could change a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _remove(name: str) -> str:
    return f"remove {name}, and `amc resume` writes it again"


def _lines(lines: Sequence[Line], first: int = 0) -> str:
    """Episodes as they stand in `episodes.jsonl`, the first of them under the number `first`."""
    return "".join(json.dumps(line.to_json(index)) + "\n" for index, line in enumerate(lines, start=first))


def _keep(path: Path, kept: Path) -> None:
    """Gives a file a second name, under which it stays when the first is replaced."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        write_bytes(kept, path.read_bytes())


def _digest_of_result(result: Mapping[str, Any]) -> str:
    digests = {name: value for name, value in result["digests"].items() if name != RESULT}
    return digest_of({**result, "digests": digests})
