"""Playing episodes: a plan walks the environment, the policy is evaluated. Who plays cannot change what happens:
`perform` runs anywhere and remembers nothing, `conclude` counts in the order of the plans.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.searcher import Plan, Trajectory
from amc.scoring.evaluate import Evaluator, Key, Measurement, key_of
from amc.tasks.plugins import describe
from envs.observation import ObservationArray
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation, Reward
from envs.space.policy import Policy
from envs.space.sites import encode

RETRIES = 2
"""How often an evaluation that failed is tried again."""


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
        return {**_decided(self, index), **self.evaluation.to_json(), "reward": self.reward}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An episode whose evaluation failed however often it was tried: it counts, and nobody learns from it.

    Attributes:
        searcher: Who proposed it.
        actions: [S] executed preserve ratios, six digits.
        widths: [S] kept channels.
        reason: What went wrong the last time, one line.
    """

    searcher: str
    actions: tuple[float, ...]
    widths: tuple[int, ...]
    reason: str

    def to_json(self, index: int) -> dict[str, Any]:
        """One line of `episodes.jsonl`."""
        return {**_decided(self, index), "failed": self.reason}


Line: TypeAlias = Episode | Failure


def _decided(line: Line, index: int) -> dict[str, Any]:
    """What every line of `episodes.jsonl` begins with."""
    return {
        "episode": index,
        "searcher": line.searcher,
        "actions": list(line.actions),
        "choices": list(line.widths),
    }


def read_line(line: Mapping[str, Any]) -> Line:
    """Reads `to_json` of an episode or a failure back.

    Raises:
        KeyError: If a field is missing.
    """
    common: dict[str, Any] = {
        "searcher": line["searcher"],
        "actions": tuple(line["actions"]),
        "widths": tuple(line["choices"]),
    }
    if "failed" in line:
        return Failure(**common, reason=line["failed"])
    fields = ("accuracy", "loss", "output_error", "costs", "images", "image_forwards")
    evaluation = Evaluation.from_json({name: line[name] for name in fields} | {"blocks": line.get("blocks", ())})
    return Episode(**common, reward=line["reward"], evaluation=evaluation)


class Timing(NamedTuple):
    """What depends on the machine: seconds of playing, where, and how often it was tried again."""

    seconds: float
    host: str
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walk:
    """An episode up to its evaluation.

    Attributes:
        observations: [S, D] before each step.
        actions: [S] executed preserve ratios.
        widths: [S] kept channels.
        key: Widths of all units, by which an evaluation is remembered.
    """

    observations: ObservationArray
    actions: NDArray[np.float32]
    widths: tuple[int, ...]
    key: Key


class Outcome(NamedTuple):
    """What came of one plan: an evaluation, a reason why there is none, or neither where it is remembered."""

    walk: Walk
    evaluation: Evaluation | None
    reason: str | None
    timing: Timing


class Played(NamedTuple):
    """One episode, what a searcher learns from it (None if it failed), and what it took."""

    line: Line
    trajectory: Trajectory | None
    timing: Timing


class Usage(NamedTuple):
    """Workers, and the share of their time that they waited for work; none in process."""

    workers: int
    idle: float


IN_PROCESS = Usage(0, 0.0)


class Rollouts(Protocol):
    """Plays a round of plans and returns the episodes in the order of the plans."""

    def play(self, plans: Sequence[Plan], bar: Evaluation | None = None) -> list[Played]:
        """One finished or failed episode per plan; a bar spares those that cannot pass it images (`scoring.racing`)."""
        ...

    def usage(self) -> Usage:
        """How busy the workers were so far."""
        ...


class SerialRollouts:
    """Plays in this process, one after the other."""

    def __init__(self, environment: PruningEnv, evaluator: Evaluator, retries: int = RETRIES) -> None:
        """Takes an environment whose `evaluate` neither remembers nor counts, and the evaluator that does both."""
        self._environment, self._evaluator, self._retries = environment, evaluator, retries

    def play(self, plans: Sequence[Plan], bar: Evaluation | None = None) -> list[Played]:
        """One finished or failed episode per plan."""
        return [self._play(plan, bar) for plan in plans]

    def _play(self, plan: Plan, bar: Evaluation | None) -> Played:
        outcome = perform(self._environment, plan, self._evaluator.knows, self._retries, bar)
        return conclude(plan.label, outcome, self._evaluator.account, self._environment.reward)

    def usage(self) -> Usage:
        """No workers."""
        return IN_PROCESS


