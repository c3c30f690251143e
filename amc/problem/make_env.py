"""`gymnasium.make("amc:amc/ChannelPruning-v0", task="digits", constraint="macs=0.5")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amc.config.budgets import parse_constraints
from amc.config.search import load_config
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from envs.pruning_env import PruningEnv


def channel_pruning(
    task: str, constraint: str | Sequence[str] | Mapping[str, float] = "macs=0.5", **settings: Any
) -> PruningEnv:
    """Builds the environment of a task under a constraint; its reward is validation accuracy unless set.

    Args:
        task: As `--task` of the command line.
        constraint: "macs=0.5", several of them, or a mapping.
        settings: Any other key of the configuration (`compression={"repair": "layerwise"}`, `seed=1`, ...).

    Raises:
        ValueError: If task, constraint or a setting is not usable.
    """
    if isinstance(constraint, str):
        constraint = constraint.split(",")
    budgets = dict(constraint) if isinstance(constraint, Mapping) else parse_constraints(constraint)
    reward = {"reward": "accuracy", "reward_split": "validation"}
    config = load_config(None, {"task": task, "constraint": budgets, **reward, **settings})
    return prepare(set_up(config)).environment()
