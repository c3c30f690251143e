"""Playing episodes: a plan walks the environment. One interface, so that who plays cannot change what happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from agents.searcher import Plan, Trajectory
from envs.observation import ObservationArray
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One finished episode, as it is written down.

    Attributes:
        searcher: Who proposed it.
        actions: [S] executed preserve ratios, six digits.
        widths: [S] kept channels.
        reward: What the searcher was told.
        evaluation: What the policy achieves.
    """

    searcher: str
    actions: tuple[float, ...]
    widths: tuple[int, ...]
    reward: float
    evaluation: Evaluation

    def to_json(self, index: int) -> dict[str, Any]:
        """One line of `episodes.jsonl`; only what configuration and seed determine."""
        return {
            "episode": index,
            "searcher": self.searcher,
            "actions": list(self.actions),
            "choices": list(self.widths),
            **self.evaluation.to_json(),
            "reward": self.reward,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Episode:
        """Reads `to_json` back.

        Raises:
            KeyError: If a field is missing.
        """
        fields = ("accuracy", "loss", "output_error", "costs", "images", "image_forwards")
        return cls(
            searcher=line["searcher"], actions=tuple(line["actions"]), widths=tuple(line["choices"]),
            reward=line["reward"], evaluation=Evaluation.from_json({name: line[name] for name in fields}),
        )  # fmt: skip


class Played(NamedTuple):
    """One episode and what a searcher learns from it."""

    episode: Episode
    trajectory: Trajectory


class Rollouts(Protocol):
    """Plays a round of plans and returns the episodes in the order of the plans."""

    def play(self, plans: Sequence[Plan]) -> list[Played]:
        """One finished episode per plan."""
        ...


class SerialRollouts:
    """Plays in this process, one after the other."""

    def __init__(self, environment: PruningEnv) -> None:
        """Uses one environment for all episodes."""
        self._environment = environment

    def play(self, plans: Sequence[Plan]) -> list[Played]:
        """One finished episode per plan."""
        return [play(self._environment, plan) for plan in plans]


def play(environment: PruningEnv, plan: Plan) -> Played:
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
    episode = Episode(
        searcher=plan.label, actions=tuple(round(float(action), 6) for action in trajectory.actions),
        widths=info["widths"], reward=reward, evaluation=info["evaluation"],
    )  # fmt: skip
    return Played(episode, trajectory)
