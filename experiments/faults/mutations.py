"""Malformed files from valid ones: JSON and TOML trees, texts, safetensors, state dicts, archives of arrays.

What reads them, and how that ends, stands in `documents.py`.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tomli_w
import torch

Random = random.Random
CODE = "amc_canary:called"
"""Names a module that tells when it is imported."""

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 0.5, -0.5, 1e308, 1e-320, 2**31, 2**63, 10**30, float("nan"), float("inf")),
    *("", "x" * 10_000, "[/x]", "[bold]x", "a\nb", "\u0000", "\ud800", "é", "../../x", "1e999", "unstructured:inf"),
    *(
        "2:4",
        "4:2",
        CODE,
        f"({CODE})",
        [],
        {},
        [[]],
        [None],
        [1, 2, 3],
        {"": 0},
        {"first": 0, "size": 1, "rows": 10**15},
    ),
    *({"first": 0, "size": 2**31, "rows": 8}, {"first": 1e308, "size": 1, "rows": 1}, [CODE], {"task": CODE}),
)


def nested(depth: int) -> Any:
    """Lists within each other."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def changed_tree(rng: Random, data: Any) -> Any:
    """A tree with one to three places changed: another value, removed, doubled, renamed, exchanged, numbers moved."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = places(data)
        if not known:
            return rng.choice(ODD)
        by_depth = rng.choice(known[: max(1, len(known) // 8)]) if rng.random() < 0.3 else rng.choice(known)
        CHANGES[rng.randrange(len(CHANGES))](rng, *by_depth, known)
    return data


def _put(rng: Random, home: Any, key: Any, known: Any) -> None:
    home[key] = copy.deepcopy(rng.choice(ODD))


def _move(rng: Random, home: Any, key: Any, known: Any) -> None:
    value = home[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        home[key] = nested(rng.choice((3, 40)))
        return
    home[key] = rng.choice((value + 1, value - 1, -value, value * 1000, float(value), value / 3, value * 10**12))


def _remove(rng: Random, home: Any, key: Any, known: Any) -> None:
    del home[key]


def _add(rng: Random, home: Any, key: Any, known: Any) -> None:
    value = copy.deepcopy(home[key])
    if isinstance(home, dict):
        home[rng.choice(("extra", f"{key}_", "task", "reward"))] = rng.choice((value, CODE))
    else:
        home.insert(key, value)


def _rename(rng: Random, home: Any, key: Any, known: Any) -> None:
    if isinstance(home, dict):
        home[rng.choice((f"{key}x", "", key.upper(), "[/x]"))] = home.pop(key)
    else:
        home.reverse()


def _exchange(rng: Random, home: Any, key: Any, known: Any) -> None:
    other, place = rng.choice(known)
    home[key] = copy.deepcopy(other[place]) if place in other or (isinstance(other, list) and place < len(other)) else 0


CHANGES: tuple[Callable[..., None], ...] = (_put, _put, _put, _move, _remove, _add, _rename, _exchange)


def changed_bytes(rng: Random, content: bytes) -> bytes:
    """Truncated, flipped, doubled, or with something inserted."""
    at = rng.randrange(len(content) + 1)
    kind = rng.randrange(7)
    if kind == 0:
        return content[:at]
    if kind == 1:
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 64))):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        return bytes(flipped)
    if kind == 2:
        return content[:at] + content[at // 2 :]
    if kind == 3:
        return content[:at] + rng.choice((b"[" * 100_000, b"{" * 3000, b'{"a":' * 50_000)) + content[at:]
    if kind == 4:
        return (
            content[:at] + rng.choice((b"NaN", b"Infinity", b"1e999", b"\0", b"\xff\xfe", b"9" * 5000)) + content[at:]
        )
    if kind == 5:
        return rng.choice((b"", b"\xef\xbb\xbf" + content, content[at:], b"null", b"[]", b"0", b"a." * 50_000 + b"b=1"))
    end = content.find(b"\n", at)
    return content[:at] if end < 0 else content[:at] + content[end:]


def changed_json(rng: Random, content: bytes) -> bytes:
    """A JSON file, changed as a tree or as bytes."""
    if rng.random() < 0.25:
        return changed_bytes(rng, content)
    return json.dumps(changed_tree(rng, json.loads(content))).encode("utf-8", "surrogatepass")


def changed_lines(rng: Random, content: bytes) -> bytes:
    """A file of JSON lines with one of them changed, or lines removed, doubled or exchanged."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines[at], lines[0] = lines[0], lines[at]
    else:
        lines[at] = changed_json(rng, lines[at]).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def changed_toml(rng: Random, content: bytes) -> bytes:
    """A TOML file, changed as a tree or as bytes."""
    import tomllib

    if rng.random() < 0.75:
        try:
            return tomli_w.dumps(changed_tree(rng, tomllib.loads(content.decode()))).encode()
        except (TypeError, ValueError, AttributeError):
            pass  # no TOML can hold that value
    return changed_bytes(rng, content)


