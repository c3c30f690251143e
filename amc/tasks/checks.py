"""Checks of a task: what a search could not be trusted on is refused before any work is done."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc.tasks.batches import Batch, fitted, several
from amc.tasks.checkpoint import check_finite
from amc.tasks.metrics import IGNORED, accuracy, check_classes
from amc.tasks.plugins import describe
from amc.tasks.splits import ArraySplit, NotFinite, Split, check_finite_inputs, chunks, known_targets
from amc.tasks.task import Task
from envs.network.inputs import Inputs, batch_size, call, described, rows, tensors

_MIN_SAMPLES = 16
_REPEATED = 1e-2
"""Largest difference of two passes over the same input, relative to the outputs: sums may be added in another order."""
_READ_WHOLE = 2**30  # bytes; larger inputs, such as memory maps of ImageNet, are not read twice


def check_task(task: Task) -> None:
    """Refuses a task that a search could not be trusted on, before any work is done.

    Runs the network on the example input and on four validation samples, and reads sixteen samples of each
    split; targets in memory, and inputs in memory that are not integers, are all checked.

    Raises:
        ValueError: naming the first law that does not hold, the value found and the cure.
    """
    _check_layers(task.name, task.network)
    check_finite(f"the network of task {task.name!r}", task.network.state_dict())
    outputs = _run(task, task.example_input, "its example input", "correct the example input or the network")
    _check_repeats(task, outputs)
    classes = outputs.shape[-1]
    first = {}
    for role, split in {"calibration": task.calibration, "validation": task.validation, "test": task.test}.items():
        if len(split) < _MIN_SAMPLES:
            raise ValueError(
                f"a split must hold at least {_MIN_SAMPLES} samples, but {role} holds {len(split)}: "
                "give more data, or divide it differently"
            )
        first[role] = _read(role, split, range(_MIN_SAMPLES))
        _check_inputs(role, split, first[role][0], task)
        if task.metric is accuracy and not (role == "calibration" and _unlabelled(first[role][1])):
            _check_targets(role, split, first[role][1], classes)
    inputs, targets = first["validation"]
    cure = "it runs on the example input, so correct the data or its transform, or let the network take any batch size"
    outputs = _run(task, rows(inputs, 0, 4), "four validation samples", cure)
    if len(outputs) != 4:
        raise ValueError(
            f"a network must return one output per sample, but 4 samples gave outputs {list(outputs.shape)}: "
            "keep the batch as the first axis"
        )
    statistics = task.metric.statistics(outputs, targets[:4])
    if task.metric.is_mean:
        task.metric.value(tuple(rows.numpy() for rows in statistics))


def check_labelled(task: Task, needs: str) -> None:
    """Refuses calibration samples without labels where something needs them.

    Raises:
        ValueError: If the first samples have none; it says what needs them.
    """
    if _unlabelled(_read("calibration", task.calibration, range(_MIN_SAMPLES))[1]):
        raise ValueError(f"{needs} needs labels of calibration samples, but they have none: give them, or leave it out")


def _unlabelled(targets: Tensor) -> bool:
    """Whether nothing is asked of any of these samples."""
    return not targets.is_floating_point() and bool((targets == IGNORED).all())


def _check_repeats(task: Task, outputs: Tensor) -> None:
    """Refuses a network that draws at random, of which no two scores are the same."""
    again = _run(task, task.example_input, "its example input", "correct the example input or the network")
    scale = float(outputs.double().abs().max())
    if again.shape == outputs.shape and float((again.double() - outputs.double()).abs().max()) > _REPEATED * scale:
        raise ValueError(
            f"the network of task {task.name!r} must give the same outputs for the same inputs, but two passes over "
            "its example input differ: let dropout and other random operators follow self.training "
            "(F.dropout(x, p, self.training))"
        )


def check_training(task: Task) -> None:
    """Refuses training samples that are NaN or infinite, or of classes that the network has no score for.

    Their shapes may differ from the example input's, where `augment` makes inputs of them.

    Raises:
        ValueError: naming the sample or the class.
    """
    split = task.training
    if split is None:
        return
    whole = isinstance(split, ArraySplit) and _is_float(split) and _bytes(split) <= _READ_WHOLE
    few = range(min(_MIN_SAMPLES, len(split)))
    for part in chunks(len(split), 1024) if whole else [few]:
        _read("training", split, part)
    if task.metric is accuracy:
        outputs = _run(task, task.example_input, "its example input", "correct the example input or the network")
        _check_targets("training", split, _read("training", split, few)[1], outputs.shape[-1])


def wrapped(network: nn.Module) -> str:
    """The attribute that holds the network proper of one that torch.compile or data parallelism wraps; '' of others."""
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    return "_orig_mod" if "_orig_mod" in network._modules else ""


def _check_layers(task: str, network: nn.Module) -> None:
    """Refuses networks whose layers cannot be sliced, or could not be loaded into a fresh one afterwards."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError(
            f"the network of task {task!r} must consist of plain modules, but is scripted: pass the module that "
            "torch.jit.script or torch.jit.trace made it from, with the same state dict"
        )
    if isinstance(network, nn.DataParallel) and network.device_ids:  # it has none where there is no CUDA
        raise ValueError(
            f"the network of task {task!r} must run on the CPU, but is a {type(network).__name__} over devices "
            f"{list(network.device_ids)}: pass `network.module`, which has the same weights"
        )
    for name, module in network.named_modules():
        if isinstance(vars(module).get("weight"), Tensor):
            raise ValueError(
                f"a layer's weight must be a parameter, but that of {name!r} in task {task!r} is computed by a hook "
                "(old spectral_norm, weight_norm or prune of torch.nn.utils): make it permanent with "
                "remove_spectral_norm, remove_weight_norm or prune.remove, or use torch.nn.utils.parametrizations"
            )


