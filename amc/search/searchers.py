"""From the configuration to the `Searcher` of its agent (`agents.names.AGENTS`), on the sites of a search."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

import numpy as np

from agents.names import AGENTS
from agents.searcher import MakeSearcher, Searcher, SearchInputs
from agents.settings import PAPER_SETTINGS, Algorithm, DDPGSettings
from amc.config.search import SearchConfig
from amc.problem.given.searcher import watched_searcher
from amc.problem.prepare import Prepared
from amc.problem.setup import Setup
from amc.search.allocation.groups import alone
from amc.search.allocation.knapsack import linearize
from amc.search.ranges.budgets import GRID
from amc.search.ranges.guides import KNAPSACK, STILL, Guide
from envs.lookup import find
from envs.observation import FEATURES
from envs.space.assignment import Assignment, Key

RANGED: dict[str, Any] = {
    "best_share": 0.2,
    "step_code": False,
    "warmup_start_sigma": 0.15,
    "cloned_sigma": 0.15,
    "sigma_floor": 0.05,
    "replay_episodes": 1000,
}
"""Settings of an agent of many budgets that are left open: more of the best episodes are averaged, as rewards of
different budgets are compared; nothing tells it the number of a site, and its noise is wider, as an action is a change
of the knapsack's."""


def make_searcher(prepared: Prepared, starts: Mapping[str, Key]) -> Searcher:
    """The configured searcher.

    Args:
        prepared: Steps, settings and seed.
        starts: Label -> assignment, proposed first.
    """
    config, setup = prepared.config, prepared.setup
    if setup.ends is not None:
        return ranged_searcher(config, setup)
    first = next(iter(starts.values()), None)
    inputs = SearchInputs(
        observation_size=len(FEATURES),
        steps=len(setup.sites),
        seed=config.seed,
        starts=[(label, setup.assignment(key).actions) for label, key in starts.items()],
        settings=_settings(config),
        shares=budget_shares(setup, setup.uniform() if first is None else setup.assignment(first)),
    )
    return _made(config, setup, inputs)


def ranged_searcher(config: SearchConfig, setup: Setup) -> Searcher:
    """The searcher of a range of budgets: an action says how much a site's damage counts.

    Args:
        config: With a range.
        setup: Sites and costs, of this range or one of its budgets.
    """
    steps = len(setup.sites)
    settings = _settings(config, RANGED)
    inputs = SearchInputs(
        observation_size=Guide.size(len(setup.constraint.budgets)),
        steps=steps,
        seed=config.seed,
        starts=[(KNAPSACK, [STILL] * steps)] * (GRID * max(len(config.profiles), 1)),
        settings=settings,
        shares=[0.0] * steps,  # what is left of the budget is spread over later sites as it is
        sigma=settings.warmup_start_sigma,
    )
    return _made(config, setup, inputs)


def sees_whole(config: SearchConfig) -> bool:
    """Whether the agent of a range learns of whole assignments."""
    return config.agent in get_args(Algorithm) and _settings(config, RANGED).whole_critic


def _settings(config: SearchConfig, defaults: Mapping[str, Any] = MappingProxyType({})) -> DDPGSettings:
    """The preset's, changed by what the configuration sets, and by defaults where that leaves them open."""
    base = PAPER_SETTINGS if config.preset == "paper" else DDPGSettings()
    return base.changed(warmup_episodes=config.warmup, **{**defaults, **config.learning.model_dump(exclude_unset=True)})


def _made(config: SearchConfig, setup: Setup, inputs: SearchInputs) -> Searcher:
    """The configured agent, or the user's own."""
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
