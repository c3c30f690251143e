"""Rollouts on Ray workers, on this machine or a cluster: who plays, in what order results arrive and who dies on the
way changes nothing but the time.

Everything an evaluation needs is in the object store once per node (`parcel`); a round's plans are put there
once. Workers keep no state that a result could depend on, so an episode that is lost is simply played again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.searcher import Plan
from amc.config.parts import WorkersConfig
from amc.rollouts.episode import Outcome, Played, Timing, Usage, conclude, failed
from amc.rollouts.parcel import pack
from amc.rollouts.worker import About, Round, Worker, processor
from amc.scoring.evaluate import Evaluator
from envs.parallel import cores
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

MOST_DEATHS = 6
"""An episode whose worker died so often is to blame itself: it is recorded as failed."""
JOIN_SECONDS = 300.0
"""How long a search without a single worker waits for one."""


@dataclass(slots=True, eq=False)
class _Hand:
    """One worker as the driver sees it: what it was asked last, and since when."""

    actor: Any
    asked: Any
    since: float
    about: About | None = None
    index: int | None = None


class RayRollouts:
    """Plays rounds on Ray actors; replaces those that die or hang."""

    def __init__(
        self,
        environment: PruningEnv,
        evaluator: Evaluator,
        config: WorkersConfig,
        number: int,
        own_modules: Sequence[str] = (),
    ) -> None:
        """Hires workers, which start while the caller goes on.

        Args:
            environment: As for `SerialRollouts`.
            evaluator: Remembers and counts.
            config: Limits and sizes.
            number: How many workers.
            own_modules: Modules whose code travels to the workers.
        """
        self._environment, self._evaluator, self._config = environment, evaluator, config
        self._number, self._own_modules = number, tuple(own_modules)
        self._parcel: Any = None
        self._hands = [self._hire() for _ in range(number)]
        self._busy, self._began, self._ended, self._warned = 0.0, 0.0, 0.0, False

    def play(self, plans: Sequence[Plan], bar: Evaluation | None = None) -> list[Played]:
        """One finished or failed episode per plan, in the order of the plans.

        Raises:
            ValueError: If no worker can be started, or they cannot load the task.
        """
        import ray

        self._began = self._began or time.perf_counter()
        if self._parcel is None:
            self._parcel = ray.put(pack(self._environment, self._own_modules))
        shared = ray.put(Round(tuple(plans), self._evaluator.known(), bar))
        todo, trouble = deque(range(len(plans))), Counter[tuple[str, int]]()
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < len(plans):
            self._assign(todo, shared)
            for hand in self._answered():
                index, outcome = self._hear(hand, trouble)
                if outcome is None and index is not None:
                    outcome = self._given_up(plans[index], index, trouble)
                    todo.extendleft([] if outcome else [index])
                if outcome is not None and index is not None:
                    outcomes[index] = outcome
        self._ended = time.perf_counter()
        return [self._conclude(plan, outcomes[index], index, trouble) for index, plan in enumerate(plans)]

    def usage(self) -> Usage:
        """Workers, and how much of the time between the first round's begin and the last one's end they waited."""
        span = self._number * (self._ended - self._began)
        return Usage(self._number, max(0.0, 1.0 - self._busy / span) if span else 0.0)

    def peak_megabytes(self) -> float:
        """Peak memory of the largest worker, beyond what it shares (Linux)."""
        import ray

        peaks: list[float] = ray.get([hand.actor.peak_megabytes.remote() for hand in self._hands])
        return max(peaks)

    def close(self) -> None:
        """Lets the workers go."""
        for hand in self._hands:
            self._dismiss(hand)
        self._hands = []

    def _conclude(self, plan: Plan, outcome: Outcome, index: int, trouble: Counter[tuple[str, int]]) -> Played:
        timing, again = outcome.timing, trouble["died", index] + trouble["hung", index]
        self._busy += timing.seconds
        outcome = outcome._replace(timing=timing._replace(retries=timing.retries + again))
        return conclude(plan.label, outcome, self._evaluator.account, self._environment.reward)

    def _assign(self, todo: deque[int], shared: Any) -> None:
        """Gives every worker that has joined and waits one episode."""
        for hand in self._hands:
            if todo and hand.about is not None and hand.index is None:
                hand.index, hand.since = todo.popleft(), time.perf_counter()
                hand.asked = hand.actor.play.remote([self._parcel], [shared], hand.index, self._config.retries)

    def _answered(self) -> list[_Hand]:
        """Waits for workers to join, to finish, to die, or to take too long."""
        import ray

        asked = {hand.asked: hand for hand in self._hands if hand.about is None or hand.index is not None}
        now = time.perf_counter()
        left = [self._limit(hand) - (now - hand.since) for hand in asked.values()]
        done, _ = ray.wait(list(asked), num_returns=1, timeout=max(0.0, min(left)))
        if done:
            more, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            return [asked[reference] for reference in more]
        now = time.perf_counter()
        return [hand for hand in asked.values() if now - hand.since >= self._limit(hand)]

    def _limit(self, hand: _Hand) -> float:
        return JOIN_SECONDS if hand.about is None else self._config.limit_seconds

    def _hear(self, hand: _Hand, trouble: Counter[tuple[str, int]]) -> tuple[int | None, Outcome | None]:
        """What a worker answered: its episode, and an outcome unless the worker is lost."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        index, hand.index = hand.index, None
        try:
            answer = ray.get(hand.asked, timeout=0)
        except GetTimeoutError:
            if index is None:
                self._nobody_joins(hand)
                return None, None
            kind = "hung"
        except RayTaskError as error:
            raise _unable(str(error.cause)) from error
        except RayError as error:
            if getattr(error, "actor_init_failed", False):  # on that node no other would fare better
                raise _unable(str(error).strip().splitlines()[-1]) from error
            logger.info("a worker is lost: %s", error)
            kind = "died"
        else:
            if index is None:
                self._join(hand, answer)
                return None, None
            return index, answer
        self._replace(hand)
        if index is not None:
            trouble[kind, index] += 1
        return index, None

    def _given_up(self, plan: Plan, index: int, trouble: Counter[tuple[str, int]]) -> Outcome | None:
        """The outcome of an episode that killed or blocked workers too often; None while it is tried again."""
        if trouble["hung", index] > self._config.retries:
            reason = f"an evaluation must end within {self._config.limit_seconds:g} s, but did not"
        elif trouble["died", index] > MOST_DEATHS:
            reason = f"its worker died {trouble['died', index]} times"
        else:
            return None
        return failed(self._environment, plan, reason, Timing(0.0, "", 0))

    def _nobody_joins(self, hand: _Hand) -> None:
        """Waits on while others work.

        Raises:
            ValueError: If no worker is there.
        """
        if all(other.about is None for other in self._hands):
            raise ValueError(
                f"a worker must start within {JOIN_SECONDS:g} s, but none did: look at `ray status`, and ask for "
                f"no more than the cluster has (each worker takes 1 CPU and {self._config.gpus:g} GPUs)"
            )
        hand.since = time.perf_counter()

    def _join(self, hand: _Hand, about: About) -> None:
        hand.about = about
        models = {processor(), *(other.about.processor for other in self._hands if other.about is not None)}
        if len(models) > 1 and not self._warned:
            self._warned = True
            logger.warning(
                "driver and workers run on different processors (%s): their last digits may differ, so another run "
                "with the same seed may end elsewhere",
                ", ".join(sorted(models)),
            )

    def _hire(self) -> _Hand:
        import ray

        local = self._config.address is None
        threads = max(1, cores() // self._number) if local else 1
        options = {"num_cpus": 1, "num_gpus": self._config.gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(**options)(Worker).remote(threads)  # type: ignore[call-overload]
        return _Hand(actor, actor.about.remote(), time.perf_counter())

    def _replace(self, hand: _Hand) -> None:
        self._dismiss(hand)
        self._hands[self._hands.index(hand)] = self._hire()

    def _dismiss(self, hand: _Hand) -> None:
        import ray

        ray.kill(hand.actor, no_restart=True)


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
