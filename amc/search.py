"""The search: propose, play, tell, keep the best, confirm it, and only then look at the test images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import nn

from agents.ddpg import DDPGSearcher, DDPGSettings
from agents.random_search import RandomSearch
from agents.searcher import Searcher
from amc.config import SearchConfig
from amc.problem import Problem
from amc.rollout import Episode, SerialRollouts
from amc.starts import best_knapsack
from envs.observation import FEATURES
from envs.policy import Policy
from hw_profiles.layers import IntArray

SCHEMA_VERSION = 1
SPLITS: tuple[Literal["validation", "test"], ...] = ("validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """What the result says of one network.

    Attributes:
        accuracy: Split name -> fraction.
        costs: Cost name -> value, recounted on the real network.
        widths: [S] kept channels.
    """

    accuracy: dict[str, float]
    costs: dict[str, float]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        task: Task name.
        budgets: Cost name -> limit in the cost's unit.
        seed: The run's seed.
        reports: dense, uniform and found.
        policy: The pruning policy found.
        networks: The same three, as modules.
        evaluations: Policies compressed and scored during the search.
        image_forwards: Everything the search paid for.
        seconds: Wall time of the search.
    """

    task: str
    budgets: dict[str, float]
    seed: int
    reports: dict[str, NetworkReport]
    policy: Policy
    networks: dict[str, nn.Module] = field(repr=False)
    evaluations: int
    image_forwards: int
    seconds: float

    def to_json(self, versions: dict[str, str], latency_ms: dict[str, float]) -> dict[str, Any]:
        """The content of `result.json`."""
        reports = {name: {"accuracy": r.accuracy, "costs": r.costs} for name, r in self.reports.items()}
        return {
            "schema_version": SCHEMA_VERSION, "task": self.task, "budgets": self.budgets, "seed": self.seed,
            **reports, "evaluations": self.evaluations, "image_forwards": self.image_forwards,
            "versions": versions, "measured": {"seconds": round(self.seconds, 2), "latency_ms": latency_ms},
        }  # fmt: skip


class Watcher(Protocol):
    """Is told how a search goes: live progress, the run folder."""

    def episodes(self, episodes: Sequence[Episode], best: Episode, seconds: Sequence[float]) -> None:
        """After each round: all episodes so far, the best one, and each one's wall time."""
        ...


class Silent:
    """A watcher that looks away."""

    def episodes(self, episodes: Sequence[Episode], best: Episode, seconds: Sequence[float]) -> None:
        """Does nothing."""


def search(problem: Problem, watcher: Watcher | None = None) -> SearchResult:
    """Searches a pruning policy (the loop of He et al., AMC, ECCV 2018, for any searcher).

    Args:
        problem: Task, budgets and settings.
        watcher: Is told after every round.

    Returns:
        The confirmed best policy, reported beside the dense network and the uniform baseline.
    """
    began, watcher = time.perf_counter(), watcher or Silent()
    starts = starting_widths(problem)
    searcher, wanted = make_searcher(problem, starts)
    rollouts = SerialRollouts(problem.environment())
    episodes: list[Episode] = []
    seconds: list[float] = []
    while len(episodes) < wanted:
        clock = time.perf_counter()
        finished = rollouts.play(searcher.propose(min(problem.config.round_size, wanted - len(episodes))))
        searcher.tell([episode.trajectory for episode in finished])
        episodes += finished
        seconds += [(time.perf_counter() - clock) / len(finished)] * len(finished)
        watcher.episodes(episodes, max(episodes, key=_reward), seconds)
    found = confirm(problem, episodes)
    return conclude(problem, found, began)


def starting_widths(problem: Problem) -> dict[str, IntArray]:
    """The solutions a searcher starts from, best guess first."""
    agent = problem.config.agent
    if agent == "uniform":
        return {"uniform": problem.constraint.uniform()}
    if agent == "random":
        return {}
    return {"knapsack": best_knapsack(problem)}


def make_searcher(problem: Problem, starts: dict[str, IntArray]) -> tuple[Searcher, int]:
    """The configured searcher, and how many episodes it gets."""
    config, steps = problem.config, len(problem.sites)
    channels = problem.constraint.costing.dense()
    actions = [(name, (widths / channels).tolist()) for name, widths in starts.items()]
    if config.agent == "ddpg":
        settings = replace(DDPGSettings(), warmup_episodes=config.warmup)
        return DDPGSearcher(len(FEATURES), steps, settings, config.seed, actions), max(config.episodes, 1)
    return RandomSearch(steps, config.seed, actions), config.episodes if config.agent == "random" else len(starts)


def confirm(problem: Problem, episodes: Sequence[Episode]) -> Policy:
    """Scores the start and the best policies of the search on the whole validation split; the best one wins.

    A search that kept the best of many noisy rewards without this would keep the luckiest.
    """
    ranked = sorted(range(len(episodes)), key=lambda index: (-_reward(episodes[index]), index))
    candidates: dict[tuple[int, ...], Policy] = {episodes[0].widths: episodes[0].policy}
    for index in ranked:
        if len(candidates) > problem.config.confirm:
            break
        candidates.setdefault(episodes[index].widths, episodes[index].policy)
    if len(candidates) == 1:
        return episodes[0].policy
    scores: dict[tuple[int, ...], float] = {}
    for widths, policy in candidates.items():
        small, forwards = problem.compressor.compress(policy)
        score = problem.score(small, "validation")
        problem.effort.image_forwards += forwards + score.images
        scores[widths] = score.accuracy
    return candidates[max(scores, key=lambda widths: scores[widths])]


def conclude(problem: Problem, found: Policy, began: float) -> SearchResult:
    """Reports dense, uniform and found on validation and, once each, on test.

    Raises:
        AssertionError: If the recount on the real network exceeds a budget (our mistake, never the user's).
    """
    effort = (problem.effort.evaluations, problem.effort.image_forwards)
    dense = problem.constraint.costing.dense()
    policies = {"uniform": problem.policy(problem.constraint.uniform()), "found": found}
    networks = {"dense": problem.task.network}
    networks |= {name: problem.compressor.compress(policy).network for name, policy in policies.items()}
    widths = {"dense": dense} | {name: problem.widths(policy) for name, policy in policies.items()}
    reports = {}
    for name, network in networks.items():
        costs = problem.real_costs(network)
        if name != "dense":
            for budget, limit in problem.constraint.limits().items():
                assert costs[budget] <= limit * (1 + 1e-12), f"{name}: {budget}={costs[budget]} exceeds {limit}"
        accuracy: dict[str, float] = {split: problem.score(network, split).accuracy for split in SPLITS}
        reports[name] = NetworkReport(accuracy=accuracy, costs=costs, widths=tuple(widths[name].tolist()))
    return SearchResult(
        task=problem.task.name, budgets=dict(problem.constraint.limits()), seed=problem.config.seed,
        reports=reports, policy=with_provenance(found, problem.config), networks=networks,
        evaluations=effort[0], image_forwards=effort[1], seconds=time.perf_counter() - began,
    )  # fmt: skip


def with_provenance(policy: Policy, config: SearchConfig) -> Policy:
    """The policy with everything needed to make its network again."""
    return replace(policy, provenance={"config": config.model_dump(mode="json", exclude_none=True)})


def _reward(episode: Episode) -> float:
    return episode.trajectory.reward
