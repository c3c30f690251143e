"""The report as a reader sees it: a parsed page, its sections by heading, its tables by row and column."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

import pytest

VOID = {"meta"}


class Page:
    """A parsed page."""

    def __init__(self, html: str) -> None:
        builder = _Builder()
        builder.feed(html)
        builder.close()
        self.root = builder.tree.close()

    @property
    def sections(self) -> dict[str, Element]:
        """Heading -> section."""
        found = {section.find("h2"): section for section in self.root.iter("section")}
        return {text(heading): section for heading, section in found.items() if heading is not None}

    def texts(self, tag: str, style: str = "") -> list[str]:
        """Text of every element of a kind, of one class if it is named."""
        return [text(one) for one in self.root.iter(tag) if style in ("", one.get("class"))]

    def table(self, heading: str = "", number: int = 0) -> dict[str, dict[str, str]]:
        """Row -> column -> text, of one of the tables under a heading; without one, of the page's first table."""
        tables = list((self.sections[heading] if heading else self.root).iter("table"))
        return cells(tables[number])

    @property
    def pictures(self) -> list[Element]:
        """Every picture."""
        return list(self.root.iter("svg"))


class _Builder(HTMLParser):
    """Builds the tree; tags that do not close in order are an error, attributes keep their order."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = TreeBuilder()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tree.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.tree.end(tag)
        else:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tree.start(tag, {name: value or "" for name, value in attrs})
        self.tree.end(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open.pop() != tag:
            raise ValueError(f"</{tag}> closes another element")
        self.tree.end(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self.tree.data(data)


def text(element: Element) -> str:
    """All text in an element, white space as a browser shows it."""
    return " ".join("".join(element.itertext()).split())


def cells(table: Element) -> dict[str, dict[str, str]]:
    """Row -> column -> text; every row must have as many cells as there are headings."""
    headings = [text(cell) for cell in table.findall("thead/tr/th")]
    found = {}
    for row in table.findall("tbody/tr"):
        name, *values = list(row)
        # The name of a network is followed by what it means, in small print.
        label = text(name).removesuffix(" ".join(text(note) for note in name.iter("small")))
        found[label] = dict(zip(headings[1:], [text(value) for value in values], strict=True))
    return found


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Page]:
    return Page
