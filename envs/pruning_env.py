"""The Gymnasium environment: one step per site, the reward at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.observation import FEATURES, ObservationArray, Observer
from envs.reward import Evaluation, Reward
from envs.space.constraint import Constraint
from envs.space.policy import Policy
from envs.space.sites import Choice, decode
from hw_profiles.layers import IntArray

Action = NDArray[np.float32]


class PruningEnv(gymnasium.Env[ObservationArray, Action]):
    """Walks a network site by site; an episode is one pruning policy.

    Observation: Box(0, 1, (11,)) float32, the features named in `envs.observation.FEATURES`.
    Action: Box(0, 1, (1,)) float32, the wanted preserve ratio; the nearest allowed width is executed. Where a
    layer's pattern is decided, [0, 1] is cut into equal parts, the sparsest pattern first.
    Reward: 0 until the last site, then the reward of the evaluated policy; the episode terminates there.
    Info: `executed_action` (preserve ratio really taken), `unit`, `kept`, `pattern` of a layer; at the end also
    `widths`, `policy` and `evaluation`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the name and form are Gymnasium's

    def __init__(
        self,
        constraint: Constraint,
        policy_of: Callable[[Mapping[str, int], Mapping[str, str]], Policy],
        evaluate: Callable[[Policy], Evaluation],
        reward: Reward,
    ) -> None:
        """Builds spaces; evaluates nothing yet.

        Args:
            constraint: Sites and budgets.
            policy_of: Turns kept channels per unit and patterns per layer into a policy.
            evaluate: Compresses and scores a policy.
            reward: Turns an evaluation into a number.
        """
        self.constraint = constraint
        self._policy_of, self.evaluate, self.reward = policy_of, evaluate, reward
        self._observe = Observer(constraint)
        self._prefix: list[int] = []
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    @property
    def steps(self) -> int:
        """Steps per episode."""
        return len(self.constraint.costing.sites)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationArray, dict[str, Any]]:
        """Starts an episode at the dense network."""
        super().reset(seed=seed, options=options)
        self._prefix = []
        return self._observe([], 1.0), {}

    def step(self, action: Action) -> tuple[ObservationArray, float, bool, bool, dict[str, Any]]:
        """Decides one site: the allowed width nearest to the wanted preserve ratio.

        Raises:
            RuntimeError: After the last step, until `reset`.
            ValueError: If the action is not a finite number.
        """
        observation, choice = self.decide(action)
        unit = self.constraint.costing.sites[len(self._prefix) - 1].unit
        info: dict[str, Any] = {"executed_action": choice.ratio, "unit": unit, "kept": choice.kept}
        if choice.pattern:
            info["pattern"] = choice.pattern
        reward, terminated = 0.0, len(self._prefix) == self.steps
        if terminated:
            policy = self.policy()
            evaluation = self.evaluate(policy)
            info |= {"widths": tuple(self._prefix), "policy": policy, "evaluation": evaluation}
            reward = float(self.reward(evaluation))
        return observation, reward, terminated, False, info

    def decide(self, action: Action) -> tuple[ObservationArray, Choice]:
        """`step` without an evaluation: what is observed next, and the choice made; for whoever evaluates elsewhere.

        Raises:
            RuntimeError: After the last step, until `reset`.
            ValueError: If the action is not a finite number.
        """
        if len(self._prefix) == self.steps:
            raise RuntimeError("an episode has ended: call reset() before step()")
        wanted = float(np.asarray(action).reshape(-1)[0])
        if not np.isfinite(wanted):
            raise ValueError(f"an action must be a finite number in [0, 1], but got {wanted}")
        site = self.constraint.costing.sites[len(self._prefix)]
        choice = site.choices[site.nearest(wanted, self.constraint.allowed(self._prefix))]
        self._prefix.append(choice.kept)
        return self._observe(self._prefix, choice.ratio), choice

    def policy(self) -> Policy:
        """The policy of an episode whose sites are all decided."""
        widths: IntArray = np.asarray(self._prefix, dtype=np.int64)
        assert self.constraint.keeps(widths).all(), "the constraint let a policy through that breaks a budget"
        return self._policy_of(*decode(self.constraint.costing.sites, self._prefix))
