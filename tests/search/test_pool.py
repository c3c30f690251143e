"""The contract of all pools: answers in the order of the items, whoever works and whatever goes wrong."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from amc.config.parts import WorkersConfig
from amc.pool.opening import open_pool
from amc.pool.pool import Answer, InProcess, Pool, Timing, blocks
from amc.pool.ray import MAX_DEATHS, RayPool
from amc.pool.worker import About, Worker
from amc.testing import check_rollouts

if TYPE_CHECKING:
    from tests.search.conftest import Workers

pytestmark = pytest.mark.xdist_group("ray")  # one Ray per run of the tests


def added(shared: int, common: int, item: int) -> int:
    return shared + common + item


def unread(shared: object, common: int, item: int) -> int:
    return item


def slow_first(shared: int, common: int, item: int) -> int:
    """The first items take longest, so that they end last where several work."""
    time.sleep(max(0.0, 0.3 - 0.1 * item))
    return item


def failing(shared: type[Exception], common: int, item: int) -> int:
    """Fails at one item, at once; those before it take longer."""
    time.sleep(0.1 if item < common else 0.0)
    if item == common:
        raise shared(f"item {item} is broken")
    return item


def marked(folder: Path, until: int, item: int) -> int:
    """Leaves a mark for each item, and goes on when there are `until` of them."""
    (folder / f"{item}").touch()
    while len(list(folder.iterdir())) < until:
        time.sleep(0.01)
    return item


def fatal(folder: Path, times: int, item: int) -> int:
    """Kills its process at item 1, the first `times` it is tried."""
    tries = len(list(folder.iterdir()))
    if item == 1 and tries < times:
        (folder / f"{tries}").touch()
        os._exit(1)
    return 10 * item


def endless(folder: Path, times: int, item: int) -> int:
    """Does not end at item 1, the first `times` it is tried."""
    tries = len(list(folder.iterdir()))
    if item == 1 and tries < times:
        (folder / f"{tries}").touch()
        time.sleep(600)
    return 10 * item


def values(answers: Iterator[Answer[int]]) -> list[int]:
    return [answer.result() for answer in answers]


def test_answers_come_in_the_order_of_the_items(pool: Pool) -> None:
    assert values(pool.map(slow_first, 0, 0, range(5))) == list(range(5))
    assert values(pool.map(added, 100, 10, [3, 1, 2])) == [113, 111, 112]
    assert values(pool.map(added, 200, 20, [1, 1])) == [221, 221]  # not what an earlier call shared
    assert values(pool.map(added, 0, 0, [])) == []


def test_an_answer_says_where_it_is_from_and_what_it_took(pool: Pool) -> None:
    (answer,) = pool.map(slow_first, 0, 0, [2])
    assert (answer.value, answer.lost) == (2, "")
    assert answer.timing.seconds >= 0.1
    assert answer.timing.host
    assert answer.timing.retries == 0


def test_an_abandoned_map_does_not_disturb_the_next_one(pool: Pool) -> None:
    assert next(pool.map(slow_first, 0, 0, [5, 0, 1, 2])).value == 5
    assert values(pool.map(added, 100, 10, range(4))) == [110, 111, 112, 113]


def test_an_error_of_an_abandoned_map_is_nobodys(pool: Pool) -> None:
    assert next(pool.map(failing, ValueError, 1, [0, 1, 2, 3])).value == 0
    assert values(pool.map(added, 100, 10, range(4))) == [110, 111, 112, 113]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, KeyError, AssertionError])
def test_an_error_of_the_function_is_raised_in_the_caller_and_the_pool_goes_on(
    pool: Pool, kind: type[Exception]
) -> None:
    answers = pool.map(failing, kind, 2, range(4))
    assert [next(answers).value, next(answers).value] == [0, 1]
    with pytest.raises(kind, match="item 2 is broken"):
        next(answers)
    assert values(pool.map(added, 0, 0, range(3))) == [0, 1, 2]


def test_two_workers_work_side_by_side(workers: Workers, tmp_path: Path) -> None:
    pool = workers()
    assert values(pool.map(marked, tmp_path, 2, range(2))) == [0, 1]  # either one alone would wait for ever
    assert pool.usage().workers == pool.workers == 2
    assert 0 <= pool.usage().idle <= 1


class Homesick:
    """Cannot be unpacked anywhere."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return __import__, ("a_module_that_is_only_here",)


