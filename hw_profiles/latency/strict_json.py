"""Reading our JSON files strictly: one clear line for whatever is missing, unknown, repeated or no number."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA_VERSION: Literal[1] = 1


class Strict(BaseModel):
    """A piece of a file: nothing missing, nothing unknown, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


Model = TypeVar("Model", bound=BaseModel)


def parse_model(kind: type[Model], text: str, where: str, what: str) -> Model:
    """Reads one of our JSON files, refusing repeated keys, NaN and whatever the model does not allow.

    Raises:
        ValueError: One line that names file, place and law.
    """
    try:
        data = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be a complete JSON file, but {where!r} is not ({error})") from error
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        got = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{what} must be a JSON object with schema_version {SCHEMA_VERSION}, but {where!r} has {got!r}: "
            "use the version of amc that wrote it"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = " ".join(first["msg"].removeprefix("Value error, ").split())
        got = "" if first["type"] in ("value_error", "missing") else f", but got {str(first['input'])[:80]!r}"
        raise ValueError(
            f"{where!r} is no valid {what.split()[-1]}: {place + ': ' if place else ''}{message}{got}"
        ) from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return data


def _no_number(text: str) -> Any:
    raise ValueError(f"every number must be finite, but got {text}")
