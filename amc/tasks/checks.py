"""Checks of a task: what a search could not be trusted on is refused before any work is done."""

from __future__ import annotations

import torch
from torch import Tensor

from amc.tasks.checkpoint import check_finite
from amc.tasks.metrics import accuracy, check_classes
from amc.tasks.plugins import describe
from amc.tasks.splits import ArraySplit, Split, chunks, known_targets
from amc.tasks.task import Task

_MIN_SAMPLES = 16
_READ_WHOLE = 2**30  # bytes; larger inputs, such as memory maps of ImageNet, are not read twice


def check_task(task: Task) -> None:
    """Refuses a task that a search could not be trusted on, before any work is done.

    Runs the network on the example input and on four validation samples, and reads sixteen samples of each
    split; targets in memory, and inputs in memory that are not integers, are all checked.

    Raises:
        ValueError: naming the first law that does not hold, the value found and the cure.
    """
    check_finite(f"the network of task {task.name!r}", task.network.state_dict())
    outputs = _run(task, task.example_input, "its example input", "correct the example input or the network")
    classes = outputs.shape[-1]
    first = {}
    for role, split in {"calibration": task.calibration, "validation": task.validation, "test": task.test}.items():
        if len(split) < _MIN_SAMPLES:
            raise ValueError(
                f"a split must hold at least {_MIN_SAMPLES} samples, but {role} holds {len(split)}: "
                "give more data, or divide it differently"
            )
        first[role] = _read(role, split, range(_MIN_SAMPLES))
        _check_inputs(role, split, first[role][0], task.example_input)
        if task.metric is accuracy:
            _check_targets(role, split, first[role][1], classes)
    inputs, targets = first["validation"]
    cure = "it runs on the example input, so correct the data or its transform, or let the network take any batch size"
    outputs = _run(task, inputs[:4], "four validation samples", cure)
    if len(outputs) != 4:
        raise ValueError(
            f"a network must return one output per sample, but 4 samples gave outputs {list(outputs.shape)}: "
            "keep the batch as the first axis"
        )
    statistics = task.metric.statistics(outputs, targets[:4])
    if task.metric.is_mean:
        task.metric.value(tuple(rows.numpy() for rows in statistics))


def _run(task: Task, inputs: Tensor, what: str, cure: str) -> Tensor:
    try:
        with torch.no_grad():
            outputs = task.network(inputs)
    except Exception as error:  # the network is the user's code
        raise ValueError(
            f"the network of task {task.name!r} must run on {what} {_described(inputs)}, on the CPU, but raised "
            f"{describe(error)}: {cure}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or not outputs.isfinite().all():
        got = "NaN or infinity" if isinstance(outputs, Tensor) and outputs.ndim else type(outputs).__name__
        raise ValueError(
            f"the network of task {task.name!r} must return one tensor [B, ...] of finite values, but on {what} "
            f"it returned {got}: check its weights and inputs, or wrap it to return one tensor"
        )
    return outputs


def _described(inputs: Tensor) -> str:
    """Shape, dtype and range."""
    values = inputs.double()
    extent = f" from {float(values.min()):g} to {float(values.max()):g}" if values.numel() else ""
    return f"{list(inputs.shape)} {inputs.dtype}{extent}"


def _read(role: str, split: Split, indices: range) -> tuple[Tensor, Tensor]:
    try:
        inputs, targets = split.batch(indices)
    except Exception as error:  # datasets and transforms are the user's code
        raise ValueError(
            f"{role} must give samples {indices.start} to {indices.stop - 1}, but raised {describe(error)}: "
            "correct the data or its transform"
        ) from error
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
        raise ValueError(
            f"a split's batch must be two tensors, but {role} gave {type(inputs).__name__} and "
            f"{type(targets).__name__}: return (inputs, targets)"
        )
    return inputs, targets


def _check_inputs(role: str, split: Split, first: Tensor, example: Tensor) -> None:
    if first.shape[1:] != example.shape[1:]:
        raise ValueError(
            f"inputs must have the example input's shape {list(example.shape[1:])}, but {role} has "
            f"{list(first.shape[1:])}{_origin(split)}: {_cure(split)}, or correct the example input"
        )
    if first.dtype != example.dtype:
        raise ValueError(
            f"inputs must be {example.dtype} as the example input is, or convertible to that without loss, but {role} "
            f"has {first.dtype}{_origin(split)}: {_cure(split)}, or correct the example input"
        )
    whole = isinstance(split, ArraySplit) and _is_float(split) and split.inputs.nbytes <= _READ_WHOLE
    parts = (_read(role, split, part)[0] for part in chunks(len(split), 1024)) if whole else [first]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"inputs must be finite, but {role} holds NaN or infinity: clean the data or its transform")


def _origin(split: Split) -> str:
    """What a transform was given, where there is one."""
    if not isinstance(split, ArraySplit) or split.transform is None:
        return ""
    raw = split.inputs[:1]
    return f" after its transform of {list(raw.shape[1:])} {raw.dtype}"


def _cure(split: Split) -> str:
    transformed = isinstance(split, ArraySplit) and split.transform is not None
    return "correct the transform" if transformed else "give the data a transform"


def _is_float(split: ArraySplit) -> bool:
    return "float" in str(split.inputs.dtype)


def _check_targets(role: str, split: Split, first: Tensor, classes: int) -> None:
    if first.ndim != 1 or first.is_floating_point():
        raise ValueError(
            f"top1 needs one integer class per sample, but {role} has {first.dtype} targets "
            f"{list(first.shape)}: give integer classes, or the task a metric of its own"
        )
    targets = known_targets(split)
    try:
        check_classes(first if targets is None else targets, classes)
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from error
