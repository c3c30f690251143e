"""Code of the user's in a configuration: a file may say which it was, the command line decides whether it runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

KEYS = ("task", "reward")
"""Keys that may name a function as `package.module:function`, which is imported and called."""


def refuse_code(values: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Refuses code that a file names and the command line does not.

    Whoever made a policy, a run folder or a recipe may be anybody, and importing a module runs it. A task or a reward
    that ships with the project is found by its name, and a task that was an object cannot be loaded at all.

    Args:
        values: Key -> value, as the file has them.
        given: Key -> value of the command line; a value there takes the file's place.
        where: The file, for the message.

    Raises:
        ValueError: If a key names a function and is not given; says what to type.
    """
    for key in KEYS:
        name = values.get(key)
        if isinstance(name, str) and ":" in name and not name.startswith("(") and key not in given:
            raise ValueError(
                f"a file may not choose code that runs, but {where!r} names the {key} {name!r}: if you know that "
                f"function, add --{key} {shlex.quote(name)}"
            )


def confirm_code(stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Refuses code of a run that the command line does not name, and names there that are not the run's.

    Raises:
        ValueError: As `refuse_code`, or if a key is given another value than the run has.
    """
    for key, value in given.items():
        if value != stored[key]:
            raise ValueError(
                f"a run goes on with its own {key}, but in {where!r} that is {stored[key]!r}, not {value!r}: leave "
                f"--{key} out, or write the run's"
            )
    refuse_code(stored, given, where)
