"""The example input of a task: what it must be, and that the network can be called with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from envs.network.inputs import Inputs, sizes, tensors


def checked_example(network: nn.Module, example: Any) -> Inputs:
    """The example as one input of the network.

    Args:
        network: Whose forward must take it.
        example: A tensor [1, ...], or a tuple, list or mapping of tensors whose first axis is 1.

    Raises:
        ValueError: If it is none of these, or forward does not take so many, or these keywords.
    """
    if isinstance(example, Mapping):
        example = dict(example)
    elif isinstance(example, list):
        example = tuple(example)
    held = tensors(example) if isinstance(example, dict | tuple) else (example,)
    fits = bool(held) and all(isinstance(one, Tensor) and one.ndim > 0 and len(one) == 1 for one in held)
    if not fits or (isinstance(example, Tensor) and example.ndim < 2):
        raise ValueError(
            f"a task's example_input must be a tensor [1, ...], or a tuple or dict of them, but got {_kind(example)}: "
            "write one input with a batch axis, such as torch.zeros(1, 3, 224, 224)"
        )
    _check_call(network, example)
    return example  # type: ignore[no-any-return]


def _check_call(network: nn.Module, example: Inputs) -> None:
    signature = inspect.signature(network.forward)
    positional, keywords = ((), example) if isinstance(example, dict) else (tensors(example), {})
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise ValueError(
            f"the example input must fit the network's forward{signature}, but it has {sizes(example)} ({error}): "
            "name its tensors as the parameters are named, or give as many as there are"
        ) from error


def _kind(example: Any) -> str:
    if isinstance(example, Tensor):
        return str(list(example.shape))
    if isinstance(example, dict | tuple):
        values = example.values() if isinstance(example, dict) else example
        held = ", ".join(str(list(one.shape)) if isinstance(one, Tensor) else type(one).__name__ for one in values)
        return f"a {type(example).__name__} of {held or 'nothing'}"
    return type(example).__name__
