"""Results on disk by what determines them (weights, data, settings): the next budget costs seconds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from amc.storage.files import remove_leftovers, write_bytes
from amc.storage.locks import locked

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$AMC_CACHE`, else `amc` in the user's cache folder."""
    if "AMC_CACHE" in os.environ:
        return Path(os.environ["AMC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "amc"


def cached_tensors(kind: str, key: Mapping[str, object], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Named tensors from the cache, or computed and kept. A cache that cannot be used is only logged.

    Args:
        kind: Prefix of the file name.
        key: Everything that determines the result, JSON-ready.
        compute: Makes the tensors.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{kind}-{digest[:32]}.safetensors"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    if (found := _read(path)) is not None:
        return found
    # One process at a time computes a result, as the trials of a sweep ask for the same ones at once. Without locks
    # everybody computes for himself, and the last one's file, equal to all others, stays.
    with locked(path.with_suffix(".lock")):
        if (found := _read(path)) is not None:  # by the process that was first
            return found
        tensors = compute()
        try:
            write_bytes(path, safetensors.torch.save(tensors))
        except OSError as error:
            logger.info("nothing is cached in %s: %s", path.parent, error)
        return tensors


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError):
        return None
