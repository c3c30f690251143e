"""Agents by name: from the configuration to a `Searcher` on the problem's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agents.cma_es import CMAES
from agents.ddpg import DDPGSearcher
from agents.random_search import RandomSearch
from agents.searcher import Searcher
from agents.settings import PAPER_SETTINGS, DDPGSettings
from amc.allocation.groups import alone
from amc.allocation.knapsack import linearize
from amc.search.setup import Problem
from envs.observation import FEATURES
from hw_profiles.layers import IntArray


def make_searcher(problem: Problem, starts: Mapping[str, Sequence[int]]) -> Searcher:
    """The configured searcher.

    Args:
        problem: Steps, settings and seed.
        starts: Label -> [S] kept channels, proposed first.
    """
    config, steps = problem.config, len(problem.sites)
    actions = [
        (label, [site.action(kept) for site, kept in zip(problem.sites, widths, strict=True)])
        for label, widths in starts.items()
    ]
    if config.agent in ("ddpg", "td3", "sac"):
        base = PAPER_SETTINGS if config.preset == "paper" else DDPGSettings()
        own = config.learning.model_dump(exclude_unset=True)
        settings = base.changed(algorithm=config.agent, warmup_episodes=config.warmup, **own)
        shares = budget_shares(problem, next(iter(starts.values()), problem.constraint.uniform()))
        return DDPGSearcher(len(FEATURES), steps, settings, config.seed, actions, shares=shares)
    if config.agent == "cmaes":
        return CMAES(steps, config.seed, actions, sigma=0.05 if actions else 0.25)
    return RandomSearch(steps, config.seed, actions)


def budget_shares(problem: Problem, widths: Sequence[int] | IntArray) -> list[float]:
    """[S] change of the first budget's cost per unit of preserve ratio, between each site's neighbouring choices."""
    costing, kept = problem.constraint.costing, np.asarray(widths)
    groups = alone(costing, [np.zeros(len(site.choices)) for site in costing.sites])
    tables = linearize(costing, problem.constraint.budgets[0].cost, kept, groups)[1]
    shares = []
    for site, group, table in zip(costing.sites, groups, tables, strict=True):
        index = group.index(kept)
        low, high = max(index - 1, 0), min(index + 1, len(table) - 1)
        distance = site.choices[high].ratio - site.choices[low].ratio
        shares.append(float(table[high] - table[low]) / distance if distance else 0.0)
    return shares
