"""The contract of all rollouts: the same episodes in the same order, whoever plays and whatever goes wrong."""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from agents.searcher import FixedPlan, Plan
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.rollouts.episode import Episode, Failure, Played, Rollouts, SerialRollouts
from amc.rollouts.ray import MOST_DEATHS, RayRollouts
from amc.rollouts.worker import Round, processor
from amc.runs.folder import RunFolder
from amc.runs.runner import run_resume, run_search
from amc.scoring.evaluate import Effort, Evaluator
from amc.search.loop import search
from amc.search.setup import Problem
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation, accuracy
from envs.space.policy import Policy

pytestmark = pytest.mark.xdist_group("ray")  # one Ray per run of the tests

SETTINGS = {
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
def problem() -> Problem:
    return Problem(SearchConfig(**SETTINGS))


@dataclass(frozen=True)
class Trouble:
    """An evaluation that fails in some way for the lightest of the plans, the first `times` it is tried."""

    kind: str
    times: int
    folder: Path
    lightest: int

    def __call__(self, policy: Policy) -> Evaluation:
        total = sum(policy.widths().values())
        evaluation = Evaluation(
            accuracy=total / 1e4, loss=None, costs={"macs": float(total)}, images=1, image_forwards=3
        )
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
        return Evaluation(accuracy=math.nan, loss=None, images=1, image_forwards=3)


def troubled(kind: str, times: int, folder: Path) -> PruningEnv:
    constraint = problem().constraint
    lightest = sum(problem().policy(constraint.project([0.0] * len(problem().sites))).widths().values())
    folder.mkdir(exist_ok=True)
    return PruningEnv(constraint, problem().compressor.policy, Trouble(kind, times, folder, lightest), accuracy)


Make = Callable[..., Rollouts]


@pytest.fixture(params=["serial", "ray"])
def any_rollouts(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes rollouts over an environment and an evaluator."""
    if request.param == "serial":
        yield SerialRollouts
        return
    request.getfixturevalue("own_ray")
    made: list[RayRollouts] = []

    def make(environment: PruningEnv, evaluator: Evaluator, limit: float = 60.0) -> RayRollouts:
        made.append(RayRollouts(environment, evaluator, WorkersConfig(workers=2, limit_seconds=limit), 2, [__name__]))
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()


def plans() -> list[Plan]:
    steps = len(problem().sites)
    return [FixedPlan((level,) * steps, f"plan {level}") for level in (0.3, 0.0, 0.25, 0.3, 0.2)]


def counted(environment: PruningEnv) -> tuple[Evaluator, Effort]:
    effort = Effort()
    return Evaluator(environment.evaluate, effort), effort


def rewards(played: list[Played]) -> list[float | None]:
    return [None if one.trajectory is None else one.trajectory.reward for one in played]


def test_episodes_come_in_the_order_of_the_plans_and_each_policy_is_charged_once(
    any_rollouts: Make, tmp_path: Path
) -> None:
    environment = troubled("none", 0, tmp_path / "marks")
    evaluator, effort = counted(environment)
    rollouts = any_rollouts(environment, evaluator)
    first, second = rollouts.play(plans()), rollouts.play(plans()[:2])
    assert [one.line.searcher for one in first] == [plan.label for plan in plans()]
    assert [one.line.evaluation.image_forwards for one in first if isinstance(one.line, Episode)] == [3, 3, 3, 0, 3]
    assert [one.line.evaluation.image_forwards for one in second if isinstance(one.line, Episode)] == [0, 0]
    assert rewards(second) == rewards(first)[:2]
    assert (effort.image_forwards, effort.evaluations) == (12, 4)


@pytest.mark.parametrize("kind", ["raises", pytest.param("nan", marks=pytest.mark.slow)])
def test_an_evaluation_that_fails_for_a_while_is_tried_again(any_rollouts: Make, kind: str, tmp_path: Path) -> None:
    well = troubled("none", 0, tmp_path / "none")
    expected = rewards(SerialRollouts(well, counted(well)[0]).play(plans()))
    environment = troubled(kind, 2, tmp_path / "marks")
    played = any_rollouts(environment, counted(environment)[0]).play(plans())
    assert rewards(played) == expected
    assert [one.timing.retries for one in played] == [0, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [pytest.param("raises", "KeyError: 'a shoe'", marks=pytest.mark.slow), ("nan", "must be finite")],
)
def test_an_evaluation_that_goes_on_failing_is_recorded_with_its_reason(
    any_rollouts: Make, kind: str, reason: str, tmp_path: Path
) -> None:
    environment = troubled(kind, 99, tmp_path / "marks")
    evaluator, effort = counted(environment)
    played = any_rollouts(environment, evaluator).play(plans())
    assert [isinstance(one.line, Failure) for one in played] == [False, True, False, False, False]
    assert isinstance(played[1].line, Failure)
    assert reason in played[1].line.reason
    assert played[1].trajectory is None
    assert effort.evaluations == 3


@pytest.mark.parametrize("kind", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_worker_that_dies_or_hangs_is_replaced(own_ray: None, kind: str, tmp_path: Path) -> None:
    well = troubled("none", 0, tmp_path / "none")
    expected = SerialRollouts(well, counted(well)[0]).play(plans())
    environment = troubled(kind, 1, tmp_path / "marks")
    evaluator = counted(environment)[0]
    rollouts = RayRollouts(environment, evaluator, WorkersConfig(workers=2, limit_seconds=2), 2, [__name__])
    played = rollouts.play(plans())
    rollouts.close()
    assert [one.line for one in played] == [one.line for one in expected]
    assert played[1].timing.retries == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "limit", "reason"), [("dies", 60, f"died {MOST_DEATHS + 1} times"), ("hangs", 10, "end within 10 s")]
)
def test_an_episode_that_kills_or_blocks_every_worker_has_failed(
    own_ray: None, kind: str, limit: float, reason: str, tmp_path: Path
) -> None:
    environment = troubled(kind, 99, tmp_path / "marks")
    config = WorkersConfig(workers=2, limit_seconds=limit)  # a new worker's first episode begins with imports
    rollouts = RayRollouts(environment, counted(environment)[0], config, 2, [__name__])
    played = rollouts.play(plans())
    rollouts.close()
    assert isinstance(played[1].line, Failure)
    assert reason in played[1].line.reason
    assert [isinstance(one.line, Episode) for one in played] == [True, False, True, True, True]


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches without pictures and latency, and with a cache of their own."""
    monkeypatch.setenv("AMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("amc.runs.runner.write_report", lambda *_: None)
    monkeypatch.setattr("amc.runs.runner.latency_ms", lambda *_: {})


def searched(path: Path, workers: int) -> Path:
    run_search(SearchConfig(**SETTINGS), path, quiet(), workers=WorkersConfig(workers=workers))
    return path


def quiet() -> Console:
    return Console(file=io.StringIO())


def learned(folder: Path) -> dict[str, bytes]:
    snapshot = RunFolder(folder).snapshot()
    assert snapshot is not None
    return {name: array.tobytes() for name, array in snapshot.searcher.arrays.items()}


def assert_equal(first: Path, second: Path) -> None:
    for name in SAME:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert learned(first) == learned(second)


def test_the_same_seed_gives_the_same_files_and_actor_on_any_number_of_workers(
    own_ray: None, bare: None, tmp_path: Path
) -> None:
    assert_equal(searched(tmp_path / "alone", 0), searched(tmp_path / "both", 2))


@pytest.mark.slow
def test_one_worker_gives_what_this_process_gives(own_ray: None, bare: None, tmp_path: Path) -> None:
    assert_equal(searched(tmp_path / "alone", 0), searched(tmp_path / "one", 1))


@pytest.mark.slow
def test_a_search_stopped_on_two_workers_is_resumed_in_process(
    own_ray: None, bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, original = searched(tmp_path / "alone", 0), RunFolder.round

    def deadly(folder: RunFolder, snapshot: object) -> None:
        if len(snapshot.lines) > 4:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        original(folder, snapshot)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "round", deadly)
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "stopped", 2)
    run_resume(tmp_path / "stopped", 0, quiet())
    assert_equal(alone, tmp_path / "stopped")


def test_a_search_in_which_every_evaluation_fails_stops_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Problem(SearchConfig(**{**SETTINGS, "agent": "random", "episodes": 30}))

    def fall(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(type(broken.compressor), "compress", fall)
    with pytest.raises(ValueError, match=r"all 8 failed, the last because: RuntimeError: the disk is full"):
        search(broken)
    broken.config = broken.config.model_copy(update={"max_minutes": 1e-9})  # ends after the first round of four
    with pytest.raises(ValueError, match=r"all 4 failed, the last because: RuntimeError: the disk is full"):
        search(broken)


def test_a_failed_episode_is_written_down_and_read_back(bare: None, tmp_path: Path) -> None:
    failing = Problem(SearchConfig(**{**SETTINGS, "agent": "random"}))
    original = failing.compressor.compress
    calls = iter(range(1000))

    def sometimes(*arguments: object, **named: object) -> object:
        if 3 <= next(calls) < 6:
            raise RuntimeError("out of memory")
        return original(*arguments, **named)  # type: ignore[arg-type]

    failing.compressor.compress = sometimes  # type: ignore[method-assign, assignment]
    folder = RunFolder.create(tmp_path / "run", failing.config)
    result = search(failing, folder)
    snapshot = RunFolder.reopen(tmp_path / "run").snapshot()
    assert snapshot is not None
    assert [isinstance(line, Failure) for line in snapshot.lines] == [k == 3 for k in range(10)]
    assert len(snapshot.episodes) == 9
    assert (result.failures, result.episodes) == (1, 10)


def test_different_processors_are_warned_about_once(
    own_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.rollouts.ray.processor", lambda: "another one")
    environment = troubled("none", 0, tmp_path / "marks")
    rollouts = RayRollouts(environment, counted(environment)[0], WorkersConfig(workers=2), 2, [__name__])
    with caplog.at_level(logging.WARNING):
        rollouts.play(plans())
        rollouts.play(plans())
    rollouts.close()
    models = ", ".join(sorted({"another one", processor()}))
    assert [f"different processors ({models})" in record.message for record in caplog.records] == [True]


def test_a_node_on_which_workers_cannot_be_made_is_told_once(
    own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unmade:
        def __init__(self, threads: int) -> None:
            raise ModuleNotFoundError("No module named 'amc'")

        def about(self) -> None: ...

    monkeypatch.setattr("amc.rollouts.ray.Worker", Unmade)
    environment = troubled("none", 0, tmp_path / "marks")
    rollouts = RayRollouts(environment, counted(environment)[0], WorkersConfig(workers=2), 2)
    with pytest.raises(ValueError, match=r"No module named 'amc': see docs/ray\.md"):
        rollouts.play(plans())
    rollouts.close()


def test_widths_are_known_whether_or_not_others_have_patterns() -> None:
    both, dense = Round((), np.array([[8, 8, 0, 0], [8, 8, 0, 3]])), Round((), np.array([[8, 8]]))
    assert [both.knows(key) for key in ((8, 8), (8, 8, 0, 3), (8, 7), (8, 8, 3, 0))] == [True, True, False, False]
    assert [dense.knows(key) for key in ((8, 8), (8, 8, 0, 3))] == [True, False]
    assert not Round((), Evaluator(lambda policy: policy, Effort()).known()).knows((8, 8))  # type: ignore[arg-type, return-value]


def test_policies_with_and_without_patterns_are_played_on_workers(own_ray: None) -> None:
    mixed = Problem(SearchConfig(**{**SETTINGS, "choose": "mixed", "constraint": {"macs": 1.0}, "agent": "random"}))
    rounds = [
        [FixedPlan((level,) * len(mixed.sites), f"{level}") for level in levels]
        for levels in ((0.3, 0.4), (1.0, 0.3), (0.5, 1.0))
    ]

    def lines(rollouts: Rollouts) -> list[object]:
        return [[one.line for one in rollouts.play(plans)] for plans in rounds]

    measure = mixed.measurement
    alone = lines(SerialRollouts(mixed.environment(measure), Evaluator(measure, Effort())))
    both = RayRollouts(mixed.portable_environment(), Evaluator(measure, Effort()), WorkersConfig(workers=2), 2)
    assert lines(both) == alone
    both.close()
    assert {any(one.evaluation.image_forwards == 0 for one in played) for played in alone} == {True, False}  # type: ignore[attr-defined]
