"""The run folder: what a search writes, atomically, and nothing else knows its file names."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray

from amc.config.search import SearchConfig, load_config
from amc.export.applied import POLICY, WEIGHTS
from amc.profiling.layer_times import LayerTime
from amc.profiling.timing import Timing
from amc.runs.snapshot import read_snapshot, write_snapshot
from amc.search.episode import Episode, Failure
from amc.search.result import SearchResult
from amc.search.state import Snapshot
from amc.storage.files import append_text, read_json, write_bytes, write_json, write_text

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CONFIG, RESULT, SNAPSHOT, SCORES = "config.toml", "result.json", "snapshot.safetensors", "scores.safetensors"
EPISODES, TIMINGS, REPORT, EVENTS = "episodes.jsonl", "timings.jsonl", "report.html", "tensorboard"
PACKAGES = ("amc", "torch", "numpy", "gymnasium", "stable-baselines3", "torch-pruning", "onnxruntime")


class RunFolder:
    """One run on disk; documented field by field in docs/run_folder.md. A `Watcher`."""

    def __init__(self, path: Path) -> None:
        """Names the folder; `create` and `reopen` make one ready."""
        self.path = path
        self._events: SummaryWriter | None = None
        self._logged = 0  # episodes that are in the events already
        self._written: int | None = None  # episodes that this process has written

    @classmethod
    def create(cls, path: Path, config: SearchConfig, *, fresh: bool = False) -> RunFolder:
        """Makes a folder for a new run, with the complete resolved configuration in it.

        Args:
            path: The folder.
            config: The configuration.
            fresh: Move a run that is already there aside (to PATH.1, PATH.2, ...) instead of refusing.

        Raises:
            ValueError: If it already holds a run, or cannot be written.
        """
        try:
            if any((path / name).exists() for name in (CONFIG, RESULT, EPISODES)):
                if not fresh:
                    raise ValueError(
                        f"a run needs a folder of its own, but {str(path)!r} already holds one: "
                        f"go on with it by `amc resume {path}`, choose another --out, or move it aside with --fresh"
                    )
                _move_aside(path)
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / EPISODES, "")
            write_text(path / CONFIG, config.to_toml())
        except OSError as error:
            raise ValueError(
                f"the run folder must be writable, but {str(path)!r} is not ({error.strerror or error}): "
                "choose another --out"
            ) from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            ValueError: If it holds none.
        """
        if not (path / CONFIG).is_file():
            raise ValueError(
                f"only a run can be resumed, but {str(path)!r} holds no {CONFIG}: "
                "name the folder that `amc search --out` wrote"
            )
        return cls(path)

    def config(self) -> SearchConfig:
        """The configuration of the run.

        Raises:
            ValueError: If it is damaged.
        """
        return load_config(self.path / CONFIG, {})

    def replace_config(self, config: SearchConfig) -> None:
        """Writes another configuration (a longer search)."""
        write_text(self.path / CONFIG, config.to_toml())

    def snapshot(self) -> Snapshot | None:
        """Where the run stopped; None before the first round's end.

        Raises:
            ValueError: If a file is damaged.
        """
        snapshot = read_snapshot(self.path / SNAPSHOT, self.path / EPISODES, self.path / TIMINGS)
        self._logged = len(snapshot.lines) if snapshot else 0
        return snapshot

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`, None if the run has not ended.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.path / RESULT
        return read_json(path, "a result") if path.exists() else None

    def round(self, snapshot: Snapshot) -> None:
        """Appends the round's episodes (seconds apart, so that equal runs have equal files), then the snapshot.

        The first round of a process writes all episodes: what a crash left behind those of the snapshot goes.
        """
        first = self._written or 0
        new = snapshot.lines[first:]
        lines = [json.dumps(episode.to_json(index)) for index, episode in enumerate(new, start=first)]
        clocks = [
            json.dumps({"episode": index, "seconds": round(seconds, 4), "host": host, "retries": retries})
            for index, (seconds, host, retries) in enumerate(snapshot.timings[first:], start=first)
        ]
        write = write_text if self._written is None else append_text
        write(self.path / EPISODES, "".join(line + "\n" for line in lines))
        write(self.path / TIMINGS, "".join(line + "\n" for line in clocks))
        self._written = len(snapshot.lines)
        write_snapshot(self.path / SNAPSHOT, snapshot)
        self._log(snapshot)

    def finish(
        self,
        result: SearchResult,
        latency: Mapping[str, Timing],
        layers: Mapping[str, Sequence[LayerTime]] | None = None,
    ) -> None:
        """Writes policy, weights, each sample's score and, last, the result."""
        write_json(self.path / POLICY, result.policy.to_json())
        state = {k: v.detach().clone().contiguous() for k, v in result.networks["found"].state_dict().items()}
        write_bytes(self.path / WEIGHTS, safetensors.torch.save(state))
        scores: dict[str, NDArray[Any]] = {}
        for name, report in result.reports.items():
            scores |= {f"{name}|{split}": each for split, each in report.each.items()}
            scores |= {f"{name}|{split}|resampled": values for split, values in report.resampled.items()}
        write_bytes(self.path / SCORES, safetensors.numpy.save(scores))
        write_json(self.path / RESULT, result.to_json(versions(), latency, layers))
        if self._events is not None:
            self._events.close()

    def _log(self, snapshot: Snapshot) -> None:
        """TensorBoard events of the episodes that are new, by episode."""
        from tensorboardX import SummaryWriter

        lines, first = snapshot.lines, self._logged
        if self._events is None:
            self._events = SummaryWriter(str(self.path / EVENTS), purge_step=first)
        best = max((line.reward for line in lines[:first] if isinstance(line, Episode)), default=float("-inf"))
        for step, episode in enumerate(lines[first:], start=first):
            if isinstance(episode, Failure):
                continue
            best = max(best, episode.reward)
            found = episode.evaluation
            values = {"reward": episode.reward, "best reward": best, found.measure.name: found.metric}
            costs = {f"costs/{name}": value for name, value in found.costs.items()}
            for name, value in (values | costs).items():
                self._events.add_scalar(name, value, step)
        self._events.flush()
        self._logged = len(lines)


def versions() -> dict[str, str]:
    """Versions of everything that could change a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _move_aside(path: Path) -> None:
    number = next(k for k in range(1, 10_000) if not path.with_name(f"{path.name}.{k}").exists())
    path.rename(path.with_name(f"{path.name}.{number}"))
