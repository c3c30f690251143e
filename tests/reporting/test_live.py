"""What the screen says while a search runs."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from agents.searcher import SearcherState
from amc.reporting.live import live
from amc.search.episode import Episode, Failure
from amc.search.state import Snapshot
from envs.reward import Evaluation


def snapshot(*lines: Episode | Failure) -> Snapshot:
    return Snapshot(
        origin="",
        starts={},
        lines=lines,
        timings=(),
        searcher=SearcherState(arrays={}, numbers={}),
        image_forwards=0,
        evaluations=len(lines),
        elapsed=1.0,
    )


def episode(accuracy: float) -> Episode:
    evaluation = Evaluation(metric=accuracy, loss=None, costs={}, images=10, image_forwards=10)
    return Episode(searcher="ddpg", actions=(0.5,), key=(4,), reward=accuracy, evaluation=evaluation)


def shown(*lines: Episode | Failure) -> str:
    console = Console(file=io.StringIO(), width=160)
    with live(console) as screen:
        screen.round(snapshot(*lines), 8)
        screen.stop()
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_best_so_far_is_said_to_be_that_after_quick_repair() -> None:
    assert "best accuracy 30.23% after quick repair, by ddpg" in shown(episode(0.1), episode(0.3023))


def test_failures_are_counted_on_the_screen() -> None:
    failed = Failure(searcher="ddpg", actions=(0.5,), key=(4,), reason="broken")
    assert ", 1 failed" in shown(episode(0.1), failed)
    assert "best" not in shown(failed)


def test_a_notebook_shows_progress_as_one_display_that_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    class Handle:
        def update(self, page: str) -> None:
            pages.append(page)

    def display(page: Any, **options: object) -> Handle:
        if options.get("display_id"):  # and not what is printed beside
            pages.append(page)
        return Handle()

    module = ModuleType("IPython.display")
    vars(module).update(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    console = Console(file=io.StringIO(), width=160, force_jupyter=True)
    with live(console) as screen:
        screen.round(snapshot(episode(0.1), episode(0.3023)), 8)
    assert "best accuracy 30.23% after quick repair" in pages[-1]
    assert "best" not in pages[0]
