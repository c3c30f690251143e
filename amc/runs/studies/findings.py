"""What studies find, as `amc.compare`, `amc.sweep` and `amc.tune` return it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from amc.config.search import SearchConfig
from amc.reporting.notebook import as_html
from amc.runs.studies.pareto import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Agents on equal footing.

    Attributes:
        verdict: Which is best, and whether that is more than noise.
        table: Every agent's means and intervals, and their paired differences, in Markdown.
        folder: Where runs, page, picture and `compare.json` are.
        page: Its page.
    """

    verdict: str
    table: str = field(repr=False)
    folder: Path
    page: Path = field(repr=False)

    def show(self, console: Console | None = None) -> None:
        """Prints the verdict, and where the page is."""
        console = console or Console()
        console.print(self.verdict, highlight=False)
        console.print(f"wrote {self.page}", highlight=False, soft_wrap=True)

    def _repr_html_(self) -> str:
        return as_html(lambda console: console.print(self.verdict, Markdown(self.table), highlight=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Accuracy against cost.

    Attributes:
        outcomes: One per agent and budget.
        table: The same in Markdown, with the Pareto front.
        folder: Where runs, page, picture, CSV and the best policies are.
        page: Its page.
    """

    outcomes: Sequence[Outcome]
    table: str = field(repr=False)
    folder: Path
    page: Path = field(repr=False)

    def show(self, console: Console | None = None) -> None:
        """Prints the table, and where the page is."""
        console = console or Console()
        console.print(self.table, highlight=False)
        console.print(f"wrote {self.page}", highlight=False, soft_wrap=True)

    def _repr_html_(self) -> str:
        return as_html(lambda console: console.print(Markdown(self.table)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The best of many settings.

    Attributes:
        config: The configuration of the best search.
        values: What was drawn for it; {} where nothing was better than the configuration as it was.
        table: All searches by their best reward, in Markdown.
        recipe: The best one's recipe, which `amc.search` takes.
    """

    config: SearchConfig = field(repr=False)
    values: Mapping[str, Any]
    table: str = field(repr=False)
    recipe: Path

    def show(self, console: Console | None = None) -> None:
        """Prints the ranking, and where the best recipe is."""
        console = console or Console()
        console.print(self.table, highlight=False)
        console.print(f"wrote {self.recipe}", highlight=False, soft_wrap=True)

    def _repr_html_(self) -> str:
        return as_html(lambda console: console.print(Markdown(self.table)))
