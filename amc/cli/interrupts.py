"""Ctrl-C at any moment: one line and exit code 130. Imports nothing that takes time, as it is there before all else.

While a command is imported, nothing has been written and the process ends at once. Later Ctrl-C is a
`KeyboardInterrupt` as everywhere, but never within an import, where libraries swallow it or turn it into errors of
their own, nor where Python would only print it: then it is raised a moment later. A second Ctrl-C waits for nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

NOTHING_LOST = "every file that was written is complete; the same command begins again, or goes on"
AGAIN_SECONDS = 0.05
"""After so long it is looked again whether an import has ended."""


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process with the line; a handler of SIGINT where nothing has to be tidied up, or takes too long."""
    os.write(2, f"stopped: {NOTHING_LOST}\n".encode())
    os._exit(130)


def interrupt_between_imports() -> None:
    """From here on SIGINT raises `KeyboardInterrupt`, though not within an import."""
    signal.signal(signal.SIGINT, _interrupt)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _interrupt)
        sys.unraisablehook = _lost


def _interrupt(number: int, frame: FrameType | None) -> None:
    importer = _importer(frame)
    if importer is not None and Path(importer.f_code.co_filename).parent == Path(__file__).parent:
        exit_at_once(number, frame)  # a command that has not begun yet
    signal.signal(signal.SIGINT, exit_at_once)
    if importer is None or not hasattr(signal, "SIGALRM"):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)


def _importer(frame: FrameType | None) -> FrameType | None:
    """The outermost frame that waits for an import."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            found = frame.f_back
        frame = frame.f_back
    return found


def _lost(unraisable: sys.UnraisableHookArgs) -> None:
    """What is raised while an object is being deleted is only printed: an interrupt is raised again instead."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    else:
        sys.__unraisablehook__(unraisable)
