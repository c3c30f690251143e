"""Who plays a search's episodes: this process, or Ray workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from amc.config.parts import WorkersConfig
from amc.rollouts.episode import Rollouts, SerialRollouts
from amc.rollouts.ray import RayRollouts, connected

if TYPE_CHECKING:
    from amc.search.setup import Problem


@contextmanager
def staffed(problem: Problem, config: WorkersConfig) -> Iterator[Rollouts]:
    """Whoever plays a search's episodes, for as long as it lasts: this process, or workers."""
    if not config.wanted:
        yield SerialRollouts(problem.environment(problem.measurement), problem.evaluate, config.retries)
        return
    with connected(config.address, config.workers):
        number = config.workers or _cluster_cpus()
        # On this machine workers import the user's modules from where the driver does.
        own = problem.own_modules() if config.address else ()
        rollouts = RayRollouts(problem.portable_environment(), problem.evaluate, config, number, own)
        try:
            yield rollouts
        finally:
            rollouts.close()


def _cluster_cpus() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))
