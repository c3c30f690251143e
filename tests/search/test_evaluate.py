"""Scores: metric, loss and distance from the dense network, image by image; and the books of what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from amc.config.search import SearchConfig
from amc.pool.parcel import pack, unpack
from amc.pool.pool import InProcess
from amc.problem import setup as module
from amc.problem.dense import dense_outputs
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring.evaluate import excerpt
from amc.scoring.ledger import Ledger
from amc.scoring.scorer import Outputs, Score, Scorer
from amc.search.tools import Tools, score_whole
from amc.tasks.splits import ArraySplit, DatasetSplit, Split, subset, typed
from envs.reward import Evaluation


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepare(set_up(SearchConfig(task="tests.tasks.small:make_task", agent="uniform")))


def scored(prepared: Prepared, network: nn.Module) -> Score:
    """A network on the whole validation split."""
    tools = Tools.of(prepared, InProcess())
    return score_whole(tools, tools.dense_outputs(prepared), network, "validation")


def test_the_dense_network_has_no_output_error_and_a_pruned_one_has(digits: Prepared) -> None:
    dense = scored(digits, digits.setup.task.network)
    small = digits.compressor.compress(digits.policy(digits.setup.uniform()), "none").network
    pruned = scored(digits, small)
    assert dense.errors is not None
    assert pruned.errors is not None
    assert_allclose(dense.errors, 0, atol=1e-8)
    assert pruned.errors.min() > 0


def test_the_output_error_is_the_squared_difference_of_centred_class_scores(digits: Prepared) -> None:
    small = digits.compressor.compress(digits.policy(digits.setup.uniform()), "none").network
    inputs, _ = digits.setup.task.validation.batch(range(40))
    with torch.no_grad():
        difference = small(inputs) - digits.setup.task.network(inputs)
    expected = (difference - difference.mean(1, keepdim=True)).square().mean(1)
    found = scored(digits, small).at(range(40)).errors
    assert found is not None
    assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)


def test_an_evaluation_says_the_mean_over_the_images_of_the_reward(digits: Prepared) -> None:
    uniform = digits.setup.uniform()
    evaluation = digits.evaluate(uniform)
    score = scored(digits, digits.compressor.compress(digits.policy(uniform), quick=True).network)
    assert score.errors is not None
    assert evaluation.output_error is not None
    assert evaluation.output_error == pytest.approx(np.mean(score.errors[digits.setup.draws.reward()]), rel=0.05)
    assert digits.setup.reward(evaluation) == -evaluation.output_error


def test_outputs_that_are_too_many_to_keep_leave_accuracy_as_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 1.0)
    prepared = prepare(set_up(SearchConfig(task="tests.tasks.small:make_task", agent="uniform")))
    assert prepared.setup.audition()[1] == prepared.setup.draws.audition()[1][: module.MIN_JUDGED]
    evaluation = prepared.evaluate(prepared.setup.uniform())
    assert evaluation.output_error is None
    assert prepared.setup.reward(evaluation) == evaluation.accuracy
    assert Tools.of(prepared, InProcess()).dense_outputs(prepared) is None
    with pytest.raises(ValueError, match="too many to keep: use --reward accuracy"):
        set_up(SearchConfig(task="tests.tasks.small:make_task", reward="output_error"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.uint8, torch.bool])
def test_an_excerpt_on_its_way_to_a_worker_gives_the_same_batches(dtype: torch.dtype) -> None:
    x = torch.arange(40).reshape(10, 4).to(dtype)
    split = subset(typed(ArraySplit(x, np.arange(10)), torch.zeros(1)), [7, 1, 4])
    part = excerpt(split, [2, 0])
    assert part is not None
    assert len(part) == 2
    for ours, theirs in zip(unpack(pack(part)).batch([0, 1]), split.batch([2, 0]), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)


# The ledger


def evaluated(accuracy: float, image_forwards: int) -> Evaluation:
    return Evaluation(metric=accuracy, loss=None, images=1, image_forwards=image_forwards)


def test_an_assignment_is_charged_once_and_remembered_as_it_was_first() -> None:
    ledger = Ledger()
    known, first = ledger.known, evaluated(0.5, 7)
    assert ledger.account((1, 2), first) == first
    assert ledger.account((1, 2), evaluated(0.9, 7)) == evaluated(0.5, 0)
    assert ledger.account((2, 1), evaluated(0.9, 5)) == evaluated(0.9, 5)
    assert (ledger.image_forwards, ledger.evaluations) == (12, 2)
    assert known == {(1, 2): first, (2, 1): evaluated(0.9, 5)}  # what was handed out stays up to date
    ledger.charge(60)
    ledger.charge(40, once="damage curves")
    ledger.charge(40, once="damage curves")
    assert (ledger.image_forwards, ledger.evaluations) == (112, 2)


def test_an_assignment_that_is_known_from_another_device_has_the_costs_of_this_one() -> None:
    ledger = Ledger()
    ledger.account((1, 2), replace(evaluated(0.5, 7), costs={"latency_ms": 3.0}))
    again = ledger.account((1, 2), replace(evaluated(0.5, 7), costs={"latency_ms": 0.3}))
    assert again == replace(evaluated(0.5, 0), costs={"latency_ms": 0.3})


def test_what_the_ledger_knows_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        Ledger().known[1, 2] = evaluated(0.5, 7)  # type: ignore[index]


def test_a_restored_ledger_goes_on_where_the_earlier_one_stopped() -> None:
    ledger = Ledger()
    ledger.charge(3)  # preparing again is not paid again
    ledger.restore(112, 2, {(1, 2): evaluated(0.5, 7)})
    assert (ledger.image_forwards, ledger.evaluations) == (112, 2)
    assert ledger.account((1, 2), evaluated(0.9, 7)) == evaluated(0.5, 0)
    ledger.account((2, 2), evaluated(0.9, 7))
    assert (ledger.image_forwards, ledger.evaluations) == (119, 3)


def test_an_evaluation_made_by_hand_is_counted_once(digits: Prepared) -> None:
    fresh = replace(digits, ledger=Ledger())
    first, second = (fresh.evaluate(fresh.setup.dense()) for _ in range(2))
    assert first.image_forwards == fresh.ledger.image_forwards > 0
    assert second == replace(first, image_forwards=0)
    assert fresh.ledger.evaluations == 1


@pytest.fixture
def asked(digits: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Split], tuple[Outputs, int]]:
    """The dense network's outputs on a split, and how many samples it has seen beyond what knows it again."""
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    setup, own, seen = digits.setup, Scorer.outputs, list[int]()

    def counting(scorer: Scorer, network: nn.Module, split: Split, indices: Sequence[int]) -> Outputs:
        seen.append(len(indices) if isinstance(indices, range) else 0)
        return own(scorer, network, split, indices)

    monkeypatch.setattr(Scorer, "outputs", counting)

    def ask(split: Split) -> tuple[Outputs, int]:
        seen.clear()
        outputs = dense_outputs(setup, split)
        assert outputs is not None
        return outputs, sum(seen)

    return ask