def walk(environment: PruningEnv, plan: Plan) -> tuple[Walk, Policy]:
    """Decides all sites with a plan and evaluates nothing."""
    observation, _ = environment.reset()
    observations: list[ObservationArray] = []
    actions: list[float] = []
    for step in range(environment.steps):
        observations.append(observation)
        observation, choice = environment.decide(np.asarray([plan(step, observation)], dtype=np.float32))
        actions.append(choice.ratio)
    policy = environment.policy()
    sites = environment.constraint.costing.sites
    widths = tuple(encode(sites, policy.widths(), policy.patterns()).tolist())
    return Walk(
        observations=np.stack(observations),
        actions=np.asarray(actions, dtype=np.float32),
        widths=widths,
        key=key_of(policy),
    ), policy


def perform(
    environment: PruningEnv,
    plan: Plan,
    knows: Callable[[Key], bool],
    retries: int = RETRIES,
    bar: Evaluation | None = None,
) -> Outcome:
    """Walks with a plan and evaluates the policy, again if that fails; nothing is counted or remembered.

    Args:
        environment: Its `evaluate` may raise whatever it likes.
        plan: What to do.
        knows: Whether the widths were evaluated in an earlier round.
        retries: How often to try again.
        bar: Policies that cannot pass it need not be scored on all images.
    """
    evaluate = environment.evaluate
    if isinstance(evaluate, Measurement):
        evaluate = evaluate.against(bar)
    began = time.perf_counter()
    walked, policy = walk(environment, plan)
    evaluation, reason, tried = None, None, 0
    while evaluation is None and not knows(walked.key) and tried <= retries:
        evaluation, reason = _attempt(evaluate, policy)
        tried += 1
    return Outcome(walked, evaluation, reason, Timing(time.perf_counter() - began, platform.node(), max(tried - 1, 0)))


def conclude(
    label: str, outcome: Outcome, account: Callable[[Key, Evaluation | None], Evaluation], reward: Reward
) -> Played:
    """Counts an outcome and turns it into an episode; called in the order of the plans."""
    walked, actions = outcome.walk, tuple(round(float(action), 6) for action in outcome.walk.actions)
    reason, value, evaluation = outcome.reason, math.nan, None
    if reason is None:
        evaluation = account(walked.key, outcome.evaluation)
        value, reason = _rewarded(reward, evaluation)
    if evaluation is None or reason is not None:
        failure = Failure(searcher=label, actions=actions, widths=walked.widths, reason=reason or "no evaluation")
        return Played(failure, None, outcome.timing)
    episode = Episode(searcher=label, actions=actions, widths=walked.widths, reward=value, evaluation=evaluation)
    trajectory = Trajectory(observations=walked.observations, actions=walked.actions, reward=value, label=label)
    return Played(episode, trajectory, outcome.timing)


def play(environment: PruningEnv, plan: Plan) -> Played:
    """One episode by itself, evaluated once and not counted."""
    outcome = perform(environment, plan, lambda key: False, retries=0)
    return conclude(plan.label, outcome, _uncounted, environment.reward)


def failed(environment: PruningEnv, plan: Plan, reason: str, timing: Timing) -> Outcome:
    """The outcome of a plan that its worker never returned from: the walk is repeated here."""
    return Outcome(walk(environment, plan)[0], None, reason, timing)


def _uncounted(key: Key, evaluation: Evaluation | None) -> Evaluation:
    assert evaluation is not None
    return evaluation


def _attempt(evaluate: Callable[[Policy], Evaluation], policy: Policy) -> tuple[Evaluation | None, str | None]:
    try:
        evaluation = evaluate(policy)
    except Exception as error:  # tasks, metrics and data are the user's code, and memory or disk may be short
        return None, _one_line(error)
    numbers = [evaluation.accuracy, evaluation.loss, evaluation.output_error, *evaluation.costs.values()]
    if not all(math.isfinite(value) for value in numbers if value is not None):
        return None, f"an evaluation must be finite, but got {replace(evaluation, image_forwards=0)}"
    return evaluation, None


def _rewarded(reward: Reward, evaluation: Evaluation) -> tuple[float, str | None]:
    try:
        value = float(reward(evaluation))
    except Exception as error:  # it may be the user's
        return math.nan, f"the reward raised {_one_line(error)}"
    return value, None if math.isfinite(value) else f"a reward must be finite, but got {value}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) if isinstance(error, ValueError) else describe(error)
