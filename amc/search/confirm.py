"""Confirmation: the best policies repaired in full and decided on images that neither repair nor the reward saw."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from amc.pool.pool import Pool
from amc.problem.prepare import Prepared
from amc.scoring.paired import score_difference
from amc.scoring.scorer import Outputs, Score
from amc.search.episode import Episode
from amc.search.tools import Tools, repair_and_score
from envs.network.inference import placed
from envs.space.assignment import Assignment, Key

MIN_RANKED = 30
"""Episodes from which on the mean of the best tenth is a candidate too."""
REPORTING = 3.0
"""Time of the reports (dense, test images) over that of confirming one policy, about."""


class Confirmed(NamedTuple):
    """A policy repaired in full and scored on the whole validation split.

    Attributes:
        assignment: What is decided.
        state: The weights that repair gave it; None for the dense network.
        score: On validation images.
        network: The network itself, on the CPU.
    """

    assignment: Assignment
    state: dict[str, Tensor] | None
    score: Score
    network: nn.Module


class Confirmation(NamedTuple):
    """The best start (None without starts), uniform widths, the winner, and what is to be said of them."""

    start: Confirmed | None
    uniform: Confirmed
    found: Confirmed
    remarks: tuple[str, ...]


def confirm(
    prepared: Prepared,
    pool: Pool,
    tools: Tools,
    dense: Outputs | None,
    starts: Sequence[str],
    episodes: Sequence[Episode],
    seconds: float = math.inf,
) -> Confirmation:
    """Repairs uniform widths, the best start, the best policies and their mean in full; the best on unseen images wins.

    A search that kept the best of many noisy rewards would keep the luckiest: the winner is decided by its
    reward on validation images that were not seen before, and must there be no worse by the metric than uniform widths
    and the start (law 6 of docs/architecture.md: never worse than what stands beside it).

    Args:
        prepared: Task and settings.
        pool: Where the work is done.
        tools: Of the search.
        dense: Outputs of the dense network on validation images, None where they are too many to keep.
        starts: Labels of the solutions that the search started from.
        episodes: All episodes.
        seconds: Time left; fewer are confirmed (but uniform, the start and the best) where it would not do for the
            reports as well.
    """
    ranked = sorted(episodes, key=lambda episode: -episode.reward)
    first = next((episode for episode in ranked if episode.searcher in starts), None)
    middle = [_middle(prepared, ranked[: len(ranked) // 10])] if len(ranked) >= MIN_RANKED else []
    uniform = prepared.setup.uniform().key
    needed = dict.fromkeys([uniform, *([first.key] if first else []), ranked[0].key])
    count = prepared.config.confirm + (first is not None) + len(middle)
    others = list(dict.fromkeys([*([first.key] if first else []), *middle, *(one.key for one in ranked)]))[:count]
    planned = list(dict.fromkeys([*needed, *others]))
    candidates = dict[Key, Confirmed]()
    began = time.perf_counter()
    confirming = confirmed(prepared, pool, tools, dense, planned)
    for place, (key, one) in enumerate(zip(planned, confirming, strict=True), start=1):
        candidates[key] = one
        spent = time.perf_counter() - began
        spare = place < len(planned) and planned[place] not in needed
        if spare and spent + (1 + REPORTING) * spent / len(candidates) > seconds:
            break
    start = candidates[first.key] if first else None
    found = _winner(prepared, list(candidates.values()), [candidates[uniform], *([start] if start else [])])
    best = candidates[ranked[0].key]
    preferred = (
        {"the damage curves": best} if prepared.config.single else {"the damage curves": start, "the reward": best}
    )
    return Confirmation(start, candidates[uniform], found, _remarks(prepared, found, candidates[uniform], preferred))


def confirmed(
    prepared: Prepared, pool: Pool, tools: Tools, dense: Outputs | None, keys: Sequence[Key]
) -> Iterator[Confirmed]:
    """Repairs policies in full and scores them on the whole validation split, in order; charged."""
    assignments = [prepared.setup.assignment(key) for key in keys]
    for assignment, answer in zip(assignments, pool.map(repair_and_score, tools, dense, assignments), strict=True):
        repaired = answer.result()
        prepared.ledger.charge(repaired.image_forwards)
        network = tools.rebuilt(assignment, repaired.state)
        yield Confirmed(assignment, repaired.state, repaired.score, placed(network, "cpu"))


def _winner(prepared: Prepared, candidates: Sequence[Confirmed], floor: Sequence[Confirmed]) -> Confirmed:
    """The best reward among the candidates that are as good by the metric as each of `floor`, all on unseen images."""
    unseen = prepared.setup.draws.confirm()
    setup = prepared.setup
    least = max(one.score.at(unseen).signed for one in floor)

    def reward(one: Confirmed) -> float:
        costs = setup.constraint.costs(one.assignment.values)
        return setup.reward(one.score.at(unseen).evaluation(costs, 0))

    return max((one for one in candidates if one.score.at(unseen).signed >= least), key=reward)


def _middle(prepared: Prepared, best: Sequence[Episode]) -> Key:
    """The mean of the best policies, within the budget: what they have in common is less luck than any one of them."""
    setup = prepared.setup
    ratios = np.mean([setup.assignment(episode.key).actions for episode in best], axis=0)
    return setup.assignment(setup.constraint.scaled(ratios)).key


def _remarks(
    prepared: Prepared, found: Confirmed, uniform: Confirmed, preferred: Mapping[str, Confirmed | None]
) -> tuple[str, ...]:
    """Where nothing beats uniform widths, and where what was preferred is worse than they are by more than noise.

    Args:
        prepared: Task and settings.
        found: The winner.
        uniform: Uniform widths.
        preferred: By what -> which policy.
    """
    unseen = prepared.setup.draws.confirm()
    measure = prepared.setup.task.metric.measure
    said = []
    if found.assignment == uniform.assignment and prepared.config.agent != "uniform":
        said.append(
            f"nothing that was tried beats uniform widths on the {len(unseen):,} confirmation samples: found is uniform"
        )
    for name, one in preferred.items():
        if one is None or one.assignment == uniform.assignment:
            continue
        judged, plain = one.score.at(unseen), uniform.score.at(unseen)
        if judged.signed >= plain.signed:
            continue
        difference = score_difference(judged, plain, "confirmation")
        if difference.more_than_noise:
            said.append(
                f"{name} and confirmation disagree by more than noise: the policy preferred by {name} is "
                f"{difference.text(measure)} against uniform widths on the {len(unseen):,} confirmation samples; "
                "more calibration samples may help"
            )
    return tuple(said)
