"""Fewer images for the same decision: who is given up, at what risk, and what is told instead."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.searcher import FixedPlan
from amc.config.search import SearchConfig
from amc.pool.pool import InProcess
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring.racing import JACKKNIFE_BLOCKS, Race, bar
from amc.scoring.scorer import Score
from amc.search.episode import Episode
from amc.search.loop import make_rollout, play, search, written_down
from amc.search.result import SearchResult
from amc.search.rollout import Round
from amc.search.state import Snapshot
from envs.reward import Evaluation, accuracy, output_error

FIRST, ALL, SPREAD = 400, 1000, 0.5
SETTINGS = {
    "task": "tests.tasks.small:make_task",
    "constraint": {"macs": 0.3},
    "agent": "random",
    "episodes": 40,
    "confirm": 2,
    "round_size": 4,
    "reward_images": 300,
    "savings": {"images": 100},
    "compression": {"images": 48, "positions": 4},
    "backend": {"name": "fp32"},
}


def evaluated(errors: NDArray[np.float64], count: int) -> Evaluation:
    """What is said of the squared errors of the first `count` images."""
    seen = errors[:count].astype(np.float32)
    score = Score(statistics=(1 - seen,), losses=None, errors=seen)
    first = Score(statistics=(score.each[:FIRST],), losses=None, errors=seen[:FIRST])
    return replace(score.evaluation({}, count), blocks=first.blocks(JACKKNIFE_BLOCKS))


def race(reference: NDArray[np.float64], error: float = 0.01) -> Race:
    return Race(first=FIRST, error=error, reward=output_error, bar=evaluated(reference, ALL))


@pytest.mark.parametrize("error", [0.01, pytest.param(0.1, marks=pytest.mark.slow)])
def test_a_policy_as_good_as_the_bar_is_given_up_as_rarely_as_stated(error: float) -> None:
    draws = np.random.default_rng(0)
    lost = 0
    for _ in range(1000):
        hardness = draws.gamma(2.0, size=ALL)  # of the images, which both networks share
        one, other = (hardness + SPREAD * draws.standard_normal(ALL) for _ in range(2))
        lost += race(one, error).lost(evaluated(other, FIRST))
    assert 0.3 * error <= lost / 1000 <= 1.8 * error


def test_who_is_far_behind_is_given_up_and_who_is_ahead_never() -> None:
    draws = np.random.default_rng(1)
    hardness = draws.gamma(2.0, size=ALL)
    for _ in range(50):
        reference, noise = hardness + 0.1 * draws.standard_normal(ALL), 0.1 * draws.standard_normal(ALL)
        assert race(reference).lost(evaluated(hardness + 0.1 + noise, FIRST))
        assert not race(reference).lost(evaluated(hardness - 0.1 + noise, FIRST))


def test_the_estimate_is_closer_to_the_truth_than_what_the_first_images_say() -> None:
    draws = np.random.default_rng(2)
    plain, estimated = [], []
    for _ in range(200):
        hardness = draws.gamma(2.0, size=ALL)
        reference, other = hardness, hardness + 0.2 + 0.1 * draws.standard_normal(ALL)
        told = race(reference).estimate(evaluated(other, FIRST)).output_error
        first = evaluated(other, FIRST).output_error
        assert told is not None
        assert first is not None
        estimated.append(told - other.mean())
        plain.append(first - other.mean())
    assert np.std(estimated) < np.std(plain) / 5


def test_an_estimate_stays_within_what_can_be() -> None:
    reference, other = np.full(ALL, 0.01), np.full(ALL, 0.01)
    reference[:FIRST], other[:FIRST] = 0.9, 0.0
    told = race(reference).estimate(evaluated(other, FIRST))
    assert told.output_error == 0.0
    assert told.accuracy <= 1.0


def test_without_a_bar_nobody_is_given_up() -> None:
    unbarred = Race(first=FIRST, error=0.01, reward=accuracy)
    assert not unbarred.lost(evaluated(np.full(ALL, 9.0), FIRST))


def test_the_bar_is_the_last_of_the_best_that_were_scored_on_all_images() -> None:
    known = [(float(k), evaluated(np.full(ALL, float(k)), FIRST if k == 4 else ALL)) for k in range(5)]
    assert bar(known, 2, ALL) == known[2][1]
    assert bar(known, 5, ALL) is None


@cache
def saving() -> tuple[Prepared, list[Episode], SearchResult]:
    """A search that saves images, with its episodes."""
    kept: list[Snapshot] = []

    class Keeper:
        def round(self, snapshot: Snapshot) -> None:
            kept.append(snapshot)

    prepared = prepare(set_up(SearchConfig(**SETTINGS)))
    result = search(prepared, Keeper())
    return prepared, list(kept[-1].episodes), result


def test_a_search_spares_the_worse_policies_images_and_none_of_those_that_it_confirms() -> None:
    prepared, episodes, _ = saving()
    assert {episode.evaluation.images for episode in episodes} == {100, 300}
    ranked = sorted(episodes, key=lambda episode: -episode.reward)
    assert all(episode.evaluation.images == 300 for episode in ranked[: prepared.config.confirm])


@pytest.mark.slow
def test_a_search_that_saves_ranks_policies_as_one_that_does_not() -> None:
    prepared, episodes, _ = saving()
    savings = SearchConfig(task="digits").savings
    plain = prepare(set_up(prepared.config.model_copy(update={"savings": savings})))
    truth = np.array([plain.setup.reward(plain.evaluate(plain.setup.assignment(e.key))) for e in episodes])
    told = np.array([episode.reward for episode in episodes])
    assert np.corrcoef(truth.argsort().argsort(), told.argsort().argsort())[0, 1] > 0.95


def test_the_result_says_how_many_images_were_saved() -> None:
    _, episodes, result = saving()
    scored = {episode.key: episode.evaluation.images for episode in episodes}  # the same policy is scored once
    assert result.images.scored == sum(scored.values())
    assert result.images.plain == 40 * 300


def test_who_saves_nothing_writes_no_blocks() -> None:
    prepared, pool = prepare(set_up(SearchConfig(**(SETTINGS | {"savings": {}})))), InProcess()
    rollout, plan = make_rollout(prepared, pool), FixedPlan((0.5,) * len(prepared.setup.sites), "half")
    (answer,) = pool.map(play, rollout, Round(known={}), [plan])
    line, _ = written_down(prepared, rollout, plan, answer)
    assert isinstance(line, Episode)
    assert "blocks" not in line.to_json(0)


def test_patience_ends_a_search_that_finds_nothing_better() -> None:
    result = search(prepare(set_up(SearchConfig(**(SETTINGS | {"savings": {"patience": 2}})))))
    assert result.stopped == "patience"
    assert 12 <= result.episodes < 40
