"""Pools for the tests of what is divided: this process, and two Ray workers that stay from test to test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amc.config.parts import WorkersConfig
from amc.pool.pool import InProcess, Pool
from amc.pool.ray import RayPool


class Workers:
    """Ray workers, one pool at a time: two of them take all CPUs of the tests' Ray."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._settings: tuple[float, int] | None = None
        self._pool: RayPool | None = None

    def __call__(self, limit_seconds: float = 60.0, retries: int = 2) -> RayPool:
        """A pool of two workers, the last one where it was asked for the same."""
        if self._pool is None or self._settings != (limit_seconds, retries):
            self.close()
            config = WorkersConfig(workers=2, limit_seconds=limit_seconds, retries=retries)
            self._settings, self._pool = (limit_seconds, retries), RayPool(config, 2, [self._module])
        return self._pool

    def close(self) -> None:
        """Lets them go."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None


@pytest.fixture(scope="module")
def workers(own_ray: None, request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Makes pools of two Ray workers, which have the code of the test's module."""
    made = Workers(request.module.__name__)
    yield made
    made.close()


@pytest.fixture
def free_ray(workers: Workers) -> None:
    """A Ray whose CPUs are free."""
    workers.close()


@pytest.fixture(params=["in process", "ray"])
def pool(request: pytest.FixtureRequest) -> Pool:
    """Each kind of pool."""
    if request.param == "in process":
        return InProcess()
    workers: Workers = request.getfixturevalue("workers")
    return workers()
