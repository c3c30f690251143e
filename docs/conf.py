"""How Sphinx builds the documentation (`make docs`).

Its root is the repository, so that pages of docs/ and of experiments/results/ link to each other as they do on disk.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "AMC"
copyright = "the AMC authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "experiments/README.md",
    "experiments/bench/NOTES.md",
    "experiments/results/*.md",
    "*.md",
]
exclude_patterns = [".*", "runs", "site", "README.md"]
html_theme = "furo"
html_title = "AMC"
myst_heading_anchors = 3
default_role = "code"  # docstrings write `names` in single backquotes
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # fields of a class stand in its description, once


class PublicNames(SphinxDirective):
    """Documents every name that a module lists in `__all__`, wherever it is defined."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Hands the names to autodoc, in the order of `__all__`."""
        module = import_module(self.arguments[0])
        lines = [line for name in module.__all__ for line in (*documented(module, name), "")]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def documented(module: ModuleType, name: str) -> list[str]:
    """Lines of reStructuredText that document one public name of a module."""
    thing, place = getattr(module, name), f"{module.__name__}.{name}"
    if isinstance(thing, ModuleType):
        # `amc.search` is a room that can be called: the function stands in the library.
        return [f".. autofunction:: amc.runs.library.{name}"] if callable(thing) else [f".. automodule:: {place}"]
    if isinstance(thing, type):
        return [f".. autoclass:: {place}", "   :members:"]
    return [f".. autofunction:: {place}"] if callable(thing) else [f".. autodata:: {place}"]


class ConfigurationKeys(SphinxDirective):
    """Every key of the configuration, as `amc config` lists them: one table per part."""

    def run(self) -> list[nodes.Node]:
        """Makes the tables from the fields of the configuration."""
        from amc.config.keys import keys_of
        from amc.config.search import SearchConfig

        parts: dict[str, list[str]] = {}
        for key in keys_of(SearchConfig):
            row = (f"`{key.name}`", key.type, f"`{key.default_text}`", key.meaning)
            parts.setdefault(key.name.rpartition(".")[0], []).append(f"| {' | '.join(map(cell, row))} |")
        lines: list[str] = []
        for part, rows in parts.items():
            lines += ["", f"## {part or 'The search'}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
            lines += rows
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def cell(text: str) -> str:
    """A text that fits into one cell of a table."""
    return text.replace("|", "\\|")


def keep_first_words(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keeps Napoleon from taking what stands before a property's first colon for its type."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " - ", 1)


def setup(app: Sphinx) -> dict[str, Any]:
    """Makes the directives known."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("configuration-keys", ConfigurationKeys)
    app.connect("autodoc-process-docstring", keep_first_words, priority=100)
    return {"parallel_read_safe": True}
