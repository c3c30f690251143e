"""Confirmation: the best policies repaired in full and decided on images that neither repair nor the reward saw."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from amc.rollouts.episode import Episode
from amc.scoring.paired import paired_difference
from amc.scoring.scorer import Score
from amc.search.setup import Problem
from envs.network.inference import placed

MIN_RANKED = 30
"""Episodes from which on the mean of the best tenth is a candidate too."""
REPORTING = 3.0
"""Time of the reports (dense, test images) over that of confirming one policy, about."""


class Confirmed(NamedTuple):
    """A policy repaired in full and scored on the whole validation split."""

    widths: tuple[int, ...]
    network: nn.Module
    score: Score


class Confirmation(NamedTuple):
    """The best start (None without starts), uniform widths, the winner, and what is to be said of them."""

    start: Confirmed | None
    uniform: Confirmed
    found: Confirmed
    remarks: tuple[str, ...]


def confirm(
    problem: Problem, starts: Sequence[str], episodes: Sequence[Episode], seconds: float = math.inf
) -> Confirmation:
    """Repairs uniform widths, the best start, the best policies and their mean in full; the best on unseen images wins.

    A search that kept the best of many noisy rewards would keep the luckiest: the winner is decided by its
    reward on validation images that were not seen before, and must there be no less accurate than uniform widths and
    the start (DESIGN law 6: never worse than what stands beside it).

    Args:
        problem: Task and settings.
        starts: Labels of the solutions that the search started from.
        episodes: All episodes.
        seconds: Time left; fewer are confirmed (but uniform, the start and the best) where it would not do for the
            reports as well.
    """
    ranked = sorted(episodes, key=lambda episode: -episode.reward)
    first = next((episode for episode in ranked if episode.searcher in starts), None)
    middle = [_middle(problem, ranked[: len(ranked) // 10])] if len(ranked) >= MIN_RANKED else []
    uniform = tuple(problem.constraint.uniform().tolist())
    needed = dict.fromkeys([uniform, *([first.widths] if first else []), ranked[0].widths])
    count = problem.config.confirm + (first is not None) + len(middle)
    others = list(dict.fromkeys([*([first.widths] if first else []), *middle, *(one.widths for one in ranked)]))[:count]
    candidates, began = dict[tuple[int, ...], Confirmed](), time.perf_counter()
    for widths in dict.fromkeys([*needed, *others]):
        spent = time.perf_counter() - began
        if widths not in needed and spent + (1 + REPORTING) * spent / len(candidates) > seconds:
            break
        candidates[widths] = confirmed(problem, widths)
    start = candidates[first.widths] if first else None
    found = _winner(problem, list(candidates.values()), [candidates[uniform], *([start] if start else [])])
    best = candidates[ranked[0].widths]
    preferred = (
        {"the damage curves": best} if problem.config.single else {"the damage curves": start, "the reward": best}
    )
    remarks = _remarks(problem, found, candidates[uniform], preferred)
    return Confirmation(start, candidates[uniform], found, remarks)


def confirmed(problem: Problem, widths: Sequence[int]) -> Confirmed:
    """Repairs a policy in full and scores it on the whole validation split; charged."""
    small, forwards = problem.compressor.compress(problem.policy(np.asarray(widths)))
    score = problem.score(small, "validation")
    problem.effort.image_forwards += forwards + len(score.each)
    return Confirmed(tuple(widths), placed(small, "cpu"), score)


def _winner(problem: Problem, candidates: Sequence[Confirmed], floor: Sequence[Confirmed]) -> Confirmed:
    """The best reward among the candidates that are as accurate as each of `floor`, all on unseen images."""
    unseen = problem.draws.confirm()
    least = max(one.score.at(unseen).accuracy for one in floor)

    def reward(one: Confirmed) -> float:
        costs = problem.constraint.costs(np.asarray(one.widths))
        return problem.reward(one.score.at(unseen).evaluation(costs, 0))

    return max((one for one in candidates if one.score.at(unseen).accuracy >= least), key=reward)


def _middle(problem: Problem, best: Sequence[Episode]) -> tuple[int, ...]:
    """The mean of the best policies, within the budget: what they have in common is less luck than any one of them."""
    ratios = np.mean([problem.actions(episode.widths) for episode in best], axis=0)
    return tuple(problem.constraint.scaled(ratios).tolist())


def _remarks(
    problem: Problem, found: Confirmed, uniform: Confirmed, preferred: Mapping[str, Confirmed | None]
) -> tuple[str, ...]:
    """Where nothing beats uniform widths, and where what was preferred is worse than they are by more than noise.

    Args:
        problem: Task and settings.
        found: The winner.
        uniform: Uniform widths.
        preferred: By what -> which policy.
    """
    unseen, said = problem.draws.confirm(), []
    if found.widths == uniform.widths and problem.config.agent != "uniform":
        said.append(
            f"nothing that was tried beats uniform widths on the {len(unseen):,} confirmation images: found is uniform"
        )
    for name, one in preferred.items():
        if one is None or one.widths == uniform.widths:
            continue
        difference = paired_difference([one.score.at(unseen).each], [uniform.score.at(unseen).each])
        if difference.mean < 0 and difference.more_than_noise:
            said.append(
                f"{name} and confirmation disagree by more than noise: the policy preferred by {name} is {difference} "
                f"against uniform widths on the {len(unseen):,} confirmation images; more calibration images may help"
            )
    return tuple(said)
