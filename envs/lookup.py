"""Things by name: a dict says where each stands ("module:attribute"), and only what is asked for is imported.

So a configuration knows every name without loading torch, and one line in a dict is all that a new thing needs:
`OneOf` makes the dict's names the values that a key may have, in its check, in `amc config` and in the options.
What is passed in as an object stands in a configuration as its name in parentheses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from hw_profiles.documents import shown


def find(what: str, name: str, places: Mapping[str, str]) -> Any:
    """What stands at the place of a name, imported now.

    Args:
        what: What it is, for the error: "importance".
        name: A key of `places`.
        places: Name -> "module:attribute".

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in places:
        raise ValueError(f"{what} {unknown(name, places)}")
    module, _, attribute = places[name].partition(":")
    return getattr(import_module(module), attribute)


def unknown(name: str, known: Collection[str]) -> str:
    """What an error says of an unknown name, after what it is: all known ones, and the nearest."""
    near = get_close_matches(name, list(known), n=1)
    cure = f": did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(known)}, but got {shown(name)}{cure}"


def name_of(thing: object) -> str:
    """What an object is called in messages: a cost's own name, else a function's or class's, else that of its class."""
    name = getattr(thing, "__name__", None) or getattr(thing, "name", None)
    return name if isinstance(name, str) and name else type(thing).__name__


def passed_in(name: object) -> bool:
    """Whether a configuration's value stands for an object: its name in parentheses."""
    return isinstance(name, str) and name.startswith("(") and name.endswith(")")


class OneOf:
    """Marks a text that must be one of some names: `Annotated[str, OneOf(IMPORTANCES)]`.

    The names are looked up whenever a value is checked, so that a dict may grow.

    Args:
        groups: Names, such as the keys of dicts.
        objects: Whether an object may take their place, or its name in parentheses.
    """

    def __init__(self, *groups: Collection[str], objects: bool = False) -> None:
        self._groups, self._objects = groups, objects

    @property
    def names(self) -> tuple[str, ...]:
        """All names in order."""
        return tuple(name for group in self._groups for name in group)

    def check(self, value: Any) -> Any:
        """The value, if it is one of the names, or an object where that is allowed.

        Raises:
            ValueError: Otherwise.
        """
        if self._objects and (not isinstance(value, str) or passed_in(value)):
            return value
        if value not in self.names:
            raise ValueError(unknown(value, self.names))
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic checks it: as a text, then by the names."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))
