"""What is to be pruned and by what it is judged: the `Task`, the tasks that ship with the project, loading of
a task by name. It is checked in `checks`; weights are read in `checkpoint`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.cifar10 import load_cifar10
from amc.tasks.models import digits, resnet_cifar
from amc.tasks.plugins import describe, find_function
from amc.tasks.splits import ArraySplit, Split, SplitLike, as_split, load_digits, typed

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs `[B, ...]` and targets `[B, ...]` to a scalar that training minimizes."""
Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch of inputs `[B, ...]` for training; its randomness comes from the generator, on the CPU."""
Metric: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs `[B, ...]` and targets `[B, ...]` to a score per sample: `[B]` in [0, 1], higher is better."""


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores 1 where the largest output is the target's class, else 0 (also where an output is not finite).

    Args:
        outputs: `[B, K]` class scores.
        targets: `[B]` integer classes in [0, K).

    Returns:
        `[B]` float32.

    Raises:
        ValueError: if the shapes do not fit or a class lies outside the outputs.
    """
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or targets.is_floating_point():
        raise ValueError(
            "top1 needs outputs [B, K] and integer targets [B], but got outputs "
            f"{list(outputs.shape)} and {targets.dtype} targets {list(targets.shape)}: "
            "give the task a metric of its own"
        )
    check_classes(targets, outputs.shape[1])
    finite = outputs.isfinite().all(dim=1)
    return ((outputs.argmax(dim=1) == targets) & finite).to(torch.float32)


def check_classes(targets: Tensor, classes: int) -> None:
    """Refuses integer targets `[N]` outside [0, classes), naming the first of them."""
    outside = targets[(targets < 0) | (targets >= classes)]
    if len(outside):
        raise ValueError(
            f"0 <= class < {classes} must hold for a network with {classes} outputs, but got "
            f"class={int(outside[0])}: correct the targets, or use a network with more outputs"
        )


@dataclass(frozen=True, eq=False, init=False)
class Task:
    """A trained network, the data to prune it by and the metric to judge it by.

    Attributes:
        name: shown in tables and results.
        network: maps inputs `[B, ...]` to one tensor `[B, ...]`; put into eval mode.
        example_input: `[1, ...]`, for tracing and for counting. Its dtype is what the inputs of all splits are
            converted to, where that loses no number's meaning (`amc.tasks.splits.converted`): uint8 pixels and float64
            arrays to a float32 example's, int32 indices to an int64 example's; floats never to integers.
        calibration: samples from the training set, for statistics and repair.
        validation: samples that a search is rewarded on.
        test: samples for the final report only.
        metric: one score in [0, 1] per sample.
        training: samples that fine-tuning trains on; only `amc finetune` needs them.
        loss: what training minimizes; None: cross-entropy or squared error, as the targets are.
        augment: changes inputs while training, None: nothing does.
    """

    name: str
    network: nn.Module
    example_input: Tensor
    calibration: Split
    validation: Split
    test: Split
    metric: Metric = top1
    training: Split | None = None
    loss: Loss | None = None
    augment: Augment | None = None

    def __init__(
        self,
        *,
        network: nn.Module,
        example_input: Tensor,
        calibration: SplitLike,
        validation: SplitLike,
        test: SplitLike,
        metric: Metric = top1,
        training: SplitLike | None = None,
        loss: Loss | None = None,
        augment: Augment | None = None,
        name: str | None = None,
    ) -> None:
        """Takes anything for the splits that `as_split` takes; a task without a name is called after its network.

        Raises:
            ValueError: if the network is no module, the example is not one input, or a split is no data.
        """
        name = type(network).__name__ if name is None else name
        if not isinstance(name, str) or not name:
            raise ValueError(f"a task's name must be a text, but got {name!r}: it is shown in tables and results")
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"a task's network must be an nn.Module, but got {type(network).__name__}: "
                "return the network itself, with its weights loaded"
            )
        if not isinstance(example_input, Tensor) or example_input.ndim < 2 or len(example_input) != 1:
            got = list(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
            raise ValueError(
                f"a task's example_input must be a tensor [1, ...], but got {got}: "
                "write one input with a batch axis, such as torch.zeros(1, 3, 224, 224)"
            )
        splits = {"calibration": calibration, "validation": validation, "test": test}
        fields: dict[str, Any] = {role: typed(as_split(data), example_input.dtype) for role, data in splits.items()}
        fields["training"] = None if training is None else typed(as_split(training), example_input.dtype)
        fields |= {"name": name, "network": network.eval(), "example_input": example_input, "metric": metric}
        fields |= {"loss": loss, "augment": augment}
        for field, value in fields.items():
            object.__setattr__(self, field, value)


def load_task(name: str, *, data: Path | None = None, checkpoint: Path | None = None) -> Task:
    """Makes a task from its name.

    Args:
        name: `digits`, `cifar10-resnet20`, `cifar10-resnet56`, or `package.module:function`, a function
            that returns a `Task`, found from the current directory.
        data: a folder; passed to the function if it has a parameter `data`.
        checkpoint: a file of weights; passed to the function if it has a parameter `checkpoint`, otherwise
            loaded into the task's network.

    Raises:
        ValueError: if there is no such task, or its data or weights are missing or damaged.
    """
    if name in _TASKS:
        return _TASKS[name](data, checkpoint)
    if name.startswith("("):
        raise ValueError(
            f"the task {name} was passed in as an object, which no file can hold: run the script that made it again "
            "(`amc.search(task, out=...)` goes on where it stopped), or name another task"
        )
    if ":" not in name:
        raise ValueError(
            f"a task must be one of {', '.join(_TASKS)} or package.module:function, but got {name!r}: "
            "choose one of these names, or write the function that makes your task"
        )
    return _own_task(name, data, checkpoint)


def _digits_task(data: Path | None, checkpoint: Path | None) -> Task:
    if data is not None:
        raise ValueError(f"task 'digits' brings its own data, but got --data {data}: leave --data out")
    calibration, validation, test = (ArraySplit(*part, transform=digits.upsample) for part in load_digits())
    network = digits.DigitsNet()
    load_checkpoint(network, checkpoint or digits.WEIGHTS)
    return Task(
        name="digits",
        network=network,
        example_input=torch.zeros(1, 1, 16, 16),
        calibration=calibration,
        validation=validation,
        test=test,
        training=calibration,
        augment=digits.shifted,
    )


def _cifar10_task(name: str, network: nn.Module, data: Path | None, checkpoint: Path | None) -> Task:
    for option, value in (("--data DIR", data), ("--checkpoint FILE", checkpoint)):
        if value is None:
            raise ValueError(
                f"task {name!r} needs --data and --checkpoint, but {option.split()[0]} is missing: add {option}"
            )
    assert data is not None
    assert checkpoint is not None
    load_checkpoint(network, checkpoint)
    (train_x, train_y), (test_x, test_y) = load_cifar10(data)
    # Public weights have seen all training images, so the official test images serve as validation and test.
    half = len(test_x) // 2
    normalize = resnet_cifar.NormalizePixels()
    return Task(
        name=name,
        network=network,
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=ArraySplit(train_x, train_y, normalize),
        validation=ArraySplit(test_x[:half], test_y[:half], normalize),
        test=ArraySplit(test_x[half:], test_y[half:], normalize),
        training=ArraySplit(train_x, train_y, normalize),
        augment=resnet_cifar.cropped_and_flipped,
    )


def _resnet20_task(data: Path | None, checkpoint: Path | None) -> Task:
    return _cifar10_task("cifar10-resnet20", resnet_cifar.resnet20(), data, checkpoint)


def _resnet56_task(data: Path | None, checkpoint: Path | None) -> Task:
    return _cifar10_task("cifar10-resnet56", resnet_cifar.resnet56(), data, checkpoint)


_TASKS: dict[str, Callable[[Path | None, Path | None], Task]] = {
    "digits": _digits_task,
    "cifar10-resnet20": _resnet20_task,
    "cifar10-resnet56": _resnet56_task,
}


def _own_task(name: str, data: Path | None, checkpoint: Path | None) -> Task:
    function = find_function("task", name)
    parameters = inspect.signature(function).parameters
    given = {"data": data, "checkpoint": checkpoint}
    takes = {option: option in parameters for option in given}
    for option, value in given.items():
        if takes[option] and value is None and parameters[option].default is inspect.Parameter.empty:
            raise ValueError(
                f"task {name!r} needs --{option}, but none was given: add it, or give the parameter a default"
            )
    if data is not None and not takes["data"]:
        raise ValueError(
            f"--data needs a task that takes it, but {name!r} has no parameter 'data': "
            "leave --data out, or add the parameter to the function"
        )
    passed = {option: value for option, value in given.items() if takes[option] and value is not None}
    try:
        task = function(**passed)
    except Exception as error:  # whatever the user's code raises is reported in one line, with its place
        raise ValueError(f"task {name!r} must return a Task, but raised {describe(error)}: correct it") from error
    if not isinstance(task, Task):
        raise ValueError(
            f"task {name!r} must return a Task, but returned {type(task).__name__}: "
            "return amc.tasks.task.Task(name=..., network=..., ...)"
        )
    if checkpoint is not None and not takes["checkpoint"]:
        load_checkpoint(task.network, checkpoint)
    return task
