"""The contract of all rollouts: the same episodes in the same order, whoever plays and whatever goes wrong."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from agents.searcher import FixedPlan, Plan, Trajectory
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.pool.pool import Answer, InProcess, Pool, Timing
from amc.pool.ray import MAX_DEATHS
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import Setup, set_up
from amc.runs.folder import RunFolder
from amc.runs.runner import NoScreen, new_run, resume_run
from amc.scoring.ledger import Ledger
from amc.search.allocation.audition import audition, quick_audition
from amc.search.allocation.curves import damage_curves
from amc.search.confirm import confirmed
from amc.search.episode import Episode, Failure, Line
from amc.search.loop import make_rollout, play, search, written_down
from amc.search.rollout import RETRIES, Outcome, Rollout, Round
from amc.search.state import Snapshot
from amc.search.tools import Reported, Tools, score_reported
from envs.reward import Evaluation, accuracy
from envs.space.assignment import Assignment
from envs.space.policy import Policy

if TYPE_CHECKING:
    from tests.search.conftest import Workers

pytestmark = pytest.mark.xdist_group("ray")  # one Ray per run of the tests

SETTINGS: dict[str, Any] = {
    "task": "tests.tasks.small:make_task",
    "constraint": {"macs": 0.3},
    "reward_images": 200,
    "round_size": 4,
    "episodes": 10,
    "warmup": 2,
    "confirm": 1,
    "compression": {"images": 48, "positions": 4},
    "knapsack": {"images": 32, "widths": 3},
    "backend": {"name": "fp32"},
    "savings": {"images": 100},
}
SAME = ("episodes.jsonl", "policy.json", "network.safetensors", "scores.safetensors")


@cache
def digits() -> Setup:
    return set_up(SearchConfig(**SETTINGS))


@cache
def calibrated() -> Prepared:
    return prepare(digits())


def prepared() -> Prepared:
    """A search with empty books."""
    return replace(calibrated(), ledger=Ledger())


@dataclass(frozen=True)
class Trouble:
    """An evaluation that fails in some way for the lightest of the plans, the first `times` it is tried."""

    kind: str
    times: int
    folder: Path
    lightest: int

    def __call__(self, assignment: Assignment) -> Evaluation:
        total = sum(assignment.key)
        evaluation = Evaluation(metric=total / 1e4, loss=None, costs={"macs": float(total)}, images=1, image_forwards=3)
        tries = len(list(self.folder.iterdir()))
        if total > self.lightest or tries >= self.times:
            return evaluation
        (self.folder / f"{tries}").touch()
        if self.kind == "raises":
            raise KeyError("a shoe")
        if self.kind == "dies":
            os._exit(1)
        if self.kind == "hangs":
            time.sleep(60)
        return Evaluation(metric=math.nan, loss=None, images=1, image_forwards=3)

    def policy(self, assignment: Assignment) -> Policy:
        return Policy(structure="", weights="", units=(), layers=())

    def against(self, bar: Evaluation | None) -> Trouble:
        return self


def troubled(kind: str, times: int, folder: Path) -> Rollout:
    constraint = digits().constraint
    lightest = sum(digits().assignment(constraint.project([0.0] * len(digits().sites))).key)
    folder.mkdir(exist_ok=True)
    return Rollout(constraint, Trouble(kind, times, folder, lightest), accuracy)


class Played(NamedTuple):
    """One episode as the search keeps it."""

    line: Line
    trajectory: Trajectory | None
    retries: int


def played(
    prepared: Prepared, rollout: Rollout, pool: Pool, plans: Sequence[Plan], retries: int = RETRIES
) -> list[Played]:
    """A round of episodes, as `search` plays it."""
    round_ = Round(known=prepared.ledger.known, retries=retries)
    episodes = []
    for plan, answer in zip(plans, pool.map(play, rollout, round_, plans), strict=True):
        again = answer.timing.retries + (answer.value.retries if answer.value else 0)
        episodes.append(Played(*written_down(prepared, rollout, plan, answer), again))
    return episodes


def plans() -> list[Plan]:
    steps = len(digits().sites)
    return [FixedPlan((level,) * steps, f"plan {level}") for level in (0.3, 0.0, 0.25, 0.3, 0.2)]


def rewards(episodes: list[Played]) -> list[float | None]:
    return [None if one.trajectory is None else one.trajectory.reward for one in episodes]


def well(folder: Path) -> list[Played]:
    """The plans played without any trouble."""
    return played(prepared(), troubled("none", 0, folder), InProcess(), plans())


def test_episodes_come_in_the_order_of_the_plans_and_each_policy_is_charged_once(pool: Pool, tmp_path: Path) -> None:
    rollout, one = troubled("none", 0, tmp_path / "marks"), prepared()
    first, second = played(one, rollout, pool, plans()), played(one, rollout, pool, plans()[:2])
    assert [one.line.searcher for one in first] == [plan.label for plan in plans()]
    assert [one.line.evaluation.image_forwards for one in first if isinstance(one.line, Episode)] == [3, 3, 3, 0, 3]
    assert [one.line.evaluation.image_forwards for one in second if isinstance(one.line, Episode)] == [0, 0]
    assert rewards(second) == rewards(first)[:2]
    assert (one.ledger.image_forwards, one.ledger.evaluations) == (12, 4)


@pytest.mark.parametrize("pool", ["in process", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_what_earlier_rounds_know_is_not_evaluated_again(pool: Pool, tmp_path: Path) -> None:
    rollout, one = troubled("raises", 99, tmp_path / "marks"), prepared()
    lightest = digits().assignment(digits().constraint.project([0.0] * len(digits().sites)))
    known = Evaluation(metric=0.25, loss=None, images=1, image_forwards=3)
    one.ledger.account(lightest.key, known)
    (again,) = played(one, rollout, pool, plans()[1:2])
    assert isinstance(again.line, Episode)
    assert (again.line.evaluation, again.line.reward) == (replace(known, image_forwards=0), 0.25)
    assert not list((tmp_path / "marks").iterdir())


@pytest.mark.parametrize("kind", ["raises", pytest.param("nan", marks=pytest.mark.slow)])
def test_an_evaluation_that_fails_for_a_while_is_tried_again(pool: Pool, kind: str, tmp_path: Path) -> None:
    episodes = played(prepared(), troubled(kind, 2, tmp_path / "marks"), pool, plans())
    assert rewards(episodes) == rewards(well(tmp_path / "none"))
    assert [one.retries for one in episodes] == [0, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [pytest.param("raises", "KeyError: 'a shoe'", marks=pytest.mark.slow), ("nan", "must be finite")],
)
def test_an_evaluation_that_goes_on_failing_is_recorded_with_its_reason(
    pool: Pool, kind: str, reason: str, tmp_path: Path
) -> None:
    one = prepared()
    episodes = played(one, troubled(kind, 99, tmp_path / "marks"), pool, plans())
    assert [isinstance(one.line, Failure) for one in episodes] == [False, True, False, False, False]
    assert isinstance(episodes[1].line, Failure)
    assert reason in episodes[1].line.reason
    assert episodes[1].trajectory is None
    assert one.ledger.evaluations == 3


@pytest.mark.parametrize(("kind", "limit"), [("dies", 60), pytest.param("hangs", 10, marks=pytest.mark.slow)])
def test_a_worker_that_dies_or_hangs_is_replaced(workers: Workers, kind: str, limit: float, tmp_path: Path) -> None:
    # the limit is long where nothing hangs: a new worker's first episode begins with imports
    episodes = played(prepared(), troubled(kind, 1, tmp_path / "marks"), workers(limit), plans())
    assert [one.line for one in episodes] == [one.line for one in well(tmp_path / "none")]
    assert episodes[1].retries == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "limit", "reason"), [("dies", 60, f"died {MAX_DEATHS + 1} times"), ("hangs", 10, "end within 10 s")]
)
def test_an_episode_that_kills_or_blocks_every_worker_has_failed(
    workers: Workers, kind: str, limit: float, reason: str, tmp_path: Path
) -> None:
    # the limit is long since a new worker's first episode begins with imports
    episodes = played(prepared(), troubled(kind, 99, tmp_path / "marks"), workers(limit), plans())
    assert isinstance(episodes[1].line, Failure)
    assert reason in episodes[1].line.reason
    assert [isinstance(one.line, Episode) for one in episodes] == [True, False, True, True, True]


def test_an_episode_that_was_lost_is_written_down_as_a_failure_with_all_that_was_decided(tmp_path: Path) -> None:
    rollout, one = troubled("none", 0, tmp_path / "marks"), prepared()
    lost: Answer[Outcome] = Answer(None, "its worker died 7 times", Timing(0.0, "", 7))
    for plan, alive in zip(plans(), well(tmp_path / "none"), strict=True):
        line, trajectory = written_down(one, rollout, plan, lost)
        assert trajectory is None
        assert line == Failure(
            searcher=plan.label, actions=alive.line.actions, key=alive.line.key, reason="its worker died 7 times"
        )
    assert (one.ledger.image_forwards, one.ledger.evaluations) == (0, 0)


def test_episodes_can_end_in_what_a_search_starts_from_if_it_keeps_the_budget() -> None:
    searching = prepared()
    uniform, dense = searching.setup.uniform().key, searching.setup.dense().key
    rollout = make_rollout(searching, InProcess(), [uniform, dense])
    assert [tuple(one.tolist()) for one in rollout.constraint.known] == [uniform]
    assert rollout.environment.constraint.known == rollout.constraint.known


def test_the_environment_that_users_step_gives_the_reward_of_the_searchs_episode() -> None:
    by_hand, searching = prepared(), prepared()
    environment, rollout = by_hand.environment(), make_rollout(searching, InProcess())
    draw = np.random.default_rng(0)
    for _ in range(3):
        actions = draw.random(len(digits().sites))
        observation, _ = environment.reset()
        observations, reward, terminated = [], 0.0, False
        while not terminated:
            observations.append(observation)
            action = np.asarray([actions[len(observations) - 1]], dtype=np.float32)
            observation, reward, terminated, _, info = environment.step(action)
        (episode,) = played(searching, rollout, InProcess(), [FixedPlan(tuple(actions.tolist()), "drawn")])
        assert isinstance(episode.line, Episode)
        assert episode.trajectory is not None
        assert (episode.line.reward, episode.line.evaluation) == (reward, info["evaluation"])
        assert episode.line.key == info["assignment"].key
        assert np.array_equal(episode.trajectory.observations, np.stack(observations))
        assert info["policy"] == searching.policy(info["assignment"])
    assert by_hand.ledger.known == searching.ledger.known
    assert by_hand.ledger.image_forwards == searching.ledger.image_forwards


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class Parts(NamedTuple):
    """Every part of a search that is no episode."""

    curves: dict[str, list[tuple[tuple[int, ...], tuple[float, ...]]]]
    judged: list[float]
    weights: list[dict[str, bytes]]
    images: list[bytes]
    image_forwards: int


def parts(pool: Pool) -> Parts:
    """Damage curves, audition, confirmation and reports of the same policies."""
    one, setup = prepared(), digits()
    tools = Tools.of(one, InProcess())
    dense = tools.dense_outputs(one)
    levels = (0.3, 0.1, 0.2)
    chosen = [setup.assignment(setup.constraint.project([level] * len(setup.sites))) for level in levels]
    curves = damage_curves(one, pool, tools)
    judged = [*audition(one, pool, tools, chosen), *quick_audition(one, pool, tools, chosen)]
    repaired = list(confirmed(one, pool, tools, dense, [assignment.key for assignment in chosen]))
    wanted = [Reported(setup.dense(), None, "validation"), Reported(setup.dense(), None, "test")]
    wanted += [Reported(each.assignment, each.state, "test") for each in repaired]
    scores = [each.score for each in repaired]
    scores += [answer.result() for answer in pool.map(score_reported, tools, dense, wanted)]
    return Parts(
        curves={name: [(curve.kept, curve.damage) for curve in kind] for name, kind in curves.items()},
        judged=judged,
        weights=[{name: t.numpy().tobytes() for name, t in (each.state or {}).items()} for each in repaired],
        images=[score.each.tobytes() for score in scores],
        image_forwards=one.ledger.image_forwards,
    )


def test_damage_curves_audition_confirmation_and_reports_are_the_same_on_two_workers(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "alone"))
    alone = parts(InProcess())
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "both"))  # so that nothing is remembered
    both = parts(workers())
    assert both == alone
    assert set(alone.curves) == set(digits().config.knapsack.damages)
    assert len(alone.images) == 8
    assert all(alone.weights)


def test_what_was_judged_before_is_remembered_and_charged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    one, setup = prepared(), digits()
    tools, chosen = Tools.of(one, InProcess()), [setup.dense(), setup.uniform()]
    paid = one.ledger.image_forwards
    judged = quick_audition(one, InProcess(), tools, chosen)
    once = one.ledger.image_forwards - paid
    monkeypatch.setattr("amc.search.allocation.audition.judge", None)
    assert quick_audition(one, InProcess(), tools, chosen) == judged
    assert one.ledger.image_forwards - paid == 2 * once
    assert judged[0] < judged[1]


def test_policies_with_and_without_patterns_are_played_on_workers(workers: Workers) -> None:
    values = {**SETTINGS, "choose": "mixed", "constraint": {"macs": 1.0}, "agent": "random"}
    mixed = prepare(set_up(SearchConfig(**values)))
    rounds = [
        [FixedPlan((level,) * len(mixed.setup.sites), f"{level}") for level in levels]
        for levels in ((0.3, 0.4), (1.0, 0.3), (0.5, 1.0))
    ]

    def lines(pool: Pool) -> list[Line]:
        one = replace(mixed, ledger=Ledger())
        rollout = make_rollout(one, pool)
        return [each.line for plans in rounds for each in played(one, rollout, pool, plans)]

    alone = lines(InProcess())
    assert lines(workers()) == alone
    free = [line.evaluation.image_forwards == 0 for line in alone if isinstance(line, Episode)]
    assert free == [False, False, False, True, False, True]


def searched(path: Path, workers: int) -> Path:
    new_run(SearchConfig(**SETTINGS), path, NoScreen(), workers=WorkersConfig(workers=workers))
    return path


def learned(folder: Path) -> dict[str, bytes]:
    snapshot = RunFolder(folder).snapshot()
    assert snapshot is not None
    return {name: array.tobytes() for name, array in snapshot.searcher.arrays.items()}


def assert_equal(first: Path, second: Path) -> None:
    for name in SAME:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert learned(first) == learned(second)


def test_the_same_seed_gives_the_same_files_and_actor_on_any_number_of_workers(
    free_ray: None, bare: None, tmp_path: Path
) -> None:
    assert_equal(searched(tmp_path / "alone", 0), searched(tmp_path / "both", 2))


@pytest.mark.slow
def test_one_worker_gives_what_this_process_gives(free_ray: None, bare: None, tmp_path: Path) -> None:
    assert_equal(searched(tmp_path / "alone", 0), searched(tmp_path / "one", 1))


@pytest.mark.slow
def test_a_search_stopped_on_two_workers_is_resumed_in_process(
    free_ray: None, bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, original = searched(tmp_path / "alone", 0), RunFolder.round

    def deadly(folder: RunFolder, snapshot: Snapshot) -> None:
        if len(snapshot.lines) > 4:
            raise KeyboardInterrupt
        original(folder, snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "round", deadly)
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "stopped", 2)
    resume_run(tmp_path / "stopped", 0, NoScreen())
    assert_equal(alone, tmp_path / "stopped")


def test_a_search_in_which_every_evaluation_fails_stops_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = prepare(set_up(SearchConfig(**{**SETTINGS, "agent": "random", "episodes": 30})))

    def fall(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(broken.compressor, "compress", fall)
    with pytest.raises(ValueError, match=r"all 8 failed, the last because: RuntimeError: the disk is full"):
        search(broken)
    hasty = replace(broken, config=broken.config.model_copy(update={"max_minutes": 1e-9}))
    with pytest.raises(ValueError, match=r"all 4 failed, the last because: RuntimeError: the disk is full"):
        search(hasty)  # ends after the first round of four


def test_a_failed_episode_is_written_down_and_read_back(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = prepare(set_up(SearchConfig(**{**SETTINGS, "agent": "random"})))
    original = failing.compressor.compress
    calls = iter(range(1000))

    def sometimes(*arguments: Any, **named: Any) -> object:
        if 3 <= next(calls) < 6:
            raise RuntimeError("out of memory")
        return original(*arguments, **named)

    monkeypatch.setattr(failing.compressor, "compress", sometimes)
    folder = RunFolder.create(tmp_path / "run", failing.config)
    result = search(failing, folder)
    folder.close()
    snapshot = RunFolder.reopen(tmp_path / "run").snapshot()
    assert snapshot is not None
    assert [isinstance(line, Failure) for line in snapshot.lines] == [k == 3 for k in range(10)]
    assert len(snapshot.episodes) == 9
    assert (result.failures, result.episodes) == (1, 10)
