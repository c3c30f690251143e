"""What a batch is made of: rows of arrays, items of datasets, and the form and dtypes that an example input asks for.

Where the samples come from stands in `splits.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.tasks.plugins import describe
from envs.network.inputs import Inputs, form, tensors

Array: TypeAlias = npt.NDArray[Any] | Tensor
Arrays: TypeAlias = Array | tuple[Array, ...] | dict[str, Array]
"""The inputs of all samples: `[N, ...]`, or several of them, in order or by name."""
Batch: TypeAlias = tuple[Any, Tensor]
"""Inputs of some samples (`Inputs`, of a form that the reader knows from the example) and their targets `[B, ...]`."""
Collate: TypeAlias = Callable[[list[Any]], Any]
"""Makes a batch (inputs, targets) of a list of a dataset's items, as in `torch.utils.data.DataLoader`."""


def rows(arrays: Arrays, indices: Sequence[int]) -> Inputs:
    """The samples at some places, as tensors of their own."""
    found: Inputs = _each(lambda array: row(array, indices), arrays)
    return found


def row(array: Array, indices: Sequence[int]) -> Tensor:
    """Rows of one array."""
    # Index lists copy, so that read-only arrays (shared memory, memory maps) give tensors of their own.
    chosen = np.asarray(indices, dtype=np.int64)
    if isinstance(array, Tensor):
        return array[torch.from_numpy(chosen)]
    found = np.asarray(array[chosen])
    return torch.from_numpy(found.astype(found.dtype.newbyteorder("="), order="C", copy=False))


def kept(arrays: Any, indices: npt.NDArray[np.int64]) -> Any:
    """Arrays of these samples alone, of the kind that they are."""

    def pick(array: Any) -> Any:
        # A memory map gives maps; a tensor stays one, since numpy does not know all of its types.
        found = array[indices]
        return found if isinstance(found, Tensor) else np.asarray(found)

    return _each(pick, arrays)


def _each(function: Callable[[Array], Any], arrays: Arrays) -> Any:
    if isinstance(arrays, dict):
        return {name: function(array) for name, array in arrays.items()}
    return tuple(map(function, arrays)) if isinstance(arrays, tuple) else function(arrays)


def several(arrays: Arrays) -> tuple[Array, ...]:
    """All arrays, in order."""
    if isinstance(arrays, dict):
        return tuple(arrays.values())
    return arrays if isinstance(arrays, tuple) else (arrays,)


def as_target(targets: Tensor) -> Tensor:
    """Targets as int64 or float32."""
    exact = not (targets.is_floating_point() or targets.dtype is torch.bool)
    return targets.to(torch.int64 if exact else torch.float32)


def as_arrays(role: str, values: Any) -> Any:
    """The inputs of all samples: an array, a list of numbers, a dict or a tuple of arrays.

    Raises:
        ValueError: If it is no array of numbers.
    """
    if isinstance(values, Mapping):
        return {str(name): as_array(f"{role} {name!r}", one) for name, one in values.items()}
    if isinstance(values, tuple) and values and all(isinstance(one, Tensor | np.ndarray) for one in values):
        return values
    return as_array(role, values)


def check_arrays(role: str, arrays: Arrays, count: int) -> None:
    """Refuses what is no array of numbers, or holds another number of samples."""
    for array in several(arrays):
        numeric = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "biuf"
        if not numeric or array.ndim == 0:
            raise ValueError(
                f"{role} must be an array of real numbers with the sample as first axis, but got "
                f"{array.dtype} {tuple(array.shape)}: convert them to numbers, one row per sample"
            )
        if len(array) != count:
            raise ValueError(
                f"inputs and targets must be equally many, but got {len(array)} inputs and "
                f"{count} targets: give one target for each input"
            )


def stacked(items: Sequence[Any], places: Sequence[int]) -> Batch:
    """A batch of a dataset's items (input, target), whose shapes must agree.

    Raises:
        ValueError: If an item is no such pair, or shapes or names differ.
    """
    pairs = [_item(item, place) for item, place in zip(items, places, strict=True)]
    first = pairs[0][0]
    for inputs, _ in pairs[1:]:
        if form(inputs) != form(first) or type(inputs) is not type(first):
            raise ValueError(
                f"a dataset's inputs must all have the same names, but got {_names(first)} and {_names(inputs)}: "
                "give every item the same ones"
            )
    if isinstance(first, dict):
        joined: Inputs = {name: _stack(f"inputs {name!r}", [pair[0][name] for pair in pairs]) for name in first}  # type: ignore[index, call-overload]
    elif isinstance(first, tuple):
        joined = tuple(_stack("inputs", [pair[0][place] for pair in pairs]) for place in range(len(first)))  # type: ignore[index]
    else:
        joined = _stack("inputs", [pair[0] for pair in pairs])  # type: ignore[misc]
    return joined, as_target(_stack("targets", [pair[1] for pair in pairs]))


