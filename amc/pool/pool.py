"""The interface: a function, something shared by all calls, items; answers in the order of the items."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

Shared = TypeVar("Shared")
Common = TypeVar("Common")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Timing(NamedTuple):
    """What depends on the machine: seconds of work, where, and how often it was tried again."""

    seconds: float
    host: str
    retries: int


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """What came of one item.

    Attributes:
        value: The function's result; None where the item was lost.
        lost: Why there is none: workers died or hung on it too often. "" otherwise.
        timing: What it took.
    """

    value: Result | None
    lost: str
    timing: Timing

    def result(self) -> Result:
        """The result of an item without which the caller cannot go on.

        Raises:
            ValueError: If it was lost.
        """
        if self.value is None:
            raise ValueError(f"every part of the work must end, but one did not: {self.lost}")
        return self.value


class Usage(NamedTuple):
    """Workers, and the share of their time that they waited for work; none in process."""

    workers: int
    idle: float


IN_PROCESS = Usage(0, 0.0)


class Pool(Protocol):
    """Work on items, in this process or on workers.

    Attributes:
        workers: Processes side by side; 0 in this process.
    """

    workers: int

    def map(
        self,
        function: Callable[[Shared, Common, Item], Result],
        shared: Shared,
        common: Common,
        items: Sequence[Item],
    ) -> Iterator[Answer[Result]]:
        """Answers in the order of the items, each as soon as it and those before it are there.

        Args:
            function: Of a module, so that other processes find it; what it returns is never None. An error that it
                raises is raised here.
            shared: What all calls need, sent to each node once for as long as the same object is given.
            common: What the calls of this round need.
            items: One call each.
        """
        ...

    def usage(self) -> Usage:
        """How busy the workers were so far."""
        ...


class InProcess:
    """Works in this process, one item after the other, each when its answer is asked for."""

    workers = 0

    def map(
        self,
        function: Callable[[Shared, Common, Item], Result],
        shared: Shared,
        common: Common,
        items: Sequence[Item],
    ) -> Iterator[Answer[Result]]:
        """Answers in the order of the items."""
        for item in items:
            began = time.perf_counter()
            value = function(shared, common, item)
            yield Answer(value, "", Timing(time.perf_counter() - began, platform.node(), 0))

    def usage(self) -> Usage:
        """No workers."""
        return IN_PROCESS


def blocks(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """At most `count` consecutive parts, as equal in length as can be, none empty."""
    if not items:
        return []
    count = max(1, min(count, len(items)))
    ends = [round(len(items) * k / count) for k in range(count + 1)]
    return [items[start:stop] for start, stop in pairwise(ends)]
