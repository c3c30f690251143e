"""What a network is called with: one tensor, several in order, or several by name, whose first axis is the batch.

Other axes, such as the length of a text, may differ from one batch to the next. Selecting one tensor of what a network
returns stands in `outputs.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One batch: `forward(x)`, `forward(*x)` or `forward(**x)`; the batch is the first axis of every tensor."""


def call(network: nn.Module | Callable[..., Any], inputs: Inputs) -> Any:
    """What the network returns."""
    if isinstance(inputs, Tensor):
        return network(inputs)
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)


def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """All tensors of a batch, in order."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def named(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors by name: their keywords, else `input`, or `input_0`, `input_1`, ... of several."""
    if isinstance(inputs, dict):
        return inputs
    if isinstance(inputs, Tensor):
        return {"input": inputs}
    return {f"input_{place}": tensor for place, tensor in enumerate(inputs)}


def argument_names(forward: Callable[..., Any], inputs: Inputs) -> list[str]:
    """The keywords of the tensors, else the names of forward's parameters where it tells."""
    given = named(inputs)
    if isinstance(inputs, dict):
        return list(given)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = [
        one.name for one in inspect.signature(forward).parameters.values() if one.kind in kinds and one.name != "self"
    ]
    return own[: len(given)] if len(own) >= len(given) else list(given)


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The batch with every tensor mapped."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def batch_size(inputs: Inputs) -> int:
    """The number of samples."""
    return len(tensors(inputs)[0])


def rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Views of some samples of a batch."""
    return mapped(lambda tensor: tensor[start:stop], inputs)


def divided(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Views of at most `size` samples each, in order."""
    for start in range(0, batch_size(inputs), size):
        yield rows(inputs, start, start + size)


def repeated(inputs: Inputs, count: int) -> Inputs:
    """A batch so many times over."""
    return mapped(lambda tensor: torch.cat([tensor] * count), inputs)


def channels_last(inputs: Inputs) -> Inputs:
    """The batch with its images (tensors of four axes) in the layout that fast copies of networks prefer."""
    return mapped(_channels_last, inputs)


def narrowed(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The batch with its floats in another precision; indices and truth values stay."""
    return mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


def form(inputs: Inputs) -> tuple[str | int, ...]:
    """The names of the tensors, or their places: batches of one network have the same form."""
    return tuple(sorted(inputs)) if isinstance(inputs, dict) else tuple(range(len(tensors(inputs))))


def described(inputs: Inputs) -> str:
    """Shape, dtype and range of every tensor."""
    return _listed(_described, inputs)


def sizes(inputs: Inputs) -> str:
    """Shape of every tensor."""
    return _listed(lambda tensor: str(list(tensor.shape)), inputs)


def _listed(say: Callable[[Tensor], str], inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return say(inputs)
    return ", ".join(f"{name} {say(tensor)}" for name, tensor in named(inputs).items())


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _described(tensor: Tensor) -> str:
    values = tensor.double()
    extent = f" from {float(values.min()):g} to {float(values.max()):g}" if values.numel() else ""
    return f"{list(tensor.shape)} {tensor.dtype}{extent}"
