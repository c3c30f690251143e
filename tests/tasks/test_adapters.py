"""Tasks of Hugging Face and timm models: random weights, samples as tokenizers and transforms give them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
import amc.tasks
from amc.config.search import SearchConfig
from amc.problem.inspection import inspection
from amc.scoring.scorer import Scorer
from amc.tasks.checks import check_task
from amc.tasks.metrics import IGNORED
from amc.tasks.task import Task
from envs.network.graph import trace
from envs.network.inputs import call, tensors

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def texts(count: int = 24, seed: int = 0) -> dict[str, list[Any]]:
    """As `tokenizer(texts)` returns them, with labels."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(1, 40, 3 + place % 5).tolist() for place in range(count)]
    return {
        "input_ids": ids,
        "attention_mask": [[1] * len(one) for one in ids],
        "label": [place % 3 for place in range(count)],
    }


def with_token_labels(samples: dict[str, list[Any]]) -> dict[str, list[Any]]:
    labels = [[word % 3 for word in words] for words in samples["input_ids"]]
    return {**{name: column for name, column in samples.items() if name != "label"}, "labels": labels}


def tokens() -> dict[str, list[Any]]:
    return with_token_labels(texts())


def with_values() -> dict[str, list[Any]]:
    return {**texts(), "label": [0.1 * place for place in range(24)]}


def items(samples: dict[str, list[Any]]) -> Sequence[dict[str, Any]]:
    """As a `datasets.Dataset` gives them."""
    return [dict(zip(samples, row, strict=True)) for row in zip(*samples.values(), strict=True)]


def of_huggingface(
    kind: str, config: str, calibration: Any, others: Any, training: Any = None, **settings: Any
) -> Task:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    splits = {"calibration": calibration, "validation": others, "test": others, "training": training}
    return amc.tasks.from_huggingface(model, **splits)


def score(task: Task) -> float:
    scorer = Scorer(
        graph=trace(task.network, task.example_input), metric=task.metric, counts=task.counts, backend="eager"
    )
    return scorer(task.network, task.test, range(len(task.test))).value


def test_a_classifier_of_texts_needs_labels_only_to_be_scored() -> None:
    samples = texts()
    bare = {name: column for name, column in samples.items() if name != "label"}
    task = of_huggingface("BertForSequenceClassification", "BertConfig", bare, samples, num_labels=3, **SMALL)
    check_task(task)
    inputs, targets = task.test.batch([0, 4, 1])
    assert inputs["input_ids"].shape == (3, 7)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [3, 7, 4]
    assert targets.tolist() == [0, 1, 1]
    assert task.counts is not None
    assert task.metric.name == "accuracy"
    assert tensors(task.example_input)[0].shape == (1, 5)
    outputs = torch.cat([call(task.network, task.test.batch([place])[0]) for place in range(24)])
    assert score(task) == pytest.approx(float((outputs.argmax(1) == torch.tensor(samples["label"])).float().mean()))


def test_a_classifier_of_tokens_is_scored_on_those_that_have_labels() -> None:
    samples = with_token_labels(texts())
    bare = {name: column for name, column in samples.items() if name != "labels"}
    task = of_huggingface(
        "DistilBertForTokenClassification",
        "DistilBertConfig",
        *(items(bare), items(samples)),
        **{"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "num_labels": 3},
    )
    right = total = 0
    for place, labels in enumerate(samples["labels"]):
        found = call(task.network, task.test.batch([place])[0])[0].argmax(dim=-1)
        right, total = right + int((found == torch.tensor(labels)).sum()), total + len(labels)
    check_task(task)
    inputs, targets = task.calibration.batch([0, 4])
    assert targets.tolist() == torch.full_like(tensors(inputs)[0], IGNORED).tolist()
    assert task.metric.name == "token accuracy"
    assert score(task) == pytest.approx(right / total)


@pytest.mark.parametrize(
    ("kind", "config", "settings"),
    [
        ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 1, **SMALL}),
        ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40}),
    ],
)
def test_a_language_model_is_scored_on_its_own_words(kind: str, config: str, settings: dict[str, Any]) -> None:
    samples = {name: column for name, column in texts().items() if name == "input_ids"}
    ends = {"bos_token_id": 1, "eos_token_id": 2} if kind.startswith("GPT2") else {}
    task = of_huggingface(kind, config, samples, samples, **settings, **ends)
    losses = []
    for place, words in enumerate(samples["input_ids"]):
        logits: Tensor = call(task.network, task.test.batch([place])[0])[0]
        losses += F.cross_entropy(logits[:-1], torch.tensor(words[1:]), reduction="none").tolist()
    assert task.metric.name == "perplexity"
    assert task.counts is not None
    assert score(task) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_what_a_model_of_transformers_can_be_pruned_of_is_inspected() -> None:
    task = of_huggingface("BertForSequenceClassification", "BertConfig", texts(), texts(), num_labels=3, **SMALL)
    found = inspection(task, SearchConfig(task=task.name, constraint={"macs": 0.8}))
    assert 24 in {unit.channels for unit in found.units}


