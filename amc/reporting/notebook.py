"""What a console shows, in a notebook: as HTML, and progress as one display that is written anew."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

WIDTH = 110
"""Columns."""


def as_html(show: Callable[[Console], None]) -> str:
    """What a function prints, as HTML with its colours."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
    show(console)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


class NotebookLive(Live):
    """A live region of a notebook, by IPython alone: rich's own needs ipywidgets there."""

    def __init__(self, renderable: RenderableType, console: Console) -> None:
        """Takes what is shown, and the notebook's console."""
        super().__init__(renderable, console=console)
        self._display: Any = None

    def refresh(self) -> None:
        """Writes the display anew; the first time, makes it."""
        from IPython.display import HTML, display

        page = HTML(as_html(lambda console: console.print(self.get_renderable())))
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)

    def stop(self) -> None:
        """Leaves the last state."""
        running = self.is_started
        super().stop()
        if running:
            self.refresh()
