"""The environment of one budget of a range: one step per site, the knapsack's solution and the reward at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from agents.searcher import Answering, Plan, Searcher
from amc.search.ranges.guides import Guide
from amc.search.ranges.surrogate import Surrogate
from envs.reward import Evaluation, Reward
from envs.space.assignment import Assignment
from envs.space.policy import Policy
from hw_profiles.layers import IntArray

Array = NDArray[np.float32]


class RangedEnv(gymnasium.Env[Array, Array]):
    """Walks the sites; each action says how much a site's damage counts, and the knapsack decides them all at the end.

    Observation: Box(0, 1, (D,)) float32, `guides.COST_FEATURES` per budgeted cost and `guides.SITE_FEATURES`.
    Action: Box(0, 1, (1,)) float32, a factor on the site's damage from 1 / REACH to REACH; 0.5 is 1.
    Reward: 0 until the last site, then the reward of the evaluated policy; the episode terminates there.
    Info: `executed_action`, `site`; at the end also `assignment`, `policy` and `evaluation`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the name and form are Gymnasium's

    def __init__(
        self,
        guide: Guide,
        policy_of: Callable[[Assignment], Policy],
        evaluate: Callable[[Assignment], Evaluation],
        reward: Reward,
        wanted: IntArray | None = None,
    ) -> None:
        """Builds spaces; evaluates nothing yet.

        Args:
            guide: The knapsack at the episode's budgets.
            policy_of: Turns an assignment into a policy.
            evaluate: Compresses and scores an assignment's policy.
            reward: Turns an evaluation into a number.
            wanted: [S] an assignment that no actions mean, to be decided whatever they are; None: they decide.
        """
        self._guide, self._wanted = guide, wanted
        self._policy_of, self._evaluate, self._reward = policy_of, evaluate, reward
        self._actions: list[float] = []
        self._decided: Assignment | None = None
        size = guide.size(len(guide.constraint.budgets))
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    @property
    def assignment(self) -> Assignment:
        """What was decided in the episode that has just ended.

        Raises:
            RuntimeError: If some site is undecided, or a budget is broken.
        """
        if len(self._actions) < self._guide.steps:
            raise RuntimeError(f"an assignment needs {self._guide.steps} actions, but got {len(self._actions)}: step")
        if self._decided is None:
            if self._wanted is None:
                assignment = self._guide.assignment(self._actions)
            else:
                assignment = Assignment.of(self._guide.constraint.costing.sites, self._wanted)
            if not self._guide.constraint.keeps(assignment.values).all():
                raise RuntimeError(f"every budget must be kept, but this assignment breaks one: {assignment}")
            self._decided = assignment
        return self._decided

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed, options=options)
        self._actions, self._decided = [], None
        return self._guide.observe([]), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Says how much one site's damage counts.

        Raises:
            RuntimeError: After the last step, until `reset`.
            ValueError: If the action is not a finite number.
        """
        if len(self._actions) == self._guide.steps:
            raise RuntimeError("an episode has ended: call reset() before step()")
        wanted = float(np.asarray(action).reshape(-1)[0])
        if not np.isfinite(wanted):
            raise ValueError(f"an action must be a finite number in [0, 1], but got {wanted}")
        site = self._guide.constraint.costing.sites[len(self._actions)]
        self._actions.append(min(max(wanted, 0.0), 1.0))
        observation = self._guide.observe(self._actions)
        info: dict[str, Any] = {"executed_action": self._actions[-1], "site": site.name}
        if len(self._actions) < self._guide.steps:
            return observation, 0.0, False, False, info
        assignment = self.assignment
        evaluation = self._evaluate(assignment)
        info |= {"assignment": assignment, "policy": self._policy_of(assignment), "evaluation": evaluation}
        return observation, float(self._reward(evaluation)), True, False, info


def walked(guide: Guide, plan: Plan) -> Assignment:
    """What a plan decides, without evaluating it."""
    actions: list[float] = []
    for step in range(guide.steps):
        actions.append(float(plan(step, guide.observe(actions))))
    return guide.assignment(actions)


def answer_of(searcher: Searcher, guide: Guide, learned: Surrogate | None = None) -> Assignment:
    """What an agent answers for a guide's budgets, without exploring.

    Args:
        searcher: The agent.
        guide: The knapsack at the budgets.
        learned: What it has learned of whole assignments of these sites: what that one expects most of is answered,
            looked for from the agent's own answer, too.

    Raises:
        ValueError: If the agent cannot be asked.
    """
    if not isinstance(searcher, Answering):
        raise ValueError("a range needs an agent that has a method `answer`, but this one has none: use ddpg")
    own = walked(guide, searcher.answer())
    if learned is None:
        return own
    return Assignment.of(guide.constraint.costing.sites, learned.best(guide, further=[own.values]))