def _run(task: Task, inputs: Inputs, what: str, cure: str) -> Tensor:
    try:
        with torch.no_grad():
            outputs = call(task.network, inputs)
    except Exception as error:  # the network is the user's code
        raise ValueError(
            f"the network of task {task.name!r} must run on {what} {described(inputs)}, on the CPU, but raised "
            f"{describe(error)}: {cure}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or not outputs.isfinite().all():
        got = "NaN or infinity" if isinstance(outputs, Tensor) and outputs.ndim else type(outputs).__name__
        raise ValueError(
            f"the network of task {task.name!r} must return one tensor [B, ...] of finite values, but on {what} "
            f"it returned {got}: check its weights and inputs, or name the tensor that counts by output="
        )
    return outputs


def _read(role: str, split: Split, indices: range) -> Batch:
    try:
        inputs, targets = split.batch(indices)
    except NotFinite as error:
        raise NotFinite(error.index, role) from error
    except Exception as error:  # datasets and transforms are the user's code
        raise ValueError(
            f"{role} must give samples {indices.start} to {indices.stop - 1}, but raised {describe(error)}: "
            "correct the data or its transform"
        ) from error
    if not (isinstance(inputs, Tensor | dict | tuple) and isinstance(targets, Tensor)):
        raise ValueError(
            f"a split's batch must be inputs and a tensor of targets, but {role} gave {type(inputs).__name__} and "
            f"{type(targets).__name__}: return (inputs, targets)"
        )
    return inputs, targets


def _check_inputs(role: str, split: Split, first: Inputs, task: Task) -> None:
    """Refuses inputs of another form than the example's; sizes may differ where they do from batch to batch."""
    example = task.example_input
    fitted(first, example)
    if any(one.shape[1:] != like.shape[1:] for one, like in zip(tensors(first), tensors(example), strict=True)):
        _check_lengths(role, split, first, task)
    for one, like in zip(tensors(first), tensors(example), strict=True):
        if one.dtype != like.dtype:
            raise ValueError(
                f"inputs must be {like.dtype} as the example input is, or convertible to that without loss, but {role} "
                f"has {one.dtype}{_origin(split)}: {_cure(split)}, or correct the example input"
            )
    whole = isinstance(split, ArraySplit) and _is_float(split) and _bytes(split) <= _READ_WHOLE
    for part in chunks(len(split), 1024) if whole else [range(batch_size(first))]:
        inputs = _read(role, split, part)[0] if whole else first
        try:
            check_finite_inputs(inputs, part)
        except NotFinite as error:
            raise NotFinite(error.index, role) from error


def _check_lengths(role: str, split: Split, first: Inputs, task: Task) -> None:
    """Refuses sizes that are not the example's and yet the same in every batch; runs the network on the extremes."""
    example = task.example_input
    single = [_read(role, split, range(place, place + 1))[0] for place in range(_MIN_SAMPLES)]
    for place, like in enumerate(tensors(example)):
        found = {tuple(tensors(one)[place].shape[1:]) for one in (first, *single)}
        free = [len({sizes[axis] for sizes in found}) > 1 for axis in range(len(next(iter(found))))]
        same = len(free) == like.ndim - 1 and len({len(sizes) for sizes in found}) == 1
        if not same or any(
            not varies and sizes[axis] != like.shape[axis + 1] for sizes in found for axis, varies in enumerate(free)
        ):
            raise ValueError(
                f"inputs must have the example input's shape {list(like.shape[1:])}, but {role} has "
                f"{list(tensors(first)[place].shape[1:])}{_origin(split)}: {_cure(split)}, or correct the example input"
            )
    by_size = sorted(single, key=lambda one: sum(tensor.numel() for tensor in tensors(one)))
    cure = "take lengths from the inputs in forward, not from the example or a constant"
    for what, one in (("the shortest", by_size[0]), ("the longest", by_size[-1])):
        _run(task, one, f"{what} of sixteen {role} samples", cure)


def _origin(split: Split) -> str:
    """What a transform was given, where there is one."""
    if not isinstance(split, ArraySplit) or split.transform is None:
        return ""
    raw = several(split.inputs)[0][:1]
    return f" after its transform of {list(raw.shape[1:])} {raw.dtype}"


def _cure(split: Split) -> str:
    transformed = isinstance(split, ArraySplit) and split.transform is not None
    return "correct the transform" if transformed else "give the data a transform"


def _is_float(split: ArraySplit) -> bool:
    return any("float" in str(array.dtype) for array in several(split.inputs))


def _bytes(split: ArraySplit) -> int:
    return sum(array.nbytes for array in several(split.inputs))


def _check_targets(role: str, split: Split, first: Tensor, classes: int) -> None:
    if first.ndim != 1 or first.is_floating_point():
        unasked = f" ({IGNORED} where there are none)" if role == "calibration" else ""
        raise ValueError(
            f"top1 needs one integer class per sample, but {role} has {first.dtype} targets "
            f"{list(first.shape)}: give integer classes{unasked}, or the task a metric of its own"
        )
    targets = known_targets(split)
    try:
        check_classes(first if targets is None else targets, classes)
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from error
