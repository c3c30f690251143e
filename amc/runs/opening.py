"""A run folder, new or of an earlier run, that one process holds for as long as it works there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from amc.config.search import SearchConfig
from amc.runs.folder import CONFIG, EPISODES, RESULT, RunFolder
from amc.storage.files import move_aside
from amc.storage.locks import LOCK, held


@contextmanager
def begun(path: Path, config: SearchConfig, *, fresh: bool = False, seconds: float = 0.0) -> Iterator[RunFolder]:
    """A folder for a new run, held while the block runs.

    Args:
        path: The folder.
        config: The configuration.
        fresh: Move a run that is already there aside (to PATH.1, PATH.2, ...) instead of refusing.
        seconds: How long another process that holds it is waited for.

    Raises:
        ValueError: If it already holds a run, another process holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(held(path, seconds))
        if any((path / name).exists() for name in (CONFIG, RESULT, EPISODES)):
            if not fresh:
                raise ValueError(
                    f"a run needs a folder of its own, but {str(path)!r} already holds one: "
                    f"go on with it by `amc resume {path}`, choose another --out, or move it aside with --fresh"
                )
            (move_aside(path) / LOCK).unlink(missing_ok=True)
            stack.enter_context(held(path))
        yield stack.enter_context(closing(RunFolder.create(path, config)))


@contextmanager
def reopened(path: Path, seconds: float = 0.0) -> Iterator[RunFolder]:
    """The folder of an earlier run, held while the block runs.

    Raises:
        ValueError: If it holds none, or another process holds it for longer than `seconds`.
    """
    RunFolder.reopen(path)  # nothing is made where there is none
    with held(path, seconds), closing(RunFolder.reopen(path)) as folder:
        yield folder
