"""What runs inside a Ray worker: shared objects, taken from the object store once, and one call at a time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from amc.pool.parcel import unpack
from amc.pool.pool import Timing
from envs.parallel import THREADS, keep_memory, single_threaded
from hw_profiles.device import cpu_model


class Call(NamedTuple):
    """What all items of one `Pool.map` have in common."""

    function: Callable[[Any, Any, Any], Any]
    common: Any
    items: tuple[Any, ...]


class Unloadable(Exception):
    """What was sent cannot be unpacked here; the message says why."""


class About(NamedTuple):
    """Where a worker runs."""

    host: str
    processor: str


class Worker:
    """Works in a process of its own; what it is given to hold it can be given again."""

    def __init__(self, threads: int) -> None:
        """Limits this process to its share of the machine's cores."""
        os.environ[THREADS] = str(threads)
        single_threaded()
        keep_memory()
        self._held: dict[str, tuple[str, Any]] = {}

    def about(self) -> About:
        """Where this worker runs."""
        return About(platform.node(), cpu_model())

    def peak_megabytes(self) -> float:
        """Peak memory of this process beyond what it shares through the object store."""
        with open("/proc/self/status", encoding="utf-8") as file:
            sizes = dict(line.split(":", 1) for line in file)
        return (int(sizes["VmHWM"].split()[0]) - int(sizes["RssShmem"].split()[0])) / 1024

    def work(self, shared: Sequence[Any], call: Sequence[Any], index: int) -> tuple[Any, Timing]:
        """One item.

        Args:
            shared: Reference to the parcel of what all calls need, in a list so that Ray leaves it alone.
            call: Reference to the parcel of a `Call`, likewise.
            index: Which of its items.

        Raises:
            Unloadable: If one of them cannot be unpacked; or whatever the function raises.
        """
        held = self._get("shared", shared[0])
        one: Call = self._get("call", call[0])
        began = time.perf_counter()
        value = one.function(held, one.common, one.items[index])
        return value, Timing(time.perf_counter() - began, platform.node(), 0)

    def _get(self, what: str, reference: Any) -> Any:
        import ray

        name = reference.hex()
        if what not in self._held or self._held[what][0] != name:
            self._held.pop(what, None)  # the old one is freed before the new one is made
            try:
                self._held[what] = (name, unpack(ray.get(reference)))
            except Exception as error:  # imports, the user's classes, memory
                raise Unloadable(str(error)) from error
        return self._held[what][1]
