"""The keys of a configuration, from the fields of its models: types, defaults and meanings in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from envs.lookup import OneOf
from hw_profiles.documents import shown

WORDS: dict[Any, tuple[str, str]] = {
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "truth values"),
    Path: ("path", "paths"),
    tuple[float, float]: ("pair of numbers", "pairs of numbers"),
}
"""Type -> what it is called, one and many."""
SIGNS: dict[type, tuple[str, str]] = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
"""Bound -> its sign, and the attribute that holds its value."""


class Key(NamedTuple):
    """One key of a configuration.

    Attributes:
        name: Dotted, as for `--set`.
        type: In words, with its bounds.
        default: Ready for JSON; None where it may be left out, or must be given.
        required: Whether it must be given.
        meaning: One line.
    """

    name: str
    type: str
    default: Any
    required: bool
    meaning: str

    @property
    def default_text(self) -> str:
        """The default as it would be written, "required" or "left out"."""
        if self.required:
            return "required"
        return "left out" if self.default is None else value_text(self.default)


def keys_of(model: type[BaseModel]) -> list[Key]:
    """Every key of a model and of the models in it, in the order of the fields."""
    return [key_of(name, field) for name, field in fields_of(model)]


def key_of(name: str, field: FieldInfo) -> Key:
    """One field in words."""
    required = field.is_required()
    default = None if required else to_jsonable_python(field.get_default(call_default_factory=True))
    return Key(name, type_text(field), default, required, field.description or "")


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names and fields of a model and of the models in it."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def plain_type(field: FieldInfo) -> Any:
    """The field's type, without the None of what may be left out."""
    arguments = [one for one in get_args(field.annotation) if one is not NoneType]
    return arguments[0] if get_origin(field.annotation) in (Union, UnionType) else field.annotation


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The values that a field, or each entry of its list, may have: of a `Literal` or a `OneOf`; () for others."""
    annotation = plain_type(field)
    marks = tuple(field.metadata)
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
        marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    named = next((mark.names for mark in marks if isinstance(mark, OneOf)), ())
    return get_args(annotation) if get_origin(annotation) is Literal else named


def type_text(field: FieldInfo) -> str:
    """The field's type in words, with its bounds."""
    annotation = plain_type(field)
    origin, arguments, choices = get_origin(annotation), get_args(annotation), ", ".join(choices_of(field))
    if origin is tuple:
        return f"list of {choices or WORDS[_bare(arguments[0])][1]}"
    if origin is dict:
        return f"table of {WORDS[arguments[1]][1]}"
    bounds = [f" {sign} {getattr(one, name):g}" for one in field.metadata for sign, name in _signs(one)]
    return choices or WORDS[annotation][0] + " and".join(bounds)


def value_text(value: Any) -> str:
    """A value as people write it: lists with commas, tables as NAME=VALUE."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return " ".join(f"{name}={value_text(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint of pydantic about a model as one line: law, value, cure."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return unknown_key(key, first["input"], model)
    if first["type"] == "value_error":
        return f"{key} {message}" if message.startswith("must ") else f"{key}: {message}"
    return f"{key}: {message}, but got {shown(first['input'])}: correct it in the recipe or on the command line"


def unknown_key(key: str, value: Any, model: type[BaseModel]) -> str:
    """One line about a key that no model has: it names the nearest that there is.

    Args:
        key: Dotted, as it was written.
        value: What it was set to; of a table of its own, the first key is looked at.
        model: Whose keys are known.
    """
    while isinstance(value, Mapping) and value:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    near = nearest(key, [name for name, _ in fields_of(model)])
    cure = f"did you mean {near}? (`amc config` lists all)" if near else "`amc config` lists all"
    return f"every configuration key must be a known one, but got {shown(key)}: {cure}"


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key that a written one is closest to; None if none is close.

    A key of a known part is looked for in that part, any other as a whole, and then by its last word alone.
    """
    part, _, word = key.rpartition(".")
    own = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == part}
    words = {name.rpartition(".")[2]: name for name in reversed(known)}
    for written, pool in ((word, own) if own else (key, {name: name for name in known}), (word, words)):
        if close := get_close_matches(written, list(pool), n=1, cutoff=0.7):
            return pool[close[0]]
    return None


def _signs(bound: Any) -> list[tuple[str, str]]:
    return [SIGNS[type(bound)]] if type(bound) in SIGNS else []


def _bare(annotation: Any) -> Any:
    """The type inside an `Annotated`."""
    return annotation if annotation in WORDS else get_args(annotation)[0]