def collated(collate: Collate, items: list[Any]) -> Batch:
    """A batch that the user's function makes.

    Raises:
        ValueError: If it raises, or makes no pair of inputs and targets.
    """
    try:
        made = collate(items)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"collate must make a batch of {len(items)} items, but raised {describe(error)}: correct it"
        ) from error
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise ValueError(f"collate must return (inputs, targets), but returned {type(made).__name__}: return both")
    return as_inputs(made[0], "collate's inputs"), as_target(_copied(made[1]))


def as_inputs(value: Any, what: str) -> Inputs:
    """A tensor, a tuple of tensors or a dict of tensors.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, Tensor | np.ndarray):
        return _copied(value)
    several = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else []
    if not several or not all(isinstance(one, Tensor | np.ndarray) for one in several):
        held = type(several[0]).__name__ if several else "nothing"
        kind = type(value).__name__ + (f" with {held}" if isinstance(value, Mapping | tuple | list) else "")
        raise ValueError(
            f"{what} must be tensors or arrays, or a tuple or dict of them, but got a {kind}: "
            "convert it in the dataset's transform, or give the task a collate= that does"
        )
    if isinstance(value, Mapping):
        return {str(name): _copied(one) for name, one in value.items()}
    return tuple(map(_copied, several))


def fitted(inputs: Inputs, example: Inputs | None) -> Inputs:
    """Inputs in the form of the example: its names in its order, its dtypes where `converted` gets there.

    Raises:
        ValueError: If the names, or how many they are, differ.
    """
    if example is None:
        return inputs
    if isinstance(example, Tensor) and isinstance(inputs, Tensor):
        return converted(inputs, example.dtype)
    if type(inputs) is not type(example) or form(inputs) != form(example):
        raise ValueError(
            f"every batch must have the example input's {_names(example)}, but one has {_names(inputs)}: "
            "correct the data, or the example input"
        )
    if isinstance(example, dict) and isinstance(inputs, dict):
        return {name: converted(inputs[name], one.dtype) for name, one in example.items()}
    return tuple(converted(one, like.dtype) for one, like in zip(tensors(inputs), tensors(example), strict=True))


def converted(inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Inputs as `dtype`, where that is a number of a kind that holds them; else, or without one, as they are.

    Pixels and truth values become floats, and floats change their precision; floats never become indices, no number
    becomes a truth value, and no integer a narrower one.
    """
    if dtype is None or inputs.dtype == dtype or not torch.can_cast(inputs.dtype, dtype):
        return inputs
    if not dtype.is_floating_point and not _within(inputs.dtype, dtype):
        return inputs
    return inputs.to(dtype)


def _within(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether an integer type holds every value of another one, or of truth values."""
    lowest, highest = (0, 1) if narrow is torch.bool else (torch.iinfo(narrow).min, torch.iinfo(narrow).max)
    return torch.iinfo(wide).min <= lowest and highest <= torch.iinfo(wide).max


def _names(inputs: Inputs) -> str:
    if isinstance(inputs, dict):
        return f"names {', '.join(sorted(inputs))}"
    return "one tensor" if isinstance(inputs, Tensor) else f"{len(inputs)} tensors in order"


def as_array(role: str, values: Any) -> Array:
    """An array or tensor as it is, a list of numbers as an array.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(values, Tensor | np.ndarray):
        return values
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{role} must be an array of numbers, but got {type(values).__name__} ({error}): "
            "stack them into one array, or give a dataset"
        ) from error


def _item(item: Any, place: int) -> tuple[Inputs, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(
            f"a dataset's items must be pairs (input, target), but item {place} is a {type(item).__name__}: "
            "wrap the dataset so that it returns such pairs"
        )
    return as_inputs(item[0], f"a dataset's inputs (item {place})"), _copied(item[1])


def _copied(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))


def _stack(role: str, values: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"a dataset's {role} must have one shape, but got {shapes[0]} and {shapes[1]}: "
            "resize or crop them in the dataset's transform, or give the task a collate= that pads them"
        )
    return torch.stack(values)
