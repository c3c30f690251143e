"""Kinds of decisions by name, the values of `choose`: what finds the sites of a network. Imports no torch.

A new kind is a file beside this one, with a class of `sites.Site` and a `finders.Finder`, and a line in `KINDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.lookup import find

if TYPE_CHECKING:
    from envs.space.finders import Finder

KINDS = {
    "channels": "envs.space.finders:channels",
    "patterns": "envs.space.finders:patterns",
    "unstructured": "envs.space.finders:unstructured",
    "mixed": "envs.space.finders:mixed",
}
"""Name -> where the finder stands."""


def finder_named(name: str) -> Finder:
    """The finder of that kind of decision.

    Raises:
        ValueError: If there is none of that name.
    """
    finder: Finder = find("kind of decision", name, KINDS)
    return finder
