"""Constraints for pip that pin every requirement of pyproject.toml to the lowest version that it allows.

`python scripts/oldest.py > FILE`, then `pip install -c FILE -e ".[dev]"`: `make test-oldest` does both.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
EXTRAS = ("dev",)
"""Extras that the tests need."""
TOOLS = ("ruff", "mypy")
"""Requirements that no test imports: they check the code with the pinned versions only."""


def oldest(project: Mapping[str, Any]) -> Iterator[str]:
    """One line `name==version` for every requirement of a project that the tests need.

    Args:
        project: The content of `pyproject.toml`.

    Raises:
        ValueError: If a requirement has no lower bound.
    """
    optional = project["project"]["optional-dependencies"]
    for requirement in [*project["project"]["dependencies"], *(one for extra in EXTRAS for one in optional[extra])]:
        found = re.match(r"(?P<name>[\w.-]+)(\[.*?\])?(?P<bounds>.*)", requirement)
        lowest = re.search(r">=\s*([\w.]+)", requirement)
        if found is None or lowest is None:
            raise ValueError(f"every requirement must have a lower bound, but got {requirement!r}: write NAME>=VERSION")
        if found["name"] not in TOOLS:
            yield f"{found['name']}=={lowest[1]}"


if __name__ == "__main__":
    print(*oldest(tomllib.loads(PROJECT.read_text())), sep="\n")
