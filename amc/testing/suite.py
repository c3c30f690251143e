"""A suite: laws that can be checked together or one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amc.tasks.plugins import describe
from envs.lookup import name_of


def require(holds: bool, otherwise: str) -> None:
    """Raises an `AssertionError` with a text unless something holds; unlike `assert` under `python -O` too."""
    if not holds:
        raise AssertionError(otherwise)


class Law:
    """One thing that must hold of every object of a kind.

    Args:
        kind: Of what: "searcher".
        check: Raises where it does not hold; its name says what must hold.
    """

    def __init__(self, kind: str, check: Callable[[Any], None]) -> None:
        self._kind, self._check = kind, check

    def __str__(self) -> str:
        """What must hold, in words."""
        return self._check.__name__.replace("_", " ")

    def __call__(self, thing: Any) -> None:
        """Checks one object.

        Raises:
            AssertionError: If it does not hold, or something raises.
        """
        try:
            self._check(thing)
        except AssertionError as error:
            raise AssertionError(f"{self._kind} {name_of(thing)}, {self}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{self._kind} {name_of(thing)}, {self}: it raised {describe(error)}") from error


class Suite:
    """All laws of one kind of object.

    Args:
        kind: Of what.
        checks: One function per law.

    Attributes:
        laws: The laws, to be checked one by one.
    """

    def __init__(self, kind: str, *checks: Callable[[Any], None]) -> None:
        self.laws = tuple(Law(kind, check) for check in checks)

    def __call__(self, thing: Any) -> None:
        """Checks all of them.

        Raises:
            AssertionError: With the first that does not hold.
        """
        for law in self.laws:
            law(thing)