def test_what_a_worker_cannot_load_is_told_with_the_cure(workers: Workers) -> None:
    with pytest.raises(ValueError, match=r"No module named 'a_module_that_is_only_here': see docs/ray\.md"):
        list(workers().map(unread, Homesick(), 0, range(3)))


@pytest.mark.parametrize(
    ("function", "limit_seconds"), [(fatal, 60.0), pytest.param(endless, 10.0, marks=pytest.mark.slow)]
)
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_item_done_again(
    workers: Workers, function: Callable[[Path, int, int], int], limit_seconds: float, tmp_path: Path
) -> None:
    answers = list(workers(limit_seconds).map(function, tmp_path, 1, range(4)))
    assert [answer.value for answer in answers] == [0, 10, 20, 30]
    assert [answer.timing.retries for answer in answers] == [0, 1, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "reason"), [(fatal, f"died {MAX_DEATHS + 1} times"), (endless, "end within 10 s")]
)
def test_an_item_that_kills_or_blocks_every_worker_is_lost_and_the_others_are_not(
    workers: Workers, function: Callable[[Path, int, int], int], reason: str, tmp_path: Path
) -> None:
    pool = workers(limit_seconds=10, retries=1)
    answers = list(pool.map(function, tmp_path, 99, range(4)))
    assert [answer.value for answer in answers] == [0, None, 20, 30]
    assert reason in answers[1].lost
    with pytest.raises(ValueError, match=reason):
        answers[1].result()
    assert values(pool.map(added, 0, 0, range(3))) == [0, 1, 2]


def test_a_lost_item_says_why_where_its_result_is_needed() -> None:
    with pytest.raises(ValueError, match="every part of the work must end, but one did not: its worker died"):
        Answer(None, "its worker died 7 times", Timing(0.0, "", 0)).result()


@pytest.mark.slow
@pytest.mark.parametrize("alike", [True, False])
def test_different_processors_are_warned_about(
    free_ray: None, alike: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(Worker):
        def about(self) -> About:
            return About("host", "other" if alike else f"model {os.getpid()}")

    monkeypatch.setattr("amc.pool.ray.Worker", Elsewhere)
    monkeypatch.setattr("amc.pool.ray.cpu_model", lambda: "one")
    pool = RayPool(WorkersConfig(workers=2), 2)
    with caplog.at_level(logging.WARNING):
        assert values(pool.map(slow_first, 0, 0, range(6))) == list(range(6))
    pool.close()
    assert "different processors" in caplog.text
    assert "one" in caplog.text
    assert caplog.text.count("last digits may differ") == 1


def test_a_node_on_which_workers_cannot_be_made_is_told_once(free_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unmade:
        def __init__(self, threads: int) -> None:
            raise ModuleNotFoundError("No module named 'amc'")

        def about(self) -> None: ...

    monkeypatch.setattr("amc.pool.ray.Worker", Unmade)
    pool = RayPool(WorkersConfig(workers=2), 2)
    with pytest.raises(ValueError, match=r"No module named 'amc': see docs/ray\.md"):
        list(pool.map(added, 0, 0, range(3)))
    pool.close()


def test_no_workers_are_this_process() -> None:
    with open_pool(WorkersConfig()) as pool:
        assert isinstance(pool, InProcess)
        assert pool.usage() == (0, 0.0)


@pytest.mark.parametrize("count", [0, 1, 3, 7, 20])
def test_blocks_are_consecutive_parts_of_about_the_same_length(count: int) -> None:
    parts = blocks(list(range(7)), count)
    assert [item for part in parts for item in part] == list(range(7))
    assert len(parts) == max(1, min(count, 7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_every_pool_keeps_its_laws(pool: Pool) -> None:
    check_rollouts(pool)
