"""Which pool a configuration asks for: this process, or Ray workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from amc.config.parts import WorkersConfig
from amc.pool.pool import InProcess, Pool
from amc.pool.ray import RayPool, connected


@contextmanager
def open_pool(config: WorkersConfig, own_modules: Sequence[str] = ()) -> Iterator[Pool]:
    """The pool that is configured, for as long as the context lasts.

    Args:
        config: How many workers, and where; none: this process.
        own_modules: The user's modules that the task is made of.
    """
    if not config.wanted:
        yield InProcess()
        return
    with connected(config.address, config.workers):
        number = config.workers or _cluster_cpus()
        # On this machine workers import the user's modules from where the driver does.
        pool = RayPool(config, number, own_modules if config.address else ())
        try:
            yield pool
        finally:
            pool.close()


def _cluster_cpus() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))
