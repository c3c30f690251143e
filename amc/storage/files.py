"""Atomic files: written beside, fsynced, renamed, so that a reader sees the old file or the new one."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hw_profiles.documents import parse_json, read_text

UNFINISHED = ".unfinished"
"""End of the name of a file that is being written."""
CURES = {
    errno.ENOSPC: "make room on the disk, and repeat",
    errno.EDQUOT: "make room within your quota, and repeat",
    errno.EACCES: "allow writing there, or name another place",
    errno.EPERM: "allow writing there, or name another place",
    errno.EROFS: "name a place that is not read-only",
    errno.ENOENT: "make its folder first",
}
"""Error of the system -> what helps."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` atomically.

    Raises:
        OSError: If the folder cannot be written or the disk is full; the old file is still there then.
    """
    with explained(path):
        remove_leftovers(path.parent, path.name)
        handle, temporary = _begun(path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o644)  # mkstemp makes private files
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes what killed processes have left half written; what others are writing now is locked, and stays.

    Args:
        folder: Where.
        name: Of the file that was being written; "": of any file.
    """
    beginning = f".{name}." if name else "."
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(beginning) and path.name.endswith(UNFINISHED):
                _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR)
        try:
            if _lock(handle):
                path.unlink()
        finally:
            os.close(handle)


def _begun(path: Path) -> tuple[int, str]:
    """An open, locked file beside `path`, whose name says what it will become."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            _lock(handle)
            if os.fstat(handle).st_nlink:  # not taken for left behind between being made and being locked
                return handle, temporary
        except OSError:  # no locks here, so that nobody removes it either
            return handle, temporary
        os.close(handle)


if sys.platform == "win32":

    def _lock(handle: int) -> bool:
        return True  # nobody can remove a file there that is open

else:
    import fcntl

    def _lock(handle: int) -> bool:
        """Locks a file for as long as it is open; False where another process has.

        Raises:
            OSError: If there are no locks.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says of an error of the system which file could not be written, and what helps."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        cure = CURES.get(error.errno or 0, "look at the disk and its rights, and repeat")
        raise OSError(error.errno, f"{str(path)!r} must be written, but cannot be ({what}): {cure}") from error


def move_aside(path: Path) -> Path:
    """Renames a file or folder to PATH.1, PATH.2, ...; its new place."""
    number = next(k for k in range(1, 10_000) if not path.with_name(f"{path.name}.{k}").exists())
    return path.rename(path.with_name(f"{path.name}.{number}"))


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Replaces a JSON file atomically; NaN is refused."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, what: str) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        what: What it should be ("a policy"), for the message.

    Raises:
        ValueError: If it is missing, unreadable or no complete JSON, or breaks a law of `hw_profiles.documents`.
    """
    return parse_json(read_text(path, what, "JSON file"), str(path), what)


def append_text(path: Path, text: str) -> None:
    """Adds lines at a file's end, on the disk when this returns; a crash in between may leave a part of them."""
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
