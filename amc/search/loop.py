"""The search: propose, play, tell, keep the best, confirm it, and only then look at the test images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from agents.searcher import Searcher
from amc.rollouts.episode import Episode, Failure, Line, Rollouts, SerialRollouts, Timing
from amc.scoring.racing import bar
from amc.search.bounds import confirm_costs
from amc.search.confirm import Confirmation, Confirmed, confirm
from amc.search.layer_patterns import layer_patterns
from amc.search.result import Images, NetworkReport, SearchResult, Stopped, with_provenance
from amc.search.searchers import make_searcher
from amc.search.setup import Problem
from amc.search.starts import starting_widths
from amc.search.state import Snapshot
from envs.reward import Evaluation

SPLITS: tuple[Literal["validation", "test"], ...] = ("validation", "test")
CONFIRMING = 2.0
"""Time of an image-forward of confirmation (fp32, full repair) over that of an episode, about."""
MOST_FAILURES = 8
"""A search whose first so many evaluations all fail ends there."""


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
    problem: Problem,
    watcher: Watcher | None = None,
    snapshot: Snapshot | None = None,
    rollouts: Rollouts | None = None,
) -> SearchResult:
    """Searches a pruning policy (the loop of He et al., AMC, ECCV 2018, for any searcher).

    Args:
        problem: Task, budgets and settings.
        watcher: Is told after every round.
        snapshot: Where an earlier process stopped; the result is as if nothing had happened.
        rollouts: Who plays the episodes, which changes nothing but the time; None plays them here.

    Returns:
        The confirmed best policy, reported beside the dense network, the uniform baseline and the best start.

    Raises:
        ValueError: If the snapshot belongs to another problem, or no evaluation succeeds.
    """
    clock, watcher = _Clock(snapshot), watcher or Silent()
    starts = dict(snapshot.starts) if snapshot else starting_widths(problem)
    searcher = make_searcher(problem, starts)
    rollouts = rollouts or SerialRollouts(problem.environment(problem.measurement), problem.evaluate)
    lines, timings = _restore(problem, searcher, snapshot) if snapshot else ([], [])
    while not (stopped := _stopped(problem, lines, timings, clock)):
        missing = problem.config.planned_episodes - len(lines)
        played = rollouts.play(searcher.propose(min(problem.config.round_size, missing)), _bar(problem, lines))
        searcher.tell([one.trajectory for one in played])
        lines += [one.line for one in played]
        timings += [one.timing for one in played]
        watcher.round(
            Snapshot(
                origin=problem.origin(),
                starts=starts,
                lines=tuple(lines),
                timings=tuple(timings),
                searcher=searcher.state(),
                image_forwards=problem.effort.image_forwards,
                evaluations=problem.effort.evaluations,
                elapsed=clock.elapsed(),
            )
        )
        _check_success(lines, problem.config.planned_episodes)
    episodes = _successful(problem, lines)
    confirmation = confirm(problem, [] if problem.config.single else list(starts), episodes, clock.left(problem))
    result = conclude(problem, confirmation, len(lines), stopped, clock)
    scored = sum(episode.evaluation.images for episode in episodes if episode.evaluation.image_forwards)
    images = Images(scored, len(lines) * len(problem.draws.reward()))
    return replace(result, failures=len(lines) - len(episodes), images=images, workers=rollouts.usage())


class _Clock:
    """Seconds of search, over all processes and in this one."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self._began = time.perf_counter()
        self._before = snapshot.elapsed if snapshot else 0.0

    def elapsed(self) -> float:
        return self._before + self.here()

    def here(self) -> float:
        return time.perf_counter() - self._began

    def left(self, problem: Problem) -> float:
        """Seconds until the search should end, infinite without a limit."""
        minutes = problem.config.max_minutes
        return math.inf if minutes is None else 60 * minutes - self.here()


def _bar(problem: Problem, lines: Sequence[Line]) -> Evaluation | None:
    """Who a policy must beat to be confirmed, where images are saved."""
    if problem.config.savings.images is None:
        return None
    distinct = {line.widths: (line.reward, line.evaluation) for line in reversed(lines) if isinstance(line, Episode)}
    return bar(list(distinct.values()), problem.config.confirm, len(problem.draws.reward()))


def _stopped(problem: Problem, lines: Sequence[Line], timings: Sequence[Timing], clock: _Clock) -> Stopped | None:
    """Why no other round begins."""
    config, episodes = problem.config, len(lines)
    if episodes >= problem.config.planned_episodes:
        return "episodes"
    if config.savings.patience is not None and _idle(lines) >= config.savings.patience * config.round_size:
        return "patience"
    if config.effort is not None:
        # Remembered policies are free, but a search that proposes nothing new any more must end as well.
        at_least = episodes * (config.savings.images or len(problem.draws.reward()))
        if max(problem.effort.image_forwards + problem.confirmation_forwards(), at_least) >= config.effort:
            return "effort"
    # The clock is the one exception to "time decides nothing"; a resumed run gets its minutes again.
    if episodes and _confirming(problem, lines, timings) >= clock.left(problem):
        return "time"
    return None


