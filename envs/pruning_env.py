"""The Gymnasium environment: one step per site, the reward at the end. What users step is what the search plays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.observation import FEATURES, ObservationArray, Observer
from envs.reward import Evaluation, Reward
from envs.space.assignment import Assignment
from envs.space.constraint import Constraint
from envs.space.policy import Policy

Action = NDArray[np.float32]


class PruningEnv(gymnasium.Env[ObservationArray, Action]):
    """Walks a network site by site; an episode is one pruning policy.

    Observation: Box(0, 1, (11,)) float32, the features named in `envs.observation.FEATURES`.
    Action: Box(0, 1, (1,)) float32, the wanted preserve ratio; the nearest allowed width is executed. Where a
    layer's pattern is decided, [0, 1] is cut into equal parts, the sparsest pattern first.
    Reward: 0 until the last site, then the reward of the evaluated policy; the episode terminates there.
    Info: `executed_action` (preserve ratio really taken), `site`, `choice`; at the end also `assignment`, `policy`
    and `evaluation`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the name and form are Gymnasium's

    def __init__(
        self,
        constraint: Constraint,
        policy_of: Callable[[Assignment], Policy],
        evaluate: Callable[[Assignment], Evaluation],
        reward: Reward,
    ) -> None:
        """Builds spaces; evaluates nothing yet.

        Args:
            constraint: Sites and budgets.
            policy_of: Turns an assignment into a policy.
            evaluate: Compresses and scores an assignment's policy.
            reward: Turns an evaluation into a number.
        """
        self.constraint = constraint
        self._policy_of, self._evaluate, self._reward = policy_of, evaluate, reward
        self._observe = Observer(constraint)
        self._prefix: list[int] = []
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    @property
    def steps(self) -> int:
        """Steps per episode."""
        return len(self.constraint.costing.sites)

    @property
    def assignment(self) -> Assignment:
        """What was decided in the episode that has just ended.

        Raises:
            RuntimeError: If some site is undecided, or a budget is broken.
        """
        if len(self._prefix) < self.steps:
            raise RuntimeError(f"an assignment needs all {self.steps} sites decided, but {len(self._prefix)} are: step")
        assignment = Assignment.of(self.constraint.costing.sites, self._prefix)
        if not self.constraint.keeps(assignment.values).all():
            raise RuntimeError(f"the constraint must let no policy through that breaks a budget, but did: {assignment}")
        return assignment

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationArray, dict[str, Any]]:
        """Starts an episode at the dense network."""
        super().reset(seed=seed, options=options)
        self._prefix = []
        return self._observe([], 1.0), {}

    def step(self, action: Action) -> tuple[ObservationArray, float, bool, bool, dict[str, Any]]:
        """Decides one site: the allowed choice nearest to the wanted preserve ratio.

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
        self._prefix.append(choice.value)
        observation = self._observe(self._prefix, choice.ratio)
        info: dict[str, Any] = {"executed_action": choice.ratio, "site": site.name, "choice": choice.label}
        if len(self._prefix) < self.steps:
            return observation, 0.0, False, False, info
        assignment = self.assignment
        evaluation = self._evaluate(assignment)
        info |= {"assignment": assignment, "policy": self._policy_of(assignment), "evaluation": evaluation}
        return observation, float(self._reward(evaluation)), True, False, info
