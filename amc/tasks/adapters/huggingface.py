"""A task of a Hugging Face model and tokenized samples (`pip install transformers`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.tasks.batches import Batch
from amc.tasks.metric import Metric
from amc.tasks.metrics import IGNORED, accuracy, perplexity, spearman, token_accuracy
from amc.tasks.task import Loss, Task
from envs.network.outputs import Output

Samples: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Columns by name, as a tokenizer gives them (lists of numbers, arrays or tensors), or items with `__len__` and
`__getitem__` that are mappings, as those of a `datasets.Dataset`.
"""
LABELS = ("labels", "label")
MASK = "attention_mask"
CLASSES = {
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "causal",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "sample",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "token",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "token",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "sample",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES": "sample",
}
"""What the classes in these lists of `transformers.models.auto.modeling_auto` score."""


def from_huggingface(
    model: nn.Module,
    *,
    calibration: Samples,
    validation: Samples,
    test: Samples,
    training: Samples | None = None,
    metric: Metric | Callable[[Tensor, Tensor], Tensor] | None = None,
    loss: Loss | None = None,
    output: Output = "logits",
    length: int | None = None,
    name: str | None = None,
) -> Task:
    """A task of a model of `transformers` and tokenized samples; texts of different lengths are padded in each batch.

    Args:
        model: Such as `AutoModelForSequenceClassification.from_pretrained(...)`.
        calibration: Tokenized samples, `tokenizer(texts)` or a `datasets.Dataset`. Columns that the model's forward
            does not take are left out. `labels` or `label` are the targets, which are only scored: calibration needs
            none, and a causal language model is scored on its own words.
        validation: The same, of what a search is rewarded on.
        test: The same, for the final report.
        training: The same, of what `amc finetune` trains on; nothing else needs them.
        metric: Left out: accuracy of samples or of tokens, perplexity of a causal language model, Spearman's rank
            correlation of a regression, as the model's class says.
        loss: What training minimizes; left out: cross-entropy of samples or of tokens, squared error of a regression.
        output: What counts of what the model returns.
        length: Words of the example input, at which costs are counted; left out: the median of the first 1,000
            calibration samples.
        name: Shown in tables; left out: the model's class.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If samples have no input of the model, or there is no metric for its class.
    """
    scored = _scored(model)
    chosen = _metric(model, scored) if metric is None else metric
    takes = list(inspect.signature(model.forward).parameters)
    pad = getattr(model.config, "pad_token_id", None)
    reader = _Reader(
        takes=frozenset(takes),
        padding={"input_ids": 0 if pad is None else int(pad), **dict.fromkeys(LABELS, IGNORED)},
        scored=scored,
    )
    parts = {"calibration": calibration, "validation": validation, "test": test}
    parts |= {} if training is None else {"training": training}
    splits = {role: _Split(_items(role, samples), reader) for role, samples in parts.items()}
    return Task(
        name=type(model).__name__ if name is None else name,
        network=model,
        example_input=_example(splits["calibration"], length),
        metric=chosen,
        loss=LOSSES.get(scored) if loss is None else loss,
        output=output,
        **splits,  # type: ignore[arg-type]
    )


def _scored(model: nn.Module) -> str:
    """What a model scores: "sample" (its class), "value", "token", "causal", or "" where its class does not say."""
    try:
        from transformers.models.auto import modeling_auto
    except ImportError as error:
        raise ImportError(
            "from_huggingface needs the package transformers: in the checkout, "
            "pip install -c constraints.txt -e '.[huggingface]'"
        ) from error
    names = {kind.__name__ for kind in type(model).__mro__}
    for registry, scored in CLASSES.items():
        known = getattr(modeling_auto, registry, {}).values()
        if names & {one for entry in known for one in ([entry] if isinstance(entry, str) else entry)}:
            regression = scored == "sample" and getattr(model.config, "num_labels", 0) == 1
            return "value" if regression else scored
    return ""


def _metric(model: nn.Module, scored: str) -> Metric:
    metrics = {"sample": accuracy, "value": spearman, "token": token_accuracy, "causal": perplexity}
    found = metrics.get(scored)
    if found is None:
        raise ValueError(
            f"from_huggingface knows metrics of language models and classifiers, but {type(model).__name__} is none: "
            "pass metric= (and output=, such as 'last_hidden_state')"
        )
    return found


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that are asked: outputs [B, T, K], targets [B, T]."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def value_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error: outputs [B, 1], targets [B]."""
    return F.mse_loss(outputs.flatten(), targets.to(outputs.dtype).flatten())


