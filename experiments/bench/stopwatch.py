"""CPU time of named parts of a program, measured by wrapping its functions for a while."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Adds up seconds by part; what an inner part takes is not counted to the outer one."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        """Starts at nothing."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._inside: list[float] = []
        self._originals: list[tuple[Any, str, Any]] = []

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Counts the time within to a part."""
        self._inside.append(0.0)
        began = self._clock()
        try:
            yield
        finally:
            spent = self._clock() - began
            self.seconds[part] += spent - self._inside.pop()
            if self._inside:
                self._inside[-1] += spent

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Counts every call of `owner.name` to a part, until `restore`."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timing(part):
                return function(*args, **kwargs)

        self.replace(owner, name, timed)

    def replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Puts another function there, until `restore`."""
        self._originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)

    def restore(self) -> None:
        """Puts all functions back."""
        for owner, name, function in reversed(self._originals):
            setattr(owner, name, function)
        self._originals.clear()
