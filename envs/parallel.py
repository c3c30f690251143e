"""Work over fixed chunks on a few threads, results in chunk order: the same numbers on any number of cores.

Intra-op threads are 1 everywhere (`single_threaded`), so a chunk's result never depends on where it is computed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = "AMC_THREADS"
"""Environment variable: threads this process may use at most, where it shares the machine with others."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""


def single_threaded() -> None:
    """Sets torch to one intra-op thread in this process (law 1 of docs/architecture.md)."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def full_precision() -> None:
    """Lets convolutions of float32 on a GPU multiply in float32, as matrix products do by default, not in TF32."""
    if torch.backends.cudnn.allow_tf32:
        torch.backends.cudnn.allow_tf32 = False


def cores() -> int:
    """Cores this process may use; fewer, if the environment says so."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get(THREADS, "")
    return min(found, int(wanted)) if wanted.isdigit() and int(wanted) else found


LARGE_BYTES, GROWN_BYTES = 1.1e9, 0.15e9
"""Resident memory below which freed memory is kept, and by how much it must have grown to be given back once more."""
_trimmed = {"resident": 0.0}


def return_memory() -> None:
    """Gives freed heap memory back to the system; glibc would keep it, and the peaks of all phases would add up."""
    _glibc("malloc_trim", 0)


def trim_memory() -> None:
    """`return_memory` where the process is large and has grown since it last did; a few microseconds otherwise."""
    resident = _resident_bytes()
    if resident > max(LARGE_BYTES, _trimmed["resident"] + GROWN_BYTES):
        return_memory()
        _trimmed["resident"] = _resident_bytes()


def _resident_bytes() -> float:
    """Resident memory of this process; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return float(pages) * os.sysconf("SC_PAGE_SIZE")


def keep_memory() -> None:
    """Lets glibc keep freed activations for the next chunk, until `return_memory`.

    Young threads and processes would give them all back: an episode of ResNet-56 on a Ray worker would touch 60,000
    to 140,000 new pages, not 18,000, and 5,000 images on two new threads 1,500,000, not 23,000. Maps above 8 MB go back
    at once: kept as well, a search at 224 pixels holds 0.3 GB more, and ResNet-56 is no faster.
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, 8 << 20)
    _glibc("mallopt", M_TRIM_THRESHOLD, 64 << 20)


def _glibc(name: str, *numbers: int) -> None:
    """Calls a function of glibc's allocator; nothing elsewhere."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*numbers)


def map_chunks(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields `function(item)` in order, computed on one thread per core; within such a thread, one after another."""
    single_threaded()
    full_precision()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        function = _in_context(function)
    items = list(items)
    threads = cores()
    inside = getattr(_local, "inside", False)
    if threads == 1 or len(items) < 2 or inside:
        yield from map(function, items)
    else:
        yield from _pool(threads).map(function, items)
    if not inside:
        trim_memory()


def _in_context(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """The function with this thread's CUDA context made current first, of whose absence cuBLAS would warn."""

    def called(item: Item) -> Result:
        torch.cuda.set_device(torch.cuda.current_device())
        return function(item)

    return called


_local = threading.local()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: new ones begin with cold heaps, and sequential repair asks a hundred times."""

    def mark() -> None:
        _local.inside = True

    keep_memory()
    return ThreadPoolExecutor(threads, initializer=mark)
