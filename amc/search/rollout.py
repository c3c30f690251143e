"""The environment that a search plays, wherever it is played: with what is known already, retries, and a bar to pass.

It remembers and counts nothing: the driver does, in the order of the plans, so that where it is played changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amc.search.ranges.environment import RangedEnv
from amc.search.ranges.pose import Pose
from amc.tasks.plugins import describe
from envs.observation import ObservationArray
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation, Reward
from envs.space.assignment import Assignment, Key
from envs.space.constraint import Constraint
from envs.space.policy import Policy

RETRIES = 2
"""How often an evaluation that failed is tried again."""


class EvaluationFailed(Exception):
    """An episode without a reward; the message is the reason, one line."""


class Evaluating(Protocol):
    """What turns assignments into evaluations: `amc.scoring.evaluate.Measurement`, or a stand-in."""

    def __call__(self, assignment: Assignment) -> Evaluation:
        """The evaluation; may raise whatever it likes."""
        ...

    def policy(self, assignment: Assignment) -> Policy:
        """The policy of an assignment."""
        ...

    def against(self, bar: Evaluation | None) -> Evaluating:
        """The same, which may spare policies that cannot pass the bar some images."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the episodes of a round have in common.

    Attributes:
        known: Evaluations of earlier rounds; such assignments are not evaluated again.
        bar: Policies that cannot pass it need not be scored on all images (`amc.scoring.racing`).
        retries: How often an evaluation that failed is tried again.
        refused: Why nothing is evaluated; "" otherwise.
    """

    known: Mapping[Key, Evaluation]
    bar: Evaluation | None = None
    retries: int = RETRIES
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What came of one plan.

    Attributes:
        observations: [S, D] float32 before each step.
        actions: [S] executed actions.
        assignment: What was decided.
        evaluation: What the policy achieves, None where that failed.
        reward: Its reward.
        reason: Why there is none, one line; "" otherwise.
        retries: How often its evaluation was tried again.
    """

    observations: ObservationArray
    actions: NDArray[np.float32]
    assignment: Assignment
    evaluation: Evaluation | None
    reward: float
    reason: str
    retries: int


class Rollout:
    """An environment whose evaluations keep to a round; it pickles, so that workers can have one."""

    def __init__(
        self, constraint: Constraint, evaluate: Evaluating, reward: Reward, devices: Sequence[Constraint] = ()
    ) -> None:
        """Takes what evaluates, however it fails, the reward, which may be the user's, and the costs of each device."""
        self._evaluating, self._rewarding = evaluate, reward
        self.constraint, self._devices = constraint, tuple(devices)
        self._round = Round(known={})
        self._pose: Pose | None = None
        self.retries = 0
        self.environment = PruningEnv(constraint, evaluate.policy, self._evaluate, self._reward)

    def enter(self, round_: Round, pose: Pose | None = None) -> PruningEnv | RangedEnv:
        """The environment for one episode of a round; of a range, with the episode's own budgets."""
        self._round, self._pose, self.retries = round_, pose, 0
        if pose is None:
            return self.environment
        constraint = self._devices[pose.device] if self._devices else self.constraint
        return RangedEnv(pose.guide(constraint), self._evaluating.policy, self._evaluate, self._reward, pose.wanted)

    def _evaluate(self, assignment: Assignment) -> Evaluation:
        """The evaluation of an assignment, its costs by the device of the episode.

        Raises:
            EvaluationFailed: However often it was tried.
        """
        found = self._evaluated(assignment)
        if self._pose is None or not self._devices:
            return found
        own = self._devices[self._pose.device].costs(np.asarray(assignment.values))
        return replace(found, costs={**found.costs, **own})

    def _evaluated(self, assignment: Assignment) -> Evaluation:
        """Known, or made, again if that fails.

        Raises:
            EvaluationFailed: However often it was tried.
        """
        if self._round.refused:
            raise EvaluationFailed(self._round.refused)
        if (known := self._round.known.get(assignment.key)) is not None:
            return replace(known, image_forwards=0)
        evaluate = self._evaluating.against(self._round.bar)
        while True:
            try:
                return _finite(evaluate(assignment))
            except Exception as error:  # tasks, metrics and data are the user's code, and memory or disk may be short
                if self.retries == self._round.retries:
                    raise EvaluationFailed(_one_line(error)) from error
                self.retries += 1

    def _reward(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation.

        Raises:
            EvaluationFailed: If it raises or is no finite number.
        """
        try:
            value = float(self._rewarding(evaluation))
            value = value if self._pose is None else self._pose.gain(value)
        except Exception as error:  # it may be the user's
            raise EvaluationFailed(f"the reward raised {_one_line(error)}") from error
        if not math.isfinite(value):
            raise EvaluationFailed(f"a reward must be finite, but got {value}")
        return value


def _finite(evaluation: Evaluation) -> Evaluation:
    numbers = [evaluation.metric, evaluation.loss, evaluation.output_error, *evaluation.costs.values()]
    if not all(math.isfinite(value) for value in numbers if value is not None):
        raise ValueError(f"an evaluation must be finite, but got {replace(evaluation, image_forwards=0)}")
    return evaluation


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) if isinstance(error, ValueError) else describe(error)
