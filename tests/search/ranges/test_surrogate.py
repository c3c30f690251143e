"""The surrogate of a range: what it learns of whole assignments, and how an agent's actions say its best one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from amc.search.ranges.environment import RangedEnv
from amc.search.ranges.guides import Guide, Guides
from amc.search.ranges.surrogate import LEAST, Surrogate
from envs.compression.damage import Curve
from envs.reward import Evaluation, accuracy
from envs.space.assignment import Key
from envs.space.constraint import Budget, Constraint, Costing
from envs.space.policy import Policy
from hw_profiles.cost import Macs
from hw_profiles.layers import IntArray

if TYPE_CHECKING:
    from tests.conftest import Specimen

NO_POLICY = Policy(structure="", weights="", units=(), layers=(), provenance={})
SHARES = np.linspace(0.3, 0.8, 10)


@pytest.fixture(scope="module")
def costing(zoo: Callable[[str], Specimen]) -> Costing:
    return zoo("residual").costing()


def curves(costing: Costing) -> tuple[Curve, ...]:
    return tuple(
        Curve(unit=site.name, kept=tuple(site.values().tolist()), damage=tuple((3 * (1 - site.ratios()) ** 2).tolist()))
        for site in costing.sites
    )


def loss(costing: Costing, key: Key) -> float:
    """Not a sum: the last site counts five times the others, the more so the less is left of the first."""
    gone = [1 - site.action(value) for site, value in zip(costing.sites, key, strict=True)]
    return 0.1 + sum(own**2 for own in gone[:-1]) + 5 * gone[-1] ** 2 * (1 + gone[0])


def guides(costing: Costing) -> Guides:
    limit = 0.5 * costing.one(Macs(), costing.dense())
    return Guides(Constraint.create(costing, [Budget(Macs(), limit)]), curves(costing))


def at(costing: Costing, share: float) -> tuple[float]:
    return (float(share) * costing.one(Macs(), costing.dense()),)


@pytest.fixture(scope="module")
def played(costing: Costing) -> list[tuple[Key, float]]:
    """Random episodes over a range, and their rewards, the dense network's being 1."""
    generator = np.random.default_rng(0)
    keys = [
        guides(costing).at(at(costing, share)).assignment(generator.random(len(costing.sites)).tolist()).key
        for share in np.tile(SHARES, 8)
    ]
    return [(key, 1.0 - loss(costing, key)) for key in keys]


def fitted(costing: Costing, played: list[tuple[Key, float]]) -> Surrogate:
    return Surrogate.of(costing, curves(costing), 1.0, played)


def test_what_it_expects_most_of_is_better_than_the_knapsack_at_budgets_that_nothing_was_played_at(
    costing: Costing, played: list[tuple[Key, float]]
) -> None:
    learned = fitted(costing, played)
    every = np.asarray(list(product(*(site.values().tolist() for site in costing.sites))))
    losses = np.asarray([loss(costing, key) for key in every.tolist()])
    found, solved = [], []
    for share in SHARES[:-1] + 0.02:
        guide = guides(costing).at(at(costing, share))
        best = learned.best(guide)
        optimum = losses[guide.constraint.keeps(every)].min()
        assert guide.constraint.keeps(best).all()
        found.append(loss(costing, tuple(best.tolist())) / optimum - 1)
        solved.append(loss(costing, tuple(guide.solution.tolist())) / optimum - 1)
    assert np.mean(found) < 0.5 * np.mean(solved)


def test_it_foretells_assignments_that_it_has_not_seen(costing: Costing, played: list[tuple[Key, float]]) -> None:
    learned = fitted(costing, played[:60])
    unseen = np.asarray([key for key, _ in played[60:]])
    truth = np.log([loss(costing, key) for key, _ in played[60:]])
    assert np.sqrt(np.mean((learned.expected(unseen) - truth) ** 2)) < 0.3 * truth.std()
    assert (learned.expected(unseen, daring=1.0) < learned.expected(unseen)).all()


def test_it_is_the_same_with_any_number_of_threads(costing: Costing, played: list[tuple[Key, float]]) -> None:
    guide = guides(costing).at(at(costing, 0.45))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            learned = fitted(costing, played)
            found.append((learned.best(guide, 1.0).tolist(), learned.expected(learned.played).tolist()))
    assert found[0] == found[1]


def test_rewards_as_good_as_the_dense_networks_count_as_a_small_loss(costing: Costing) -> None:
    dense, lightest = tuple(costing.dense().tolist()), tuple(costing.lightest().tolist())
    learned = fitted(costing, [(dense, 1.2), (lightest, 0.0)])
    expected = learned.expected(np.asarray([dense, lightest]))
    assert np.isfinite(expected).all()
    assert expected[0] == pytest.approx(np.log(LEAST), abs=0.5)


def test_without_any_episode_there_is_nothing_to_fit(costing: Costing) -> None:
    with pytest.raises(ValueError, match="play episodes first"):
        fitted(costing, [])


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_an_assignment_that_the_agents_actions_can_mean_is_said_in_them(costing: Costing, share: float) -> None:
    guide = guides(costing).at(at(costing, share))
    generator = np.random.default_rng(1)
    meant = [guide.assignment((0.3 + 0.4 * generator.random(guide.steps)).tolist()) for _ in range(10)]
    again = [guide.assignment(guide.actions_for(one.values)) for one in meant]
    near = [np.abs(np.subtract(one.actions, other.actions)).max() for one, other in zip(meant, again, strict=True)]
    assert np.median(near) == 0.0


def test_the_environment_plays_what_is_wanted_and_refuses_what_breaks_the_budget(costing: Costing) -> None:
    guide = guides(costing).at(at(costing, 0.5))
    wanted = costing.lightest()
    assert ended(guide_env(guide, wanted)) == tuple(wanted.tolist())
    with pytest.raises(RuntimeError, match="every budget must be kept"):
        ended(guide_env(guide, costing.dense()))


def guide_env(guide: Guide, wanted: IntArray) -> RangedEnv:
    scored = Evaluation(metric=0.75, loss=None, images=1, image_forwards=1)
    return RangedEnv(guide, lambda _: NO_POLICY, lambda _: scored, accuracy, wanted)


def ended(environment: RangedEnv) -> Key:
    """What was decided, whatever the actions were."""
    environment.reset()
    terminated = False
    while not terminated:
        _, _, terminated, _, info = environment.step(np.asarray([0.5], dtype=np.float32))
    key: Key = info["assignment"].key
    return key
