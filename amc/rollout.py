"""Playing episodes: a plan walks the environment. One interface, so that who plays cannot change what happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agents.searcher import Plan, Trajectory
from envs.observation import ObservationArray
from envs.policy import Policy
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """One finished episode.

    Attributes:
        trajectory: What a searcher learns from.
        widths: [S] kept channels.
        policy: The pruning policy.
        evaluation: What it achieves.
    """

    trajectory: Trajectory
    widths: tuple[int, ...]
    policy: Policy
    evaluation: Evaluation

    def to_json(self, index: int) -> dict[str, Any]:
        """One line of `episodes.jsonl`; only what configuration and seed determine."""
        return {
            "episode": index,
            "searcher": self.trajectory.label,
            "actions": [round(float(action), 6) for action in self.trajectory.actions],
            "choices": list(self.widths),
            "costs": dict(self.evaluation.costs),
            "accuracy": self.evaluation.accuracy,
            "reward": self.trajectory.reward,
            "images": self.evaluation.image_forwards,
        }


class Rollouts(Protocol):
    """Plays a round of plans and returns the episodes in the order of the plans."""

    def play(self, plans: Sequence[Plan]) -> list[Episode]:
        """One finished episode per plan."""
        ...


class SerialRollouts:
    """Plays in this process, one after the other."""

    def __init__(self, environment: PruningEnv) -> None:
        """Uses one environment for all episodes."""
        self._environment = environment

    def play(self, plans: Sequence[Plan]) -> list[Episode]:
        """One finished episode per plan."""
        return [play(self._environment, plan) for plan in plans]


def play(environment: PruningEnv, plan: Plan) -> Episode:
    """Walks the environment once with a plan."""
    observation, _ = environment.reset()
    observations: list[ObservationArray] = []
    actions: list[float] = []
    terminated, reward, info = False, 0.0, dict[str, Any]()
    while not terminated:
        observations.append(observation)
        action = np.asarray([plan(len(actions), observation)], dtype=np.float32)
        observation, reward, terminated, _, info = environment.step(action)
        actions.append(info["executed_action"])
    trajectory = Trajectory(
        observations=np.stack(observations), actions=np.asarray(actions, dtype=np.float32), reward=reward,
        label=plan.label,
    )  # fmt: skip
    return Episode(trajectory=trajectory, widths=info["widths"], policy=info["policy"], evaluation=info["evaluation"])
