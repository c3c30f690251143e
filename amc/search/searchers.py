"""From the configuration to the `Searcher` of its agent (`agents.names.AGENTS`), on the sites of a search."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agents.names import AGENTS
from agents.searcher import MakeSearcher, Searcher, SearchInputs
from agents.settings import PAPER_SETTINGS, DDPGSettings
from amc.problem.given.searcher import watched_searcher
from amc.problem.prepare import Prepared
from amc.problem.setup import Setup
from amc.search.allocation.groups import alone
from amc.search.allocation.knapsack import linearize
from envs.lookup import find
from envs.observation import FEATURES
from envs.space.assignment import Assignment, Key


def make_searcher(prepared: Prepared, starts: Mapping[str, Key]) -> Searcher:
    """The configured searcher.

    Args:
        prepared: Steps, settings and seed.
        starts: Label -> assignment, proposed first.
    """
    config, setup = prepared.config, prepared.setup
    base = PAPER_SETTINGS if config.preset == "paper" else DDPGSettings()
    first = next(iter(starts.values()), None)
    inputs = SearchInputs(
        observation_size=len(FEATURES),
        steps=len(setup.sites),
        seed=config.seed,
        starts=[(label, setup.assignment(key).actions) for label, key in starts.items()],
        settings=base.changed(warmup_episodes=config.warmup, **config.learning.model_dump(exclude_unset=True)),
        shares=budget_shares(setup, setup.uniform() if first is None else setup.assignment(first)),
    )
    if setup.objects.searcher is not None:
        return watched_searcher(setup.objects.searcher, inputs)
    agent = "random" if config.single else config.agent  # a single policy is a start: nothing follows it
    make: MakeSearcher = find("agent", agent, AGENTS)
    return make(inputs)


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
