"""AMC's search (He et al., AMC, ECCV 2018) on one page: propose, play, learn; keep the best, confirm it.

`search` is the outer loop, for any searcher. `play` is one episode (their Algorithm 1): state, action, bound by the
budget, execute, and the reward at the end. Only when both are over does anything look at the test images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from agents.searcher import Plan, Trajectory
from amc.pool.pool import Answer, InProcess, Pool, Timing
from amc.problem.prepare import Prepared
from amc.search.conclude import conclude
from amc.search.confirm import confirm
from amc.search.episode import Episode, Failure, Line
from amc.search.ranges.course import course_of
from amc.search.ranges.pose import pose_of, problem_of
from amc.search.ranges.taught import ANSWERS, Taught
from amc.search.result import SearchResult
from amc.search.rollout import RETRIES, EvaluationFailed, Outcome, Rollout, Round
from amc.search.searchers import make_searcher
from amc.search.starts import starting_keys
from amc.search.state import Progress, Snapshot
from amc.search.stopping import Clock, bar_to_pass, check_success, reason_to_stop, successful
from amc.search.tools import Tools
from envs.space.assignment import Key


class Watcher(Protocol):
    """Is told how a search goes: live progress, the run folder."""

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        ...


class Silent:
    """A watcher that looks away."""

    def round(self, snapshot: Snapshot) -> None:
        """Does nothing."""


def search(
    prepared: Prepared,
    watcher: Watcher | None = None,
    snapshot: Snapshot | None = None,
    pool: Pool | None = None,
    retries: int = RETRIES,
    taught: Taught | None = None,
) -> SearchResult:
    """Searches a pruning policy.

    Args:
        prepared: Task, budgets and settings, calibrated.
        watcher: Is told after every round.
        snapshot: Where an earlier process stopped; the result is as if nothing had happened.
        pool: Where the work is done, which changes nothing but the time; None: this process.
        retries: How often an evaluation that failed is tried again.
        taught: An agent of many budgets to start from; a snapshot knows already what came of it.

    Returns:
        The confirmed best policy, reported beside the dense network, the uniform baseline and the best start.

    Raises:
        ValueError: If the snapshot belongs to another configuration or other sites, or no evaluation succeeds.
    """
    clock = Clock.started(snapshot)
    watcher = watcher or Silent()
    pool = pool or InProcess()
    config, setup, ledger = prepared.config, prepared.setup, prepared.ledger
    tools = Tools.of(prepared, pool)
    starts = dict(snapshot.checked(prepared).starts) if snapshot else starting_keys(prepared, pool, tools, taught)
    course = course_of(prepared, pool, tools, starts)
    searcher = make_searcher(prepared, starts)
    if taught is not None and setup.ends is not None:
        taught.check(config)
        taught.teach(searcher)
    played = Progress.restored(snapshot, prepared, searcher)
    rollout = make_rollout(prepared, pool, starts.values())
    while not (stopped := reason_to_stop(prepared, played, clock)):
        wanted = min(config.round_size, config.planned_episodes - len(played.lines))
        proposed = searcher.propose(course.next(len(played.lines), wanted))
        plans = course.posed(proposed, played.lines)
        round_ = Round(known=ledger.known, bar=bar_to_pass(prepared, played.lines), retries=retries)
        trajectories: list[Trajectory | None] = []
        for plan, answer in zip(plans, pool.map(play, rollout, round_, plans), strict=True):
            line, trajectory = written_down(prepared, rollout, plan, answer)
            played.add(line, _timing(answer))
            trajectories.append(trajectory)
        searcher.tell(trajectories)
        watcher.round(played.snapshot(prepared, starts, searcher.state(), clock.elapsed()))
        check_success(played.lines, config.planned_episodes)
    episodes = successful(prepared, played.lines)
    dense = tools.dense_outputs(prepared)
    labels = [] if config.single else [label for label in starts if label not in ANSWERS]
    found = course.ended(searcher, episodes)
    confirmation = confirm(prepared, pool, tools, dense, labels, found, clock.left(config))
    return conclude(prepared, pool, tools, dense, confirmation, played, stopped, clock)


def make_rollout(prepared: Prepared, pool: Pool, starts: Iterable[Key] = ()) -> Rollout:
    """What episodes are played on; other processes get one that holds nothing that they do not need.

    The solutions that a search starts from can be walked to, whatever the costs are.
    """
    measurement, setup = prepared.measurement, prepared.setup
    if pool.workers:
        measurement = measurement.excerpt()
        prepared.compressor.release_fits()
    devices = [lowest for lowest, _ in setup.devices]
    constraint = setup.constraint.knowing(np.asarray(key) for key in starts)
    return Rollout(constraint, measurement, setup.reward, devices)


def play(rollout: Rollout, round_: Round, plan: Plan) -> Outcome:
    """One episode: the plan walks the environment site by site, and the policy at its end is evaluated."""
    environment = rollout.enter(round_, pose_of(plan))
    observation, _ = environment.reset()
    observations, actions = [], []
    evaluation = None
    reward = float("nan")
    reason = ""
    try:
        terminated = False
        while not terminated:
            observations.append(observation)  # the state
            action = plan(len(observations) - 1, observation)
            # The environment bounds the action by what the budget still allows, and executes it.
            observation, reward, terminated, _, info = environment.step(np.asarray([action], dtype=np.float32))
            actions.append(info["executed_action"])
        evaluation = info["evaluation"]
    except EvaluationFailed as error:
        reason = str(error)
    return Outcome(
        observations=np.stack(observations),
        actions=np.asarray(actions, dtype=np.float32),
        assignment=environment.assignment,
        evaluation=evaluation,
        reward=reward,
        reason=reason,
        retries=rollout.retries,
    )


def written_down(
    prepared: Prepared, rollout: Rollout, plan: Plan, answer: Answer[Outcome]
) -> tuple[Line, Trajectory | None]:
    """An episode as it is kept, counted in the order of the plans, and what the searcher learns from it.

    Nothing where the episode failed, or was of an assignment that none of the searcher's actions mean.
    """
    outcome = answer.value
    if outcome is None:  # no worker came back from it: its walk is repeated here
        outcome = play(rollout, Round(known={}, refused=answer.lost), plan)
    actions = tuple(round(float(np.float32(action)), 6) for action in outcome.assignment.actions)
    key, problem = outcome.assignment.key, problem_of(plan, rollout.constraint, prepared.config.profiles)
    if outcome.evaluation is None:
        return Failure(searcher=plan.label, actions=actions, key=key, reason=outcome.reason, **problem), None
    evaluation = prepared.ledger.account(key, outcome.evaluation)
    episode = Episode(
        searcher=plan.label,
        actions=actions,
        key=key,
        reward=outcome.reward,
        evaluation=evaluation,
        **problem,
    )
    pose = pose_of(plan)
    if pose is not None and pose.wanted is not None:
        return episode, None
    trajectory = Trajectory(
        observations=outcome.observations, actions=outcome.actions, reward=outcome.reward, label=plan.label
    )
    return episode, trajectory


def _timing(answer: Answer[Outcome]) -> Timing:
    again = answer.value.retries if answer.value is not None else 0
    return answer.timing._replace(retries=answer.timing.retries + again)
