"""Chunks on threads: in order, also within each other, and errors come out."""

from __future__ import annotations

import threading

import pytest

from envs.parallel import THREADS, map_chunks


@pytest.fixture(params=["1", "2"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setenv(THREADS, request.param)
    return str(request.param)


def test_results_come_in_the_order_of_the_items_also_of_chunks_within_chunks(threads: str) -> None:
    def rows(size: int) -> list[int]:
        return list(map_chunks(lambda item: item * item, range(size)))

    assert list(map_chunks(rows, range(20))) == [[k * k for k in range(size)] for size in range(20)]


def test_the_same_threads_serve_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setenv(THREADS, "2")
    names = {name for _ in range(10) for name in map_chunks(lambda _: threading.current_thread().name, range(8))}
    assert 1 <= len(names) <= 2
    assert threading.current_thread().name not in names


def test_what_a_chunk_raises_comes_out_and_later_calls_work(threads: str) -> None:
    def broken(item: int) -> int:
        if item == 3:
            raise ValueError("chunk 3")
        return item

    with pytest.raises(ValueError, match="chunk 3"):
        list(map_chunks(broken, range(8)))
    assert list(map_chunks(lambda item: item, range(8))) == list(range(8))
