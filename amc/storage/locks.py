"""One process at a time in a folder, or at a result of the cache; the system takes the lock back from who dies."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from amc.storage.files import remove_leftovers

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the lock in a folder that is held; it is removed with the hold."""


@contextmanager
def held(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Keeps other processes out of a folder, and removes what a killed one has left half written there.

    Args:
        folder: Made if it is not there.
        seconds: How long a holder is waited for.

    Raises:
        ValueError: If another process holds it; names that process.
    """
    with suppress(OSError):  # whoever writes there is told why it cannot be
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    try:
        with locked(path, seconds):
            remove_leftovers(folder)
            yield
    except Timeout as error:
        if error.lock_file != str(path):  # another one, taken in between
            raise
        raise ValueError(
            f"a folder is one process's at a time, but {str(folder)!r} is in use by {_holder(path)}: "
            "wait for it, stop it, or choose another folder"
        ) from error


@contextmanager
def locked(path: Path, seconds: float = -1.0) -> Iterator[None]:
    """Holds a lock while the block runs. Where there are no locks (some network file systems) nobody is kept out.

    Args:
        path: The lock's file, which says who holds it.
        seconds: How long another holder is waited for; negative: as long as it takes.

    Raises:
        Timeout: If another one holds it for longer.
    """
    lock = FileLock(path, fallback_to_soft=False)
    mine = None
    try:
        lock.acquire(timeout=seconds)
        mine = _signed(path)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        logger.info("no lock %s: %s", path, error)
    try:
        yield
    finally:
        with suppress(OSError):
            if mine is not None and os.path.samestat(mine, path.stat()):  # its folder may have been moved
                path.unlink()
        lock.release()


def _signed(path: Path) -> os.stat_result:
    """Writes down who holds a lock, for those who find it held."""
    with suppress(OSError):  # such as a full disk
        path.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    return path.stat()


def _holder(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip() or "another process"
    return "another process"
