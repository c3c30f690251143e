"""Digests over what belongs together, by which a change made by anybody else is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(document: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]] | None = None) -> str:
    """SHA-256 of a JSON-ready document and of named arrays: values, types, shapes and names."""
    found = hashlib.sha256(_canonical(document))
    for name, array in sorted((arrays or {}).items()):
        found.update(_canonical([name, array.dtype.str, list(array.shape)]))
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
