"""The arithmetic of a search: the first native backend that agrees with the network as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from amc.config.search import SearchConfig
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring import backend as module
from amc.scoring.backend import agreement, choose_backend, repairs_alike
from amc.scoring.scorer import Backend, Score
from envs.compression.compress import Compressed
from envs.compression.settings import CompressionConfig
from envs.space.policy import Policy


def scored(accuracies: Mapping[Backend, list[float]], fails: frozenset[Backend] = frozenset()):  # type: ignore[no-untyped-def]
    """A scoring function with these accuracies for networks 0, 1, ..."""
    networks = [nn.Linear(1, 1) for _ in accuracies["eager"]]

    def score(network: nn.Module, backend: Backend) -> Score:
        if backend in fails:
            raise RuntimeError("not implemented for 'BFloat16'")
        index = next(k for k, known in enumerate(networks) if known is network)
        return Score(statistics=(np.asarray([accuracies[backend][index]], np.float32),), losses=None)

    return networks, score


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "native_bf16", lambda device: True)


def test_bf16_is_taken_where_it_is_native_and_agrees(native: None) -> None:
    networks, score = scored({"eager": [0.9, 0.8], "fp32": [0.9, 0.8], "bf16": [0.901, 0.798]})
    chosen, found = choose_backend(networks, score, "cpu")
    assert chosen == "bf16"
    assert found.difference == pytest.approx(0.002, abs=1e-6)


def test_a_backend_that_differs_is_passed_over(native: None) -> None:
    networks, score = scored({"eager": [0.9, 0.8], "fp32": [0.9, 0.8], "bf16": [0.92, 0.8]})
    assert choose_backend(networks, score, "cpu")[0] == "fp32"


def test_a_backend_that_does_not_run_is_passed_over(native: None) -> None:
    accuracies = {"eager": [0.9], "fp32": [0.9], "bf16": [0.9]}
    networks, score = scored(accuracies, frozenset({"bf16"}))  # type: ignore[arg-type]
    assert choose_backend(networks, score, "cpu")[0] == "fp32"
    networks, score = scored(accuracies, frozenset({"bf16", "fp32"}))  # type: ignore[arg-type]
    assert choose_backend(networks, score, "cpu")[0] == "eager"


def test_without_native_bf16_the_order_says_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "native_bf16", lambda device: False)
    networks, score = scored({"eager": [0.9], "fp32": [0.9], "bf16": [0.9]})
    assert choose_backend(networks, score, "cpu")[0] == "fp32"


def test_networks_that_change_places_do_not_agree() -> None:
    assert not agreement([0.9, 0.894], [0.895, 0.896]).same_order
    assert agreement([0.9, 0.898], [0.897, 0.899]).same_order  # closer than the tolerance: either order


def test_a_problem_settles_its_backend_once_and_writes_it_into_the_configuration() -> None:
    prepared = prepare(set_up(SearchConfig(task="tests.tasks.small:make_task")))
    settled = prepared.config.backend
    assert settled.name == prepared.measurement.scorer.backend
    assert settled.difference is not None
    assert prepared.agreement is not None
    again = prepare(set_up(prepared.config))
    assert again.config.backend == settled
    assert again.measurement.scorer.backend == settled.name
    assert again.agreement is None
    assert again.ledger.image_forwards == prepared.ledger.image_forwards


def test_a_backend_is_settled_where_patterns_do_not_fit_the_widths_in_between() -> None:
    compression = CompressionConfig(images=64, quick_images=64)
    config = SearchConfig(
        task="tests.tasks.small:make_task",
        choose="mixed",
        constraint={"params": 0.15},
        reward_images=32,
        compression=compression,
    )
    assert prepare(set_up(config)).config.backend.name in ("bf16", "fp32", "eager")


def test_every_backend_scores_alike_on_a_trained_network() -> None:
    prepared = prepare(set_up(SearchConfig(task="tests.tasks.small:make_task")))
    scores = []
    for name in ("eager", "fp32", "bf16"):
        backend = prepared.config.backend.model_copy(update={"name": name})
        again = prepare(set_up(prepared.config.model_copy(update={"backend": backend})))
        scores.append(again.evaluate(again.setup.dense()).accuracy)
    assert max(scores) - min(scores) <= 0.005


def test_scoring_in_another_precision_leaves_the_network_as_it_was() -> None:
    setup = set_up(SearchConfig(task="tests.tasks.small:make_task"))
    before = {name: tensor.clone() for name, tensor in setup.task.network.state_dict().items()}
    replace(setup.scorer, backend="bf16")(setup.task.network, setup.task.validation, range(20))
    after = setup.task.network.state_dict()
    assert all(after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]) for name in before)


@pytest.fixture(scope="module")
def digits() -> Prepared:
    compression = CompressionConfig(images=48, positions=4)
    config = SearchConfig(task="tests.tasks.small:make_task", backend={"name": "fp32"}, compression=compression)
    return prepare(set_up(config))


def alike(prepared: Prepared) -> bool | None:
    setup, images = prepared.setup, range(100)
    uniform = prepared.policy(setup.uniform())
    return repairs_alike(prepared.compressor, uniform, setup.scorer, setup.task.validation, images)


@pytest.mark.parametrize(("repair", "expected"), [("sequential", True), ("none", False)])
def test_quick_repair_may_be_narrow_only_where_it_leaves_the_same_output_error(
    digits: Prepared, monkeypatch: pytest.MonkeyPatch, repair: str, expected: bool
) -> None:
    original = digits.compressor.compress

    def narrow(policy: Policy, *, quick: bool, half: bool) -> Compressed:
        return original(policy, repair, quick=quick) if half else original(policy, quick=quick)

    monkeypatch.setattr(digits.compressor, "compress", narrow)
    assert alike(digits) is expected


def test_where_nothing_is_walked_through_there_is_no_narrow_repair() -> None:
    config = SearchConfig(task="tests.tasks.small:make_task", compression={"repair": "layerwise", "images": 48})
    assert alike(prepare(set_up(config))) is None


@pytest.mark.parametrize(("agent", "tried"), [("knapsack", False), ("ddpg", True)])
def test_precisions_are_tried_where_there_are_episodes_to_save(agent: str, tried: bool) -> None:
    compression = CompressionConfig(images=48, positions=4)
    prepared = prepare(set_up(SearchConfig(task="tests.tasks.small:make_task", agent=agent, compression=compression)))
    assert (prepared.agreement is not None) is tried
    assert tried or prepared.config.backend.name == "fp32"
