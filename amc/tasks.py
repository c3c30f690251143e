"""What is to be pruned and by what it is judged: the `Task`, the tasks that ship with the project, loading of
weights, and the checks at the door. Nothing after the door looks at a task's correctness again.
"""

import importlib
import inspect
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import safetensors.torch
import torch
from torch import Tensor, nn

from amc.data import ArraySplit, Split, SplitLike, as_split, chunks, known_targets, load_cifar10, load_digits
from amc.models import digits, resnet_cifar

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
        network: maps inputs `[B, ...]` float32 to one tensor `[B, ...]`; put into eval mode.
        example_input: `[1, ...]` float32, for tracing and for counting.
        calibration: samples from the training set, for statistics and repair.
        validation: samples that a search is rewarded on.
        test: samples for the final report only.
        metric: one score in [0, 1] per sample.
    """

    name: str
    network: nn.Module
    example_input: Tensor
    calibration: Split
    validation: Split
    test: Split
    metric: Metric = top1

    def __init__(
        self,
        *,
        name: str,
        network: nn.Module,
        example_input: Tensor,
        calibration: SplitLike,
        validation: SplitLike,
        test: SplitLike,
        metric: Metric = top1,
    ) -> None:
        """Takes anything for the splits that `as_split` takes.

        Raises:
            ValueError: if the network is no module, the example is not one input, or a split is no data.
        """
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
        fields: dict[str, Any] = {role: as_split(data) for role, data in splits.items()}
        fields |= {"name": name, "network": network.eval(), "example_input": example_input, "metric": metric}
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
    function = _find_function(name)
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
        raise ValueError(f"task {name!r} must return a Task, but raised {_describe(error)}: correct it") from error
    if not isinstance(task, Task):
        raise ValueError(
            f"task {name!r} must return a Task, but returned {type(task).__name__}: "
            "return amc.tasks.Task(name=..., network=..., ...)"
        )
    if checkpoint is not None and not takes["checkpoint"]:
        load_checkpoint(task.network, checkpoint)
    return task


def _find_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's code, and importing it runs it
        hint = f"write {module_name[:-3]}:{function_name}" if module_name.endswith(".py") else "correct it"
        raise ValueError(
            f"task {name!r} must name a module that can be imported from {here}, but importing "
            f"{module_name!r} raised {_describe(error)}: {hint}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"task {name!r} must name a function, but module {module_name!r} has no function "
            f"{function_name!r}: correct the name after the colon"
        )
    return function  # type: ignore[no-any-return]


def _describe(error: Exception) -> str:
    # The user's place: neither this file nor the machinery of importing.
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def check_task(task: Task) -> None:
    """The door: refuses a task that a search could not be trusted on, before any work is done.

    Runs the network on the example input and on four validation samples, and reads sixteen samples of each
    split; targets in memory, and inputs in memory that are not integers, are all checked.

    Raises:
        ValueError: naming the first law that does not hold, the value found and the cure.
    """
    _check_finite(f"the network of task {task.name!r}", task.network.state_dict())
    outputs = _run(task, task.example_input, "its example input")
    classes = outputs.shape[-1]
    first = {}
    for role, split in {"calibration": task.calibration, "validation": task.validation, "test": task.test}.items():
        if len(split) < _FEWEST:
            raise ValueError(
                f"a split must hold at least {_FEWEST} samples, but {role} holds {len(split)}: "
                "give more data, or divide it differently"
            )
        first[role] = _read(role, split, range(_FEWEST))
        _check_inputs(role, split, first[role][0], task.example_input)
        if task.metric is top1:
            _check_targets(role, split, first[role][1], classes)
    inputs, targets = first["validation"]
    outputs = _run(task, inputs[:4], "four validation samples")
    if len(outputs) != 4:
        raise ValueError(
            f"a network must return one output per sample, but 4 samples gave outputs {list(outputs.shape)}: "
            "keep the batch as the first axis"
        )
    _check_scores(task, outputs, targets[:4])


_FEWEST = 16
_READ_WHOLE = 2**30  # bytes; larger inputs, such as memory maps of ImageNet, are not read twice


def _run(task: Task, inputs: Tensor, what: str) -> Tensor:
    try:
        with torch.no_grad():
            outputs = task.network(inputs)
    except Exception as error:  # the network is the user's code
        raise ValueError(
            f"the network of task {task.name!r} must run on {what} {list(inputs.shape)}, but raised "
            f"{_describe(error)}: return network and inputs that fit, both on the CPU"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or not outputs.isfinite().all():
        got = "NaN or infinity" if isinstance(outputs, Tensor) and outputs.ndim else type(outputs).__name__
        raise ValueError(
            f"the network of task {task.name!r} must return one tensor [B, ...] of finite values, but on {what} "
            f"it returned {got}: check its weights and inputs, or wrap it to return one tensor"
        )
    return outputs


def _read(role: str, split: Split, indices: range) -> tuple[Tensor, Tensor]:
    try:
        inputs, targets = split.batch(indices)
    except Exception as error:  # datasets and transforms are the user's code
        raise ValueError(
            f"{role} must give samples {indices.start} to {indices.stop - 1}, but raised {_describe(error)}: "
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
            f"{list(first.shape[1:])}: give the data a transform, or correct the example input"
        )
    whole = isinstance(split, ArraySplit) and _is_float(split) and split.inputs.nbytes <= _READ_WHOLE
    parts = (_read(role, split, part)[0] for part in chunks(len(split), 1024)) if whole else [first]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"inputs must be finite, but {role} holds NaN or infinity: clean the data or its transform")


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


def _check_scores(task: Task, outputs: Tensor, targets: Tensor) -> None:
    try:
        scores = task.metric(outputs, targets)
    except Exception as error:  # the metric may be the user's code
        raise ValueError(
            f"the metric of task {task.name!r} must score outputs {list(outputs.shape)} against targets "
            f"{list(targets.shape)}, but raised {_describe(error)}: correct the metric or the targets"
        ) from error
    fits = isinstance(scores, Tensor) and scores.shape == outputs.shape[:1]
    if not fits or not ((scores >= 0) & (scores <= 1)).all():
        got = f"{scores.tolist()}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"a metric must return one score in [0, 1] per sample, but for 4 samples it returned {got}: "
            "score each sample by itself and scale to [0, 1]"
        )


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Loads weights into a network: all of them, or none.

    Args:
        network: changed in place.
        path: a safetensors file, or a torch state dict (bare, or under "state_dict", "model_state_dict" or
            "model"; a common "module." prefix is dropped). Nothing in the file is executed.

    Raises:
        ValueError: if the file is missing or neither of these, if names, shapes or kinds of numbers do not
            fit the network, or if a weight is not finite.
    """
    state = _unwrap(path, _read_weights(path))
    misfits = _misfits(network.state_dict(), state)
    if any(misfits.values()):
        found = "; ".join(f"{what}: {_some(keys)}" for what, keys in misfits.items() if keys)
        raise ValueError(
            f"a checkpoint must hold the network's weights, but {str(path)!r} does not fit ({found}): "
            "give the checkpoint of this very architecture"
        )
    _check_finite(f"checkpoint {str(path)!r}", state)
    network.load_state_dict(state, strict=False)


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    both = [key for key in own if key in state]
    tied = {own[key].data_ptr() for key in both}
    return {
        # Old files lack the counters of batches; safetensors stores tied weights once.
        "missing": [
            key
            for key in own
            if key not in state and not key.endswith("num_batches_tracked") and own[key].data_ptr() not in tied
        ],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
        "of another kind of number": [
            f"{key} {state[key].dtype} instead of {own[key].dtype}"
            for key in both
            if state[key].is_floating_point() != own[key].is_floating_point()
        ],
    }


def _read_weights(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of header length, then JSON
    except OSError as error:
        raise ValueError(
            f"a checkpoint must be a file that can be read, but {str(path)!r} is not "
            f"({error.strerror or type(error).__name__}): correct the path"
        ) from error
    try:
        if is_safetensors:
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to load it unsafely
        _refuse_checkpoint(path, "it is damaged, or holds objects besides weights", error)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        first_line = str(error).strip().partition("\n")[0]
        _refuse_checkpoint(path, f"{type(error).__name__}: {first_line}", error)


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        _refuse_checkpoint(path, f"it holds a {type(content).__name__}")
    strange = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        _refuse_checkpoint(path, f"no tensors: {_some(strange)}")
    prefixed = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in content.items()}


def _refuse_checkpoint(path: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(
        f"a checkpoint must be a safetensors file or a torch state dict, but {str(path)!r} is neither "
        f"({reason}): re-save it with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
    ) from cause


def _check_finite(owner: str, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"weights must be finite, but {owner} holds NaN or infinity in {_some(broken)}: "
            "take a checkpoint from before the training diverged"
        )


def _some(names: list[Any], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(str(name) for name in names[:shown]) + more
