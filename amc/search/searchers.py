"""Agents by name: from the configuration to a `Searcher` on the problem's steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agents.cma_es import CMAES
from agents.ddpg import DDPGSearcher
from agents.random_search import RandomSearch
from agents.searcher import Searcher
from agents.settings import PAPER_SETTINGS, DDPGSettings
from amc.problem.prepare import Prepared
from amc.problem.setup import Setup
from amc.search.allocation.groups import alone
from amc.search.allocation.knapsack import linearize
from envs.observation import FEATURES
from envs.space.assignment import Assignment, Key


def make_searcher(prepared: Prepared, starts: Mapping[str, Key]) -> Searcher:
    """The configured searcher.

    Args:
        prepared: Steps, settings and seed.
        starts: Label -> assignment, proposed first.
    """
    config, setup = prepared.config, prepared.setup
    steps = len(setup.sites)
    actions = [(label, setup.assignment(key).actions) for label, key in starts.items()]
    if config.agent in ("ddpg", "td3", "sac"):
        base = PAPER_SETTINGS if config.preset == "paper" else DDPGSettings()
        own = config.learning.model_dump(exclude_unset=True)
        settings = base.changed(algorithm=config.agent, warmup_episodes=config.warmup, **own)
        first = next(iter(starts.values()), None)
        shares = budget_shares(setup, setup.uniform() if first is None else setup.assignment(first))
        return DDPGSearcher(len(FEATURES), steps, settings, config.seed, actions, shares=shares)
    if config.agent == "cmaes":
        return CMAES(steps, config.seed, actions, sigma=0.05 if actions else 0.25)
    return RandomSearch(steps, config.seed, actions)


def budget_shares(setup: Setup, assignment: Assignment) -> list[float]:
    """[S] change of the first budget's cost per unit of preserve ratio, between each site's neighbouring choices."""
    costing, kept = setup.constraint.costing, assignment.values
    groups = alone(costing, [np.zeros(len(site.choices)) for site in costing.sites])
    tables = linearize(costing, setup.constraint.budgets[0].cost, kept, groups)[1]
    shares = []
    for site, group, table in zip(costing.sites, groups, tables, strict=True):
        index = group.index(kept)
        low, high = max(index - 1, 0), min(index + 1, len(table) - 1)
        distance = site.choices[high].ratio - site.choices[low].ratio
        shares.append(float(table[high] - table[low]) / distance if distance else 0.0)
    return shares