def changed_safetensors(rng: Random, content: bytes) -> bytes:
    """A safetensors file with another header (names, shapes, types, offsets), another length, or other bytes."""
    if rng.random() < 0.3:
        return changed_bytes(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    kind = rng.randrange(6)
    if kind == 0 and len(names) > 1:
        one, other = rng.sample(names, 2)
        header[one], header[other] = header[other], header[one]
    elif kind == 1 and names:
        header[rng.choice(("x", "[/x]", names[0] + ".y", ""))] = header.pop(rng.choice(names))
    elif kind == 2 and names:
        header[rng.choice(names)]["shape"] = rng.choice(([10**9], [2**62, 2**62], [-1], [], [0], [1] * 70, "x"))
    elif kind == 3 and names:
        header[rng.choice(names)]["dtype"] = rng.choice(("F64", "I64", "BF16", "F8_E4M3", "BOOL", "X", 3))
    elif kind == 4 and "__metadata__" in header:
        inner = header["__metadata__"]
        key = rng.choice(list(inner))
        inner[key] = changed_json(rng, inner[key].encode()).decode("utf-8", "replace")
    else:
        header = changed_tree(rng, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    wrong = rng.choice((0, 0, 0, 0, 1, -1, 2**40, 2**63))
    return struct.pack("<Q", (len(text) + wrong) % 2**64) + text + body


def changed_state(rng: Random, state: dict[str, torch.Tensor]) -> bytes:
    """A torch state dict with something else in it, saved by torch, or such a file with other bytes."""
    content: dict[Any, Any] = dict(state)
    key = rng.choice(list(content))
    value = content[key].float()
    odd: tuple[Any, ...] = (
        *(value.to_sparse(), torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), value.to(torch.complex64)),
        *(value.half(), value.long(), value * float("nan"), torch.zeros(1).expand(10**9), torch.zeros(0), None, "x", 3),
        *(
            nested(40),
            {"a": value},
            value.to("meta"),
            value.t() if value.ndim == 2 else value[None],
            value.to(torch.bool),
        ),
    )
    kind = rng.randrange(6)
    if kind == 0:
        content[rng.choice((1, (1, 2), key + "x", "[/x]"))] = content.pop(key)
    elif kind == 1:
        del content[key]
    elif kind < 5:
        content[key] = rng.choice(odd)
    whole = rng.choice((content, content, {"state_dict": content}, {"model": {"state_dict": content}}, [content]))
    buffer = io.BytesIO()
    torch.save(whole, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    saved = buffer.getvalue()
    return changed_bytes(rng, saved) if kind == 5 else saved


def changed_npz(rng: Random, arrays: dict[str, np.ndarray]) -> bytes:
    """An archive of arrays whose headers say something else, or with other bytes."""
    name = rng.choice(list(arrays))
    shapes = ((10**9,), (10**12, 32), (2**40, 2**40), (), (0,), (-1,), (3, 32, 32, 3))
    shape, dtype = rng.choice(shapes), rng.choice(("|u1", "<i8", "|O", "<f4", "<U10", "<M8[s]"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, array in arrays.items():
            body = io.BytesIO()
            np.save(body, array)
            data = body.getvalue()
            if key == name:
                text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
                data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data[128:]
            if rng.random() < 0.1:
                data += bytes(2 * 10**7)  # compressed it takes no room
            archive.writestr(key + ".npy", data)
    content = buffer.getvalue()
    return changed_bytes(rng, content) if rng.random() < 0.3 else content
