"""The lowest versions that pyproject.toml allows, as constraints."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts.oldest import PROJECT, oldest

PINNED = [Requirement(line) for line in (PROJECT.parent / "constraints.txt").read_text().split()]


def test_every_dependency_is_pinned_to_a_version_that_it_allows_and_that_is_not_above_the_tested_one() -> None:
    project = tomllib.loads(PROJECT.read_text())
    asked = {one.name: one for one in map(Requirement, project["project"]["dependencies"])}
    tested = {one.name.lower().replace("_", "-"): Version(next(iter(one.specifier)).version) for one in PINNED}
    lowest = {one.name: Version(next(iter(one.specifier)).version) for one in map(Requirement, oldest(project))}
    assert set(asked) <= set(lowest)
    assert all(lowest[name] in one.specifier for name, one in asked.items())
    assert all(version <= tested[name.lower()] for name, version in lowest.items())


def test_a_requirement_without_a_lower_bound_is_refused() -> None:
    project = {"project": {"dependencies": ["numpy<3"], "optional-dependencies": {"dev": []}}}
    with pytest.raises(ValueError, match="must have a lower bound, but got 'numpy<3'"):
        list(oldest(project))
