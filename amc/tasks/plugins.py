"""What users bring by name: functions as `package.module:function`, and what their code raises in one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def find_function(what: str, name: str) -> Callable[..., Any]:
    """Imports `package.module:function`, from the current directory too.

    Args:
        what: What it should make ("task", "reward"), for the message.
        name: The function's name.

    Raises:
        ValueError: If the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's code, and importing it runs it
        hint = f"write {module_name[:-3]}:{function_name}" if module_name.endswith(".py") else "correct it"
        raise ValueError(
            f"{what} {name!r} must name a module that can be imported from {here}, but importing "
            f"{module_name!r} raised {describe(error)}: {hint}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"{what} {name!r} must name a function, but module {module_name!r} has no function "
            f"{function_name!r}: correct the name after the colon"
        )
    return function  # type: ignore[no-any-return]


def describe(error: Exception) -> str:
    """An exception of the user's code in one line, with the place in that code."""
    # The user's place: neither this folder nor the machinery of importing.
    here = Path(__file__).parents[1]
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if Path(frame.filename).parent != here and "importlib" not in frame.filename]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
