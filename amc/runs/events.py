"""TensorBoard's events of a search: reward, best reward, accuracy and costs by episode.

They are written where they are asked for: the thread of tensorboardX's `SummaryWriter` dies on a full disk, and its
caller then waits for it for ever.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from amc.search.episode import Episode, Failure, Line
from amc.storage.files import explained


class Events:
    """A file of events; of two files that hold an episode, TensorBoard shows the later one."""

    def __init__(self, folder: Path, first: int) -> None:
        """Begins a file.

        Args:
            folder: Where; made if it is not there.
            first: The first episode that it holds.

        Raises:
            OSError: If it cannot be written.
        """
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._folder = folder
        with explained(folder):
            folder.mkdir(exist_ok=True)
            self._file = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{platform.node()}"))
            self._add(0, file_version="brain.Event:2")
            self._add(first, session_log=SessionLog(status=SessionLog.START))

    def write(self, lines: Sequence[Line], first: int) -> None:
        """Adds episodes.

        Args:
            lines: All episodes so far.
            first: The first of them that is new.

        Raises:
            OSError: If they cannot be written.
        """
        from tensorboardX.summary import Summary, scalar

        best = max((line.reward for line in lines[:first] if isinstance(line, Episode)), default=float("-inf"))
        with explained(self._folder):
            for step, episode in enumerate(lines[first:], start=first):
                if isinstance(episode, Failure):
                    continue
                best = max(best, episode.reward)
                values = {
                    "reward": episode.reward,
                    "best reward": best,
                    episode.evaluation.measure.name: episode.evaluation.metric,
                }
                costs = {f"costs/{name}": value for name, value in episode.evaluation.costs.items()}
                parts = [scalar(name, value).value[0] for name, value in (values | costs).items()]
                self._add(step, summary=Summary(value=parts))
            self._file.flush()

    def close(self) -> None:
        """Ends the file. What a full disk did not take has been told of before."""
        with suppress(OSError):
            self._file.close()

    def _add(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(step=step, wall_time=time.time(), **what).SerializeToString())
