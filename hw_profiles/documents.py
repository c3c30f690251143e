"""Documents from outside: JSON and TOML of bounded size and depth, checked by a model; whatever is wrong is one line.

Everything that anybody may have written is read here: policies, recipes, run folders, profiles, what devices bring.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA_VERSION: Literal[1] = 1

MAX_BYTES, MAX_TOML_BYTES = 256 * 2**20, 2**20
"""Of a document. TOML's are written by people, and its reader takes more than linear time."""
MAX_DEPTH = 32
"""Objects within each other, and dotted parts of a TOML key."""
SHOWN = 80
"""Characters of a wrong value that a message repeats."""

_QUOTED = re.compile(
    r'"""[\s\S]*?(?:"""|\Z)|'  # what does not end takes the rest, so that nothing is looked at twice
    r"\'\'\'[\s\S]*?(?:\'\'\'|\Z)|"
    r'"(?:[^"\\\n]|\\.)*+"?|'
    r"'[^'\n]*+'?|#[^\n]*+"
)
_BETWEEN_KEYS = re.compile(r"[=,\n{}\[\]]+")


class Strict(BaseModel):
    """A piece of a file: nothing missing, nothing unknown, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Open(BaseModel):
    """A piece of a file to which later versions may add fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)


Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path, what: str, kind: str = "file", most: int = MAX_BYTES) -> str:
    """Content of a text file.

    Args:
        path: The file; anything but a regular file, such as a pipe, is refused, as it may never end.
        what: What it should be ("a policy"), for the message.
        kind: Of file, for the message: "JSON file".
        most: Bytes that it may have.

    Raises:
        ValueError: If it is missing, no regular file, too large or no UTF-8; one line.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{what} must be a readable {kind}, but {str(path)!r} is not ({one_line(error)})") from error


def parse_json(text: str, where: str, what: str) -> Any:
    """The content of a JSON text: no key twice, bounded depth, numbers finite and of 64 bits.

    Args:
        text: The text.
        where: Its name, for the message.
        what: What it should be, likewise.

    Raises:
        ValueError: If it is none; one line.
    """
    try:
        return _bounded(json.loads(text, object_pairs_hook=_once, parse_constant=_no_number))
    except RecursionError as error:
        raise ValueError(_refusal(what, "JSON", where, _DEEPER)) from error
    except ValueError as error:
        raise ValueError(_refusal(what, "JSON", where, one_line(error))) from error


def parse_toml(text: str, where: str, what: str) -> dict[str, Any]:
    """The content of a TOML text, likewise bounded; as `parse_json`."""
    try:
        bare = _QUOTED.sub("quoted", text)
        if any(part.count(".") > MAX_DEPTH for part in _BETWEEN_KEYS.split(bare)):
            raise ValueError(_DEEPER)
        return dict(_bounded(tomllib.loads(text)))
    except RecursionError as error:
        raise ValueError(_refusal(what, "TOML", where, _DEEPER)) from error
    except ValueError as error:
        raise ValueError(_refusal(what, "TOML", where, one_line(error))) from error


def parse_model(kind: type[Model], text: str, where: str, what: str) -> Model:
    """Reads one of our JSON files with a `schema_version`, refusing whatever the model does not allow.

    Raises:
        ValueError: One line that names file, place and law.
    """
    data = parse_json(text, where, what)
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        got = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{what} must be a JSON object with schema_version {SCHEMA_VERSION}, but {where!r} has {shown(got)}: "
            "use the version of amc that wrote it"
        )
    return validated(kind, data, where, what)


def validated(kind: type[Model], data: Any, where: str, what: str) -> Model:
    """Checks what a document holds.

    Args:
        kind: The model.
        data: What was read.
        where: The document's name, for the message.
        what: What it should be, likewise.

    Raises:
        ValueError: One line that names document, place and law.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:SHOWN] for part in first["loc"])
        message = one_line(first["msg"].removeprefix("Value error, "), 400)
        got = "" if first["type"] in ("value_error", "missing") else f", but got {shown(first['input'])}"
        raise ValueError(
            f"{where!r} is no valid {what.split()[-1]}: {place + ': ' if place else ''}{message}{got}"
        ) from error


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def one_line(error: Exception | str, limit: int = 200) -> str:
    """What an error says, without line breaks and cut at the limit, to be part of a message of ours."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


_DEEPER = f"it is nested deeper than {MAX_DEPTH}"


def _refusal(what: str, language: str, where: str, reason: str) -> str:
    return f"{what} must be a readable {language} file, but {where!r} is not ({reason})"


def _bounded(data: Any) -> Any:
    """The same data, if it keeps to the laws of all documents; level by level, so that no depth is too much."""
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        for value in level:
            _check_plain(value)
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return data
    raise ValueError(_DEEPER)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return value if isinstance(value, list) else ()


def _check_plain(value: Any) -> None:
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"every number must be finite, but got {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("every whole number must fit into 64 bits")
    if isinstance(value, str) and not value.isascii():
        value.encode()  # half of a surrogate pair is no text, and cannot be printed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return data


def _no_number(text: str) -> Any:
    raise ValueError(f"every number must be finite, but got {text}")