def test_a_model_that_scores_nothing_needs_a_metric() -> None:
    with pytest.raises(ValueError, match="BertModel is none: pass metric="):
        of_huggingface("BertModel", "BertConfig", texts(), texts(), **SMALL)


@pytest.mark.parametrize(
    ("samples", "law"),
    [
        ({"words": [[1, 2]] * 16}, "samples must have an input of the model, but have words"),
        ({"input_ids": [[1, 2]] * 16, "label": [0] * 15}, "the columns of calibration must be equally long"),
        (iter([{"input_ids": [1]}]), "calibration must be columns by name or items"),
    ],
)
def test_samples_that_are_none_are_refused(samples: Any, law: str) -> None:
    with pytest.raises(ValueError, match=law):
        of_huggingface("BertForSequenceClassification", "BertConfig", samples, texts(), num_labels=3, **SMALL)


class Described(nn.Module):
    """Holds what models of timm hold: https://huggingface.co/docs/timm, `pretrained_cfg`."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {
            **{"architecture": "tiny", "input_size": (3, 16, 16), "crop_pct": 0.9, "interpolation": "bicubic"},
            **{"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.1, 0.5), "num_classes": 4, "classifier": "head"},
        }
        self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(F.relu(self.stem(x)).mean(dim=(2, 3)))
        return scores


@pytest.mark.parametrize(
    ("kind", "config", "make", "settings"),
    [
        ("BertForSequenceClassification", "BertConfig", texts, {**SMALL, "num_labels": 3}),
        ("BertForSequenceClassification", "BertConfig", with_values, {**SMALL, "num_labels": 1}),
        ("BertForTokenClassification", "BertConfig", tokens, {**SMALL, "num_labels": 3}),
        ("LlamaForCausalLM", "LlamaConfig", texts, SMALL),
    ],
)
def test_a_model_of_transformers_is_trained_by_what_its_class_scores(
    kind: str, config: str, make: Callable[[], Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    task = of_huggingface(kind, config, make(), make(), training=make(), **settings)
    out = tmp_path / "run"
    found = amc.search(task, {"macs": 0.8}, searcher="knapsack", knapsack={"widths": 2}, out=out, progress=False)
    trained = amc.finetune(found, epochs=2, batch=8, learning_rate=1e-3, progress=False)
    assert trained.reports["fine-tuned"].costs == found.reports["found"].costs


@pytest.mark.parametrize("last", [True, False])
def test_images_for_a_timm_model_are_normalized_as_it_was_trained(last: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3) if last else (20, 3, 16, 16), dtype=np.uint8)
    data = (images, np.arange(20) % 4)
    task = amc.tasks.from_timm(Described(), calibration=data, validation=data, test=data)
    inputs, targets = task.calibration.batch([3])
    assert task.name == "tiny"
    assert task.example_input.shape == inputs.shape == (1, 3, 16, 16)  # type: ignore[union-attr]
    green = images[3, :, :, 1] if last else images[3, 1]
    torch.testing.assert_close(inputs[0, 1], (torch.from_numpy(green).float() / 255 - 0.4) / 0.1)
    assert targets.tolist() == [3]


def test_images_for_a_timm_model_may_have_another_size_than_it_names() -> None:
    data = (np.zeros((20, 3, 24, 24), np.uint8), np.arange(20) % 4)
    task = amc.tasks.from_timm(Described(), calibration=data, validation=data, test=data)
    assert task.example_input.shape == (1, 3, 24, 24)  # type: ignore[union-attr]


def test_a_dataset_for_a_timm_model_has_a_transform_of_its_own() -> None:
    data = [(torch.full((3, 16, 16), float(place)), place % 4) for place in range(20)]
    task = amc.tasks.from_timm(Described(), calibration=data, validation=data, test=data)
    assert task.calibration.batch([7])[0].unique().tolist() == [7.0]


def test_a_model_that_does_not_say_what_images_it_takes_is_refused() -> None:
    data = (np.zeros((20, 3, 16, 16), np.uint8), np.zeros(20, np.int64))
    with pytest.raises(ValueError, match="from_timm needs a model with a pretrained_cfg"):
        amc.tasks.from_timm(nn.Linear(3, 2), calibration=data, validation=data, test=data)


def test_a_model_of_timm_becomes_a_task() -> None:
    try:
        timm = import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision that was built for another torch
        pytest.skip(f"needs timm: {error}")
    data = (np.zeros((20, 3, 224, 224), np.uint8), np.zeros(20, np.int64))
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    task = amc.tasks.from_timm(model, calibration=data, validation=data, test=data)
    assert call(task.network, task.test.batch([0])[0]).shape == (1, 1000)