def test_outputs_of_the_dense_network_are_computed_once(
    digits: Prepared, asked: Callable[[Split], tuple[Outputs, int]]
) -> None:
    split = digits.setup.task.validation
    (computed, paid), (known, paid_again) = asked(split), asked(split)
    assert (paid, paid_again) == (len(split), 0)
    assert all(map(torch.equal, computed, known))
    assert asked(subset(split, range(len(split) - 1)))[1] == len(split) - 1


@pytest.mark.parametrize("what", ["outputs", "modules", "buffers"])
def test_outputs_are_computed_again_where_the_network_has_changed(
    digits: Prepared,
    asked: Callable[[Split], tuple[Outputs, int]],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split, network = digits.setup.task.validation, digits.setup.task.network
    asked(split)
    handle = network.register_forward_hook(lambda module, inputs, outputs: 2 * outputs if what == "outputs" else None)
    if what == "modules":
        monkeypatch.setattr(network, "extra_repr", lambda: "another threshold")
    if what == "buffers":
        monkeypatch.setitem(network._buffers, "table", torch.ones(3))
        monkeypatch.setattr(network, "_non_persistent_buffers_set", {"table"})
    assert asked(split)[1] == len(split)
    handle.remove()


def test_outputs_that_are_never_the_same_and_those_of_samples_on_disk_are_not_remembered(
    digits: Prepared, asked: Callable[[Split], tuple[Outputs, int]], tmp_path: Path
) -> None:
    split, network = digits.setup.task.validation, digits.setup.task.network
    loaded = DatasetSplit([(inputs[0], int(targets[0])) for inputs, targets in map(split.batch, [[0], [1]])])
    assert asked(loaded)[1] == asked(loaded)[1] == 2  # they would be loaded twice
    handle = network.register_forward_hook(lambda module, inputs, outputs: outputs + 1e-6 * torch.randn_like(outputs))
    assert asked(split)[1] == asked(split)[1] == len(split)
    handle.remove()
    assert not list(tmp_path.glob("dense-*.safetensors"))
