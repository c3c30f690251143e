"""The pool on Ray workers, on this machine or a cluster: which worker does what, in what order
results arrive and which workers are lost changes nothing but the time.

What calls share is in the object store once per node (`parcel`); the items of a call are put there once. Workers keep
no state that a result could depend on, so an item that is lost is simply done again.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from amc.config.parts import WorkersConfig
from amc.pool.parcel import pack
from amc.pool.pool import Answer, Common, Item, Result, Shared, Timing, Usage
from amc.pool.worker import About, Call, Unloadable, Worker
from envs.parallel import cores
from hw_profiles.device import cpu_model

logger = logging.getLogger(__name__)

MAX_DEATHS = 6
"""Maximum of lost workers per item: beyond, the item is taken to be the cause and given up."""
JOIN_SECONDS = 300.0
"""How long work without a single worker waits for one."""
UNWANTED = -1
"""Index of an item whose answer is not waited for any more."""
Trouble = Counter[tuple[str, int]]
"""("died" or "hung", item) -> how often."""


@dataclass(frozen=True, slots=True)
class _Raised:
    """What the function raised for an item; the caller gets it in the item's turn, as in this process."""

    error: Exception
    remote: Exception


@dataclass(slots=True, eq=False)
class _Seat:
    """One worker as the driver sees it: what it was asked last, and since when."""

    actor: Any
    asked: Any
    since: float
    about: About | None = None
    index: int | None = None


