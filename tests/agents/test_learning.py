"""Proofs of learning: the real environment over small networks, policies whose optimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from agents.cma_es import CMAES
from agents.ddpg import DDPGSearcher
from agents.random_search import RandomSearch
from agents.searcher import Searcher
from agents.settings import DDPGSettings
from envs.observation import FEATURES
from experiments.learning.ddpg_ablation import Perturbed
from experiments.learning.ddpg_toys import Toy, confirmed, measured_toy, separable_toy

pytestmark = pytest.mark.xdist_group("learning")  # one process measures the toy that its tests share


def ddpg(toy: Toy, seed: int, settings: DDPGSettings | None = None) -> DDPGSearcher:
    settings = settings or DDPGSettings()
    return DDPGSearcher(len(FEATURES), toy.steps, settings, seed, toy.starts, shares=toy.shares)


def best(toy: Toy, searcher: Searcher, episodes: int, noise: float = 0.0, seed: int = 0) -> float:
    return confirmed(*toy.search(searcher, episodes, noise, seed))


def test_no_policy_within_the_budget_is_better_than_the_measured_optimum() -> None:
    toy = measured_toy()
    draw = np.random.default_rng(0)
    kept = np.array([toy.constraint.project(draw.random(toy.steps).tolist()) for _ in range(50)])
    assert toy.constraint.keeps(toy.optimum).all()
    assert toy.rewards(kept).max() <= toy.reward(toy.optimum)


def test_no_neighbour_of_the_knapsack_optimum_is_better() -> None:
    toy = separable_toy()
    neighbours = np.concatenate([toy.optimum + sign * np.eye(toy.steps, dtype=np.int64) for sign in (1, -1)])
    inside = neighbours[(neighbours >= 1).all(axis=1) & (neighbours <= toy.constraint.costing.dense()).all(axis=1)]
    legal = inside[toy.constraint.keeps(inside)]
    assert len(legal)
    assert toy.rewards(legal).max() <= toy.reward(toy.optimum)
    assert toy.start is not None
    assert 0.02 <= 1 - toy.reward(toy.start) / toy.reward(toy.optimum) <= 0.05


def test_ddpg_from_nothing_learns_to_prune_a_real_network() -> None:
    toy = measured_toy()
    learned = [best(toy, ddpg(toy, seed), episodes=80) for seed in range(2)]
    drawn = [best(toy, RandomSearch(toy.steps, seed), episodes=80) for seed in range(2)]
    assert min(learned) >= 0.95 * toy.reward(toy.optimum)
    assert np.mean(learned) > np.mean(drawn)


@pytest.mark.slow
def test_ddpg_from_nothing_comes_within_a_percent_of_the_optimum_for_five_of_five_seeds() -> None:
    toy = measured_toy()
    learned = [best(toy, ddpg(toy, seed), episodes=300) for seed in range(5)]
    drawn = [best(toy, RandomSearch(toy.steps, seed), episodes=300) for seed in range(5)]
    assert min(learned) >= 0.99 * toy.reward(toy.optimum)
    assert np.mean(learned) > np.mean(drawn)


@pytest.mark.slow
def test_ddpg_from_a_start_finds_better_than_perturbing_it_does() -> None:
    toy, noise = separable_toy((9, 9, 9)), 0.004
    learned = [best(toy, ddpg(toy, seed), 120, noise, seed) for seed in range(5)]
    perturbed = [[best(toy, Perturbed(toy, seed, s), 120, noise, seed) for seed in range(5)] for s in (0.05, 0.1)]
    assert np.mean(learned) > np.mean(perturbed, axis=1).max()


def test_cma_es_from_nothing_finds_the_optimum_of_a_real_network() -> None:
    toy = measured_toy()
    found = [best(toy, CMAES(toy.steps, seed, sigma=0.25), episodes=300) for seed in range(3)]
    assert min(found) >= 0.99 * toy.reward(toy.optimum)
