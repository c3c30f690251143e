"""Scores: metric, loss and distance from the dense network, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from amc.config.search import SearchConfig
from amc.rollouts.parcel import pack, unpack
from amc.scoring.evaluate import excerpt
from amc.search import setup as module
from amc.search.setup import Problem
from amc.tasks.splits import ArraySplit, subset, typed


@pytest.fixture(scope="module")
def digits() -> Problem:
    return Problem(SearchConfig(task="tests.tasks.small:make_task", agent="uniform"))


def test_the_dense_network_has_no_output_error_and_a_pruned_one_has(digits: Problem) -> None:
    dense = digits.score(digits.task.network, "validation")
    small = digits.compressor.compress(digits.policy(digits.constraint.uniform()), "none").network
    pruned = digits.score(small, "validation")
    assert dense.errors is not None
    assert pruned.errors is not None
    assert_allclose(dense.errors, 0, atol=1e-8)
    assert pruned.errors.min() > 0


def test_the_output_error_is_the_squared_difference_of_centred_class_scores(digits: Problem) -> None:
    small = digits.compressor.compress(digits.policy(digits.constraint.uniform()), "none").network
    inputs, _ = digits.task.validation.batch(range(40))
    with torch.no_grad():
        difference = small(inputs) - digits.task.network(inputs)
    expected = (difference - difference.mean(1, keepdim=True)).square().mean(1)
    found = digits.score(small, "validation").at(range(40)).errors
    assert found is not None
    assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)


def test_an_evaluation_says_the_mean_over_the_images_of_the_reward(digits: Problem) -> None:
    policy = digits.policy(digits.constraint.uniform())
    evaluation = digits.evaluate(policy)
    score = digits.score(digits.compressor.compress(policy, quick=True).network, "validation")
    assert score.errors is not None
    assert evaluation.output_error == pytest.approx(np.mean(score.errors[digits.draws.reward()]), rel=0.05)
    assert digits.reward(evaluation) == -evaluation.output_error  # type: ignore[operator]


def test_outputs_that_are_too_many_to_keep_leave_accuracy_as_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 1.0)
    problem = Problem(SearchConfig(task="tests.tasks.small:make_task", agent="uniform"))
    evaluation = problem.evaluate(problem.policy(problem.constraint.uniform()))
    assert evaluation.output_error is None
    assert problem.reward(evaluation) == evaluation.accuracy
    with pytest.raises(ValueError, match="too many to keep: use --reward accuracy"):
        Problem(SearchConfig(task="tests.tasks.small:make_task", reward="output_error"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.uint8, torch.bool])
def test_an_excerpt_on_its_way_to_a_worker_gives_the_same_batches(dtype: torch.dtype) -> None:
    x = torch.arange(40).reshape(10, 4).to(dtype)
    split = subset(typed(ArraySplit(x, np.arange(10)), torch.float32), [7, 1, 4])
    part = excerpt(split, [2, 0])
    assert part is not None
    assert len(part) == 2
    for ours, theirs in zip(unpack(pack(part)).batch([0, 1]), split.batch([2, 0]), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)