class RayPool:
    """Works on Ray actors; replaces those that die or hang."""

    def __init__(self, config: WorkersConfig, number: int, own_modules: Sequence[str] = ()) -> None:
        """Starts workers, which come up while the caller goes on.

        Args:
            config: Limits and sizes.
            number: How many workers.
            own_modules: Modules whose code travels to the workers.
        """
        self.workers = number
        self._config = config
        self._own_modules = tuple(own_modules)
        self._shared: tuple[object, Any] | None = None
        self._seats = [self._start() for _ in range(number)]
        self._busy, self._span, self._warned = 0.0, 0.0, False

    def map(
        self,
        function: Callable[[Shared, Common, Item], Result],
        shared: Shared,
        common: Common,
        items: Sequence[Item],
    ) -> Iterator[Answer[Result]]:
        """Answers in the order of the items.

        Raises:
            ValueError: If no worker can be started, or they cannot load the task.
        """
        import ray

        began = time.perf_counter()
        parcel = self._put(shared)
        call = ray.put(pack(Call(function, common, tuple(items)), self._own_modules))
        todo = deque(range(len(items)))
        trouble = Trouble()
        answers: dict[int, Answer[Result] | _Raised] = {}
        try:
            for wanted in range(len(items)):
                while wanted not in answers:
                    self._assign(todo, parcel, call)
                    self._collect(todo, answers, trouble)
                self._assign(todo, parcel, call)  # no worker waits while the caller looks at an answer
                answer = answers.pop(wanted)
                if isinstance(answer, _Raised):
                    raise answer.error from answer.remote
                again = trouble["died", wanted] + trouble["hung", wanted]
                yield replace(answer, timing=answer.timing._replace(retries=again))
        finally:
            self._span += time.perf_counter() - began
            for seat in self._seats:
                seat.index = None if seat.index is None else UNWANTED

    def _collect(self, todo: deque[int], answers: dict[int, Answer[Any] | _Raised], trouble: Trouble) -> None:
        """Waits for some worker, and puts down what it answered; what is lost is to be done again, and first."""
        for seat in self._answered():
            index, answer = self._hear(seat, trouble)
            if index is None:
                continue
            if (answer := answer or self._given_up(index, trouble)) is None:
                todo.appendleft(index)
            else:
                answers[index] = answer
                self._busy += answer.timing.seconds if isinstance(answer, Answer) else 0.0

    def _put(self, shared: object) -> Any:
        """Reference to the parcel of an object; the last one is kept."""
        import ray

        if self._shared is None or self._shared[0] is not shared:
            self._shared = None  # freed before the next one is put
            self._shared = (shared, ray.put(pack(shared, self._own_modules)))
        return self._shared[1]

    def usage(self) -> Usage:
        """Workers, and the share of the time in which there was work that they waited."""
        span = self.workers * self._span
        return Usage(self.workers, max(0.0, 1.0 - self._busy / span) if span else 0.0)

    def peak_megabytes(self) -> float:
        """Peak memory of the largest worker, beyond what it shares (Linux)."""
        import ray

        peaks: list[float] = ray.get([seat.actor.peak_megabytes.remote() for seat in self._seats])
        return max(peaks)

    def close(self) -> None:
        """Lets the workers go."""
        for seat in self._seats:
            self._dismiss(seat)
        self._seats = []

    def _assign(self, todo: deque[int], shared: Any, call: Any) -> None:
        """Gives every worker that has joined and waits one item."""
        for seat in self._seats:
            if todo and seat.about is not None and seat.index is None:
                seat.index = todo.popleft()
                seat.since = time.perf_counter()
                seat.asked = seat.actor.work.remote([shared], [call], seat.index)

    def _answered(self) -> list[_Seat]:
        """Waits for workers to join, to finish, to die, or to take too long."""
        import ray

        asked = {seat.asked: seat for seat in self._seats if seat.about is None or seat.index is not None}
        now = time.perf_counter()
        left = [self._limit(seat) - (now - seat.since) for seat in asked.values()]
        done, _ = ray.wait(list(asked), num_returns=1, timeout=max(0.0, min(left)))
        if done:
            more, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            return [asked[reference] for reference in more]
        now = time.perf_counter()
        return [seat for seat in asked.values() if now - seat.since >= self._limit(seat)]

    def _limit(self, seat: _Seat) -> float:
        return JOIN_SECONDS if seat.about is None else self._config.limit_seconds

    def _hear(self, seat: _Seat, trouble: Trouble) -> tuple[int | None, Answer[Any] | _Raised | None]:
        """What a worker answered: its item, and an answer unless the worker is lost."""
        index, seat.index = seat.index, None
        answer, kind = self._fetched(seat, index)
        if kind == "hung" and index is None:
            self._nobody_joins(seat)
        elif kind:
            self._replace(seat)
        elif index is None:
            self._join(seat, answer)
        if index is None or index == UNWANTED:
            return None, None
        if kind:
            trouble[kind, index] += 1
            return index, None
        if isinstance(answer, _Raised):
            return index, answer
        value, timing = answer
        return index, Answer(value, "", timing)

    def _fetched(self, seat: _Seat, index: int | None) -> tuple[Any, str]:
        """What a worker sent (`_Raised` where the function raised), or how it was lost: "died" or "hung".

        Raises:
            ValueError: If it cannot load what it needs.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return ray.get(seat.asked, timeout=0), ""
        except GetTimeoutError:
            return None, "hung"
        except RayTaskError as error:
            if index == UNWANTED:
                return None, ""
            if index is None or isinstance(error.cause, Unloadable):
                raise _unable(str(error.cause)) from error
            return _Raised(error.cause, error), ""
        except RayError as error:
            if getattr(error, "actor_init_failed", False):  # on that node no other would fare better
                raise _unable(str(error).strip().splitlines()[-1]) from error
            logger.info("a worker is lost: %s", error)
            return None, "died"

    def _given_up(self, index: int, trouble: Trouble) -> Answer[Any] | None:
        """The answer of an item that killed or blocked workers too often; None while it is tried again."""
        if trouble["hung", index] > self._config.retries:
            reason = f"an evaluation must end within {self._config.limit_seconds:g} s, but did not"
        elif trouble["died", index] > MAX_DEATHS:
            reason = f"its worker died {trouble['died', index]} times"
        else:
            return None
        return Answer(None, reason, Timing(0.0, "", 0))

    def _nobody_joins(self, seat: _Seat) -> None:
        """Waits on while others work.

        Raises:
            ValueError: If no worker is there.
        """
        if all(other.about is None for other in self._seats):
            raise ValueError(
                f"a worker must start within {JOIN_SECONDS:g} s, but none did: look at `ray status`, and ask for "
                f"no more than the cluster has (each worker takes 1 CPU and {self._config.gpus:g} GPUs)"
            )
        seat.since = time.perf_counter()

    def _join(self, seat: _Seat, about: About) -> None:
        seat.about = about
        models = {cpu_model(), *(other.about.processor for other in self._seats if other.about is not None)}
        if len(models) > 1 and not self._warned:
            self._warned = True
            logger.warning(
                "driver and workers run on different processors (%s): their last digits may differ, so another run "
                "with the same seed may end elsewhere",
                ", ".join(sorted(models)),
            )

    def _start(self) -> _Seat:
        import ray

        local = self._config.address is None
        threads = max(1, cores() // self.workers) if local else 1
        options = {"num_cpus": 1, "num_gpus": self._config.gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(**options)(Worker).remote(threads)  # type: ignore[call-overload]
        return _Seat(actor, actor.about.remote(), time.perf_counter())

    def _replace(self, seat: _Seat) -> None:
        self._dismiss(seat)
        self._seats[self._seats.index(seat)] = self._start()

    def _dismiss(self, seat: _Seat) -> None:
        import ray

        ray.kill(seat.actor, no_restart=True)


def _unable(reason: str) -> ValueError:
    return ValueError(
        f"a worker must be able to load the task, but raised {' '.join(reason.split())}: "
        "see docs/ray.md on what must be installed where"
    )


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """A connection to Ray: the one that is there (a sweep's), the cluster's, or a Ray of our own on this machine.

    Args:
        address: Of a cluster.
        cpus: How many a Ray of our own gives away.

    Raises:
        ValueError: If there is no cluster at the address.
    """
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Without "local" Ray would join any cluster that happens to run on this machine.
        with _importing_as_here():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RayError) as error:
            raise ValueError(
                f"--ray must name a cluster that runs, but {address!r} does not answer "
                f"({' '.join(str(error).split())}): start one by `ray start --head`, with the same RAY_AUTH_MODE and "
                "token as here (docs/ray.md)"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _importing_as_here() -> Iterator[None]:
    """What is started meanwhile finds the modules that this process finds, a notebook's or a script's own too."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
