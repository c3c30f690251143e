"""The run folder: what a search writes, atomically, and nothing else knows its file names."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import safetensors.torch

from amc.config import SearchConfig
from amc.export import POLICY, WEIGHTS
from amc.files import write_bytes, write_json, write_text
from amc.rollout import Episode
from amc.search import SearchResult

CONFIG, RESULT = "config.toml", "result.json"
EPISODES, TIMINGS, REPORT = "episodes.jsonl", "timings.jsonl", "report.html"
PACKAGES = ("amc", "torch", "numpy", "gymnasium", "stable-baselines3", "torch-pruning", "onnxruntime")


class RunFolder:
    """Writes one run; documented field by field in docs/run_folder.md."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """Makes the folder.

        Args:
            path: The folder.
            fresh: Move a run that is already there aside (to PATH.1, PATH.2, ...) instead of refusing.

        Raises:
            ValueError: If it already holds a run, or cannot be written.
        """
        self.path = path
        try:
            if any((path / name).exists() for name in (CONFIG, RESULT, EPISODES)):
                if not fresh:
                    raise ValueError(
                        f"a run needs a folder of its own, but {str(path)!r} already holds one: "
                        "choose another --out, or move it aside with --fresh"
                    )
                _move_aside(path)
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / EPISODES, "")
        except OSError as error:
            raise ValueError(
                f"the run folder must be writable, but {str(path)!r} is not ({error.strerror or error}): "
                "choose another --out"
            ) from error

    def start(self, config: SearchConfig) -> None:
        """Writes the complete resolved configuration."""
        write_text(self.path / CONFIG, config.to_toml())

    def episodes(self, episodes: Sequence[Episode], best: Episode, seconds: Sequence[float]) -> None:
        """Writes all episodes so far; seconds apart, so that equal runs have equal files."""
        lines = [json.dumps(episode.to_json(index)) for index, episode in enumerate(episodes)]
        write_text(self.path / EPISODES, "".join(line + "\n" for line in lines))
        clocks = [json.dumps({"episode": index, "seconds": round(s, 4)}) for index, s in enumerate(seconds)]
        write_text(self.path / TIMINGS, "".join(line + "\n" for line in clocks))

    def finish(self, result: SearchResult, latency_ms: dict[str, float]) -> None:
        """Writes policy, weights and, last, the result."""
        write_json(self.path / POLICY, result.policy.to_json())
        state = {k: v.detach().clone().contiguous() for k, v in result.networks["found"].state_dict().items()}
        write_bytes(self.path / WEIGHTS, safetensors.torch.save(state))
        write_json(self.path / RESULT, result.to_json(versions(), latency_ms))


def versions() -> dict[str, str]:
    """Versions of everything that could change a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _move_aside(path: Path) -> None:
    number = next(k for k in range(1, 10_000) if not path.with_name(f"{path.name}.{k}").exists())
    path.rename(path.with_name(f"{path.name}.{number}"))
