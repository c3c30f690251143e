"""What is to be pruned and by what it is judged: the `Task`, the tasks that ship with the project, loading of
a task by name. It is checked in `checks`; weights are read in `checkpoint`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from amc.tasks.batches import Collate
from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.cifar10 import cifar10_splits
from amc.tasks.cluttered import cluttered_anew, cluttered_digits, training_digits
from amc.tasks.examples import as_counts, checked_example
from amc.tasks.metric import Metric
from amc.tasks.metrics import accuracy, as_metric
from amc.tasks.models import cluttered, digits, resnet_cifar
from amc.tasks.plugins import describe, find_function
from amc.tasks.splits import ArraySplit, Split, SplitLike, as_split, load_digits, typed
from envs.network.copies import in_mode
from envs.network.inputs import Inputs
from envs.network.outputs import Output, selecting
from envs.regression.counted import Counts

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs `[B, ...]` and targets `[B, ...]` to a scalar that training minimizes."""
Augment: TypeAlias = Callable[[Any, torch.Generator], Any]
"""Changes a batch of inputs for training; its randomness comes from the generator, on the CPU."""


@dataclass(frozen=True, eq=False, init=False)
class Task:
    """A trained network, the data to prune it by and the metric to judge it by.

    Attributes:
        name: shown in tables and results.
        network: maps inputs of B samples to one tensor `[B, ...]`, in eval mode. With `output`, it is a twin of the
            given network that shares its modules and returns what `output` selects.
        example_input: a batch of one sample, for tracing and for counting: a tensor `[1, ...]`, or a tuple or dict of
            tensors, by which forward is called in order or by keyword. Its dtypes are what the inputs of all splits are
            converted to, where that loses no number's meaning (`amc.tasks.batches.converted`): uint8 pixels and float64
            arrays to a float32 example's, int32 indices to an int64 example's; floats never to integers.
        calibration: samples from the training set, for statistics and repair.
        validation: samples that a search is rewarded on.
        test: samples for the final report only.
        metric: by which networks are judged. A function given for it scores each sample in [0, 1], higher being better.
        output: which tensor counts of what the network returns: an attribute or key, an index, or a function.
        counts: which tokens of a batch count, None: all. Others, such as padding, enter no statistic, fit or damage.
        training: samples that fine-tuning trains on; nothing else needs them.
        loss: what training minimizes; None: cross-entropy or squared error, as the targets are.
        augment: changes inputs while training, None: nothing does.
    """

    name: str
    network: nn.Module
    example_input: Inputs
    calibration: Split
    validation: Split
    test: Split
    metric: Metric = accuracy
    output: Output | None = None
    counts: Counts | None = None
    training: Split | None = None
    loss: Loss | None = None
    augment: Augment | None = None

    def __init__(
        self,
        *,
        network: nn.Module,
        example_input: Inputs,
        calibration: SplitLike,
        validation: SplitLike,
        test: SplitLike,
        metric: Metric | Callable[[Tensor, Tensor], Tensor] = accuracy,
        training: SplitLike | None = None,
        loss: Loss | None = None,
        augment: Augment | None = None,
        name: str | None = None,
        output: Output | None = None,
        collate: Collate | None = None,
        counts: str | Counts | None = None,
    ) -> None:
        """Takes anything for the splits that `as_split` takes; a task without a name is called after its network.

        `collate` makes a batch (inputs, targets) of a list of a dataset's items, where their shapes differ. `counts`
        names the input that holds a mask of the tokens (`[B, T]` of 0 and 1, or bool), or makes such a mask of the
        inputs; left out, it is the input `attention_mask` or `mask`, if there is one whose values are 0 and 1 and that
        has the shape of another input's places.

        Raises:
            ValueError: if the network is no module, the example is not one input of it, a split is no data, or the
                metric is none.
        """
        name = type(network).__name__ if name is None else name
        if not isinstance(name, str) or not name:
            raise ValueError(f"a task's name must be a text, but got {name!r}: it is shown in tables and results")
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"a task's network must be an nn.Module, but got {type(network).__name__}: "
                "return the network itself, with its weights loaded"
            )
        example = checked_example(network, example_input)
        splits = {"calibration": calibration, "validation": validation, "test": test}
        values: dict[str, Any] = {role: typed(as_split(data, collate), example) for role, data in splits.items()}
        values["training"] = None if training is None else typed(as_split(training, collate), example)
        values |= {"name": name, "network": selecting(in_mode(network), output), "example_input": example}
        values |= {"metric": as_metric(metric), "output": output, "loss": loss, "augment": augment}
        values["counts"] = as_counts(counts, example)
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def of_network(self, network: nn.Module) -> "Task":
        """The same task of another network, or itself if that is its own."""
        if network is self.network:
            return self
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return Task(**{**given, "network": network})


def load_task(name: str, *, data: Path | None = None, checkpoint: Path | None = None) -> Task:
    """Makes a task from its name.

    Args:
        name: `digits`, `cluttered-digits`, `cifar10-resnet20`, `cifar10-resnet56`, or `package.module:function`, a
            function that returns a `Task`, found from the current directory.
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
    _refuse_data("digits", data)
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


def _cluttered_digits_task(data: Path | None, checkpoint: Path | None) -> Task:
    _refuse_data("cluttered-digits", data)
    calibration, validation, test = cluttered_digits()
    network = cluttered.ClutteredDigitsNet()
    load_checkpoint(network, checkpoint or cluttered.WEIGHTS)
    return Task(
        name="cluttered-digits",
        network=network,
        example_input=torch.zeros(1, 1, 32, 32),
        calibration=calibration,
        validation=validation,
        test=test,
        training=training_digits(),
        augment=cluttered_anew,
    )


def _refuse_data(name: str, data: Path | None) -> None:
    if data is not None:
        raise ValueError(f"task {name!r} brings its own data, but got --data {data}: leave --data out")


def _cifar10_task(name: str, network: nn.Module, data: Path | None, checkpoint: Path | None) -> Task:
    for option, value in (("--data DIR", data), ("--checkpoint FILE", checkpoint)):
        if value is None:
            raise ValueError(
                f"task {name!r} needs --data and --checkpoint, but {option.split()[0]} is missing: add {option}"
            )
    assert data is not None
    assert checkpoint is not None
    load_checkpoint(network, checkpoint)
    training, validation, test = cifar10_splits(data, resnet_cifar.NormalizePixels())
    return Task(
        name=name,
        network=network,
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=training,
        validation=validation,
        test=test,
        training=training,
        augment=resnet_cifar.cropped_and_flipped,
    )


def _resnet20_task(data: Path | None, checkpoint: Path | None) -> Task:
    return _cifar10_task("cifar10-resnet20", resnet_cifar.resnet20(), data, checkpoint)


def _resnet56_task(data: Path | None, checkpoint: Path | None) -> Task:
    return _cifar10_task("cifar10-resnet56", resnet_cifar.resnet56(), data, checkpoint)


_TASKS: dict[str, Callable[[Path | None, Path | None], Task]] = {
    "digits": _digits_task,
    "cluttered-digits": _cluttered_digits_task,
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