def _confirming(problem: Problem, lines: Sequence[Line], timings: Sequence[Timing]) -> float:
    """Seconds that confirmation will presumably take, by what the episodes took."""
    played = [
        (line.evaluation.image_forwards, timing.seconds)
        for line, timing in zip(lines, timings, strict=True)
        if isinstance(line, Episode) and line.evaluation.image_forwards
    ]
    if not played:
        return 0.0
    forwards, seconds = (sum(column) for column in zip(*played, strict=True))
    return float(CONFIRMING * problem.confirmation_forwards() * seconds / forwards)


def _idle(lines: Sequence[Line]) -> int:
    """Episodes since the best one."""
    rewards = [line.reward if isinstance(line, Episode) else -math.inf for line in lines]
    return len(rewards) - 1 - int(np.argmax(rewards)) if rewards else 0


def _check_success(lines: Sequence[Line], planned: int) -> None:
    """Stops a search none of whose evaluations succeeds.

    Raises:
        ValueError: With the reason of the last one.
    """
    if len(lines) >= min(planned, MOST_FAILURES) and all(isinstance(line, Failure) for line in lines):
        raise _all_failed(lines)


def _successful(problem: Problem, lines: Sequence[Line]) -> list[Episode]:
    """The episodes that did not fail.

    Raises:
        ValueError: If there is none.
    """
    episodes = [line for line in lines if isinstance(line, Episode)]
    if not lines:
        raise ValueError(
            f"an effort must leave room for an episode, but of {problem.config.effort:,} image-forwards preparation "
            f"took {problem.effort.image_forwards:,} and confirmation may take {problem.confirmation_forwards():,}: "
            "raise it, or lower compression.images or knapsack.images"
        )
    if not episodes:
        raise _all_failed(lines)
    return episodes


def _all_failed(lines: Sequence[Line]) -> ValueError:
    reason = lines[-1].reason if isinstance(lines[-1], Failure) else ""
    return ValueError(f"some evaluation must succeed, but all {len(lines)} failed, the last because: {reason}")


def _restore(problem: Problem, searcher: Searcher, snapshot: Snapshot) -> tuple[list[Line], list[Timing]]:
    """Puts searcher, memory of evaluations and ledger where an earlier process had them.

    Raises:
        ValueError: If configuration, weights or calibration images are others than then.
    """
    if snapshot.origin != problem.origin():
        raise ValueError(
            "a run can only be resumed with the configuration, weights and data that it began with, but one of them "
            "has changed: put it back, or start a new run"
        )
    searcher.load(snapshot.searcher)
    for episode in snapshot.episodes:
        problem.evaluate.remember(problem.policy(np.asarray(episode.widths)), episode.evaluation)
    problem.effort.image_forwards, problem.effort.evaluations = snapshot.image_forwards, snapshot.evaluations
    return list(snapshot.lines), list(snapshot.timings)


def conclude(
    problem: Problem, confirmation: Confirmation, episodes: int, stopped: Stopped, clock: _Clock
) -> SearchResult:
    """Reports dense, uniform, start and found on validation and, once each, on test.

    Raises:
        CountMismatch: If a real network costs other than was foretold, or more than a budget (our mistake, never the
            user's).
    """
    start, found = confirmation.start, confirmation.found
    dense = tuple(problem.constraint.costing.dense().tolist())
    shown = {
        "dense": Confirmed(dense, problem.task.network, problem.score(problem.task.network, "validation")),
        "uniform": confirmation.uniform,
        **({"start": start} if start else {}),
        "found": found,
    }
    reports: dict[tuple[int, ...], NetworkReport] = {}
    for name, one in shown.items():
        if one.widths not in reports:
            reports[one.widths] = report(problem, one, bounded=name != "dense")
    policy, uncounted = problem.policy(np.asarray(found.widths)), problem.anatomy.uncounted
    return SearchResult(
        task=problem.task.name,
        budgets=dict(problem.constraint.limits()),
        seed=problem.config.seed,
        reports={name: reports[one.widths] for name, one in shown.items()},
        policy=with_provenance(policy, problem.config),
        networks={name: one.network for name, one in shown.items()},
        episodes=episodes,
        stopped=stopped,
        evaluations=problem.effort.evaluations,
        image_forwards=problem.effort.image_forwards,
        seconds=clock.elapsed(),
        patterns=layer_patterns(problem, found.widths),
        uncounted=uncounted,
        remarks=(*confirmation.remarks, *_left_out(uncounted)),
    )


def _left_out(uncounted: Sequence[str]) -> tuple[str, ...]:
    """What has to be said where some operators are in no cost."""
    named = f"no cost counts these operators of the network: {', '.join(uncounted)}; budgets hold for all the others"
    return (named,) if uncounted else ()


def report(problem: Problem, one: Confirmed, *, bounded: bool) -> NetworkReport:
    """Both accuracies and the recounted costs of one network; the only place that reads test images."""
    costs = problem.real_costs(one.network, problem.patterns(one.widths))
    confirm_costs(costs, problem.constraint, one.widths, bounded=bounded)
    scores = {"validation": one.score, "test": problem.score(one.network, "test")}
    return NetworkReport(
        accuracy={split: score.accuracy for split, score in scores.items()},
        costs=costs,
        widths=one.widths,
        each={split: score.each for split, score in scores.items()},
    )
