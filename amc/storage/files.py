"""Atomic files: written beside, fsynced, renamed, so that a reader sees the old file or the new one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hw_profiles.documents import parse_json, read_text


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` atomically.

    Raises:
        OSError: If the folder cannot be written or the disk is full; the old file is still there then.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Replaces a JSON file atomically; NaN is refused."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


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
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
