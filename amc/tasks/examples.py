"""The example input of a task: what it must be, that the network takes it, and which of its tokens count."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from amc.tasks.plugins import describe
from envs.network.inputs import Inputs, named, sizes, tensors
from envs.regression.counted import Counts

MASKS = ("attention_mask", "mask")
"""Inputs that are taken for a mask of the tokens, where nothing else is said."""


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


def as_counts(given: object, example: Inputs) -> Counts | None:
    """What gives the mask of a batch: a function as it is, the input of a name; None where all tokens count.

    Args:
        given: What the task was given.
        example: The example input.

    Raises:
        ValueError: If the example has no such input, or what it gives is no mask.
    """
    if given is None:
        name = next((name for name in MASKS if isinstance(example, dict) and _is_mask(example, name)), None)
        return None if name is None else partial(_input, name)
    if isinstance(given, str):
        if given not in named(example):
            raise ValueError(
                f"counts must name an input, but there is no {given!r} in {sizes(example)}: write one of these names, "
                "or a function of the inputs"
            )
        counts: Counts = partial(_input, given)
    elif callable(given):
        counts = given
    else:
        raise ValueError(
            f"counts must be the name of an input or a function of the inputs, but got {type(given).__name__}: "
            "leave it out where all tokens count"
        )
    _check_counts(counts, example)
    return counts


def _input(name: str, inputs: Inputs) -> Tensor:
    return named(inputs)[name]


def _is_mask(example: dict[str, Tensor], name: str) -> bool:
    """Whether an input is a mask of another one's places: 0 or 1 everywhere and not all 0, as one that is added is."""
    mask = example.get(name)
    if mask is None or mask.ndim < 2 or not _is_binary(mask):
        return False
    return any(one.shape[: mask.ndim] == mask.shape for other, one in example.items() if other != name)


def _is_binary(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == 1)).all()) and bool((mask == 1).any())


def _check_counts(counts: Counts, example: Inputs) -> None:
    try:
        mask: object = counts(example)
    except Exception as error:  # it may be the user's code
        raise ValueError(
            f"counts must make a mask of inputs {sizes(example)}, but raised {describe(error)}: correct it"
        ) from error
    if not isinstance(mask, Tensor) or mask.ndim < 2 or len(mask) != 1 or not _is_binary(mask):
        found = f"{list(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"counts must give a mask [B, T] that is 1 where a token counts and 0 elsewhere, but of the example "
            f"it gave {found}: "
            "give the example input tokens that count"
        )
