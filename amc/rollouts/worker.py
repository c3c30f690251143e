"""What runs inside a Ray worker: one environment, taken from the object store once, and episodes on demand."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.searcher import Plan
from amc.rollouts.episode import Outcome, perform
from amc.rollouts.parcel import unpack
from amc.scoring.evaluate import Key
from envs.parallel import THREADS, keep_memory, single_threaded
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation
from hw_profiles.device import cpu_model


class Round(NamedTuple):
    """What all episodes of a round share: the plans, [K, U] widths that were evaluated before, the bar to pass."""

    plans: Sequence[Plan]
    known: NDArray[np.int32]
    bar: Evaluation | None = None

    def knows(self, key: Key) -> bool:
        """Whether widths were evaluated before this round."""
        missing = self.known.shape[-1] - len(key)  # keys of dense layers are short, and zeros fill their rows
        if not len(self.known) or missing < 0:
            return False
        return bool((self.known == np.asarray([*key, *[0] * missing], dtype=np.int32)).all(axis=1).any())


class About(NamedTuple):
    """Where a worker runs."""

    host: str
    processor: str


class Worker:
    """Plays episodes in a process of its own; what it is given to hold it can be given again."""

    def __init__(self, threads: int) -> None:
        """Limits this process to its share of the machine's cores."""
        os.environ[THREADS] = str(threads)
        single_threaded()
        keep_memory()
        self._held: dict[str, tuple[str, Any]] = {}

    def about(self) -> About:
        """Where this worker runs."""
        return About(platform.node(), processor())

    def peak_megabytes(self) -> float:
        """Peak memory of this process beyond what it shares through the object store."""
        with open("/proc/self/status", encoding="utf-8") as file:
            sizes = dict(line.split(":", 1) for line in file)
        return (int(sizes["VmHWM"].split()[0]) - int(sizes["RssShmem"].split()[0])) / 1024

    def play(self, environment: Sequence[Any], shared: Sequence[Any], index: int, retries: int) -> Outcome:
        """One episode.

        Args:
            environment: Reference to the parcel of a `PruningEnv`, in a list so that Ray leaves it alone.
            shared: Reference to the `Round`, likewise.
            index: Which of its plans.
            retries: How often to try a failed evaluation again.
        """
        own: PruningEnv = self._get("environment", environment[0])
        round_: Round = self._get("round", shared[0])
        return perform(own, round_.plans[index], round_.knows, retries, round_.bar)

    def _get(self, what: str, reference: Any) -> Any:
        import ray

        name = reference.hex()
        if what not in self._held or self._held[what][0] != name:
            value = ray.get(reference)
            self._held[what] = (name, unpack(value) if what == "environment" else value)
        return self._held[what][1]


@cache
def processor() -> str:
    """Model of the CPU."""
    return cpu_model()
