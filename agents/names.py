"""Agents that search, by name. Imports neither torch nor stable-baselines3: a configuration is read without them."""

from __future__ import annotations

AGENTS = {
    "ddpg": "agents.ddpg:ddpg",
    "td3": "agents.ddpg:td3",
    "sac": "agents.ddpg:sac",
    "cmaes": "agents.cma_es:cma_es",
    "swap": "agents.swap:swap",
    "tpe": "agents.optuna_samplers:tpe",
    "gp": "agents.optuna_samplers:gp",
    "random": "agents.random_search:random_search",
}
"""Name -> where the function stands that makes the searcher from `searcher.SearchInputs`: a `searcher.MakeSearcher`."""