LOSSES: dict[str, Loss] = {"value": value_loss, "token": token_loss, "causal": token_loss}
"""What a model is trained by, where cross-entropy of samples is not meant anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Makes batches of items.

    Attributes:
        takes: Names of what forward takes.
        padding: What a column is padded with, 0 where it is not named.
        scored: As `_scored` says: the targets of "causal" are the words themselves, each from those before it.
    """

    takes: frozenset[str]
    padding: Mapping[str, int]
    scored: str

    def batch(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        """Inputs by name and targets [B] or [B, T] of some items."""
        names = [name for name in items[0] if name in self.takes and name not in LABELS]
        if not names:
            raise ValueError(
                f"samples must have an input of the model, but have {', '.join(items[0]) or 'nothing'}: "
                "give what its tokenizer or processor returns"
            )
        inputs = {name: self._column(name, items) for name in names}
        words = inputs.get("input_ids")
        if words is not None and MASK not in inputs and MASK in self.takes:
            lengths = torch.tensor([len(item["input_ids"]) for item in items])
            inputs[MASK] = (torch.arange(words.shape[1]) < lengths[:, None]).long()
        return inputs, self._targets(items, inputs)

    def _targets(self, items: Sequence[Mapping[str, Any]], inputs: Mapping[str, Tensor]) -> Tensor:
        words, mask = inputs.get("input_ids"), inputs.get(MASK)
        if self.scored == "causal" and words is not None:
            seen = words if mask is None else words.masked_fill(mask == 0, IGNORED)
            return torch.cat([seen[:, 1:], torch.full_like(seen[:, :1], IGNORED)], dim=1).long()
        if (label := next((name for name in LABELS if name in items[0]), None)) is not None:
            return self._column(label, items)
        if self.scored == "token" and words is not None:
            return torch.full_like(words, IGNORED)
        return torch.full((len(items),), IGNORED) if self.scored == "sample" else torch.zeros(len(items))

    def _column(self, name: str, items: Sequence[Mapping[str, Any]]) -> Tensor:
        """The values of all items, padded at the end of their first axis where it differs."""
        rows = [torch.as_tensor(np.asarray(item[name])) for item in items]
        if len({row.shape for row in rows}) > 1:
            rows = list(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding.get(name, 0)))
        return torch.stack(rows)


@dataclass(frozen=True, slots=True)
class _Split:
    """Samples of a split, read and padded when a batch asks for them."""

    items: Any
    reader: _Reader

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.reader.batch([self.items[int(index)] for index in indices])


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of samples as items."""

    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


def _items(role: str, samples: Samples) -> Any:
    if isinstance(samples, Mapping) and samples:
        columns = dict(samples)
        if len({len(column) for column in columns.values()}) > 1:
            found = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
            raise ValueError(f"the columns of {role} must be equally long, but are {found}: give one entry per sample")
        return _Columns(columns)
    if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")) or not len(samples):
        raise ValueError(
            f"{role} must be columns by name or items that are mappings, but got {type(samples).__name__}: "
            "give what the tokenizer returns, or a datasets.Dataset"
        )
    return samples


def _example(split: _Split, length: int | None) -> dict[str, Tensor]:
    """One sample, of the length asked for where samples are texts."""
    first = split.reader.batch([split.items[0]])[0]
    if "input_ids" not in first:
        return dict(first)
    lengths = np.asarray([len(split.items[place]["input_ids"]) for place in range(min(len(split), 1000))])
    wanted = int(np.median(lengths)) if length is None else length
    long = np.flatnonzero(lengths >= wanted)
    if not len(long):
        raise ValueError(
            f"length must be that of a calibration sample, but none of the first {len(lengths)} has {wanted} words "
            f"(the longest has {lengths.max()}): choose a smaller length"
        )
    words = first["input_ids"].shape[1]
    sample = split.reader.batch([split.items[int(long[0])]])[0]
    return {
        name: one[:, :wanted] if first[name].ndim > 1 and first[name].shape[1] == words else one
        for name, one in sample.items()
    }
