"""Layers as single operators of torch.export, which would trace into them otherwise: it sees their shapes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

Path = tuple[Any, ...]


class LayerCall:
    """One call of a layer.

    Attributes:
        name: The layer's name.
        inputs: The tensors that it was given.
        outputs: For each tensor that it returns, the indices and keys that lead to it.
    """

    def __init__(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """Takes the arguments apart."""
        self.name, self._layer = name, layer
        self._leaves, self._arguments = tree_flatten((args, kwargs))
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self._returned: Any = None
        self.inputs: list[Tensor] = [self._leaves[place] for place in self._places]
        self.outputs: list[Path] = []

    def arguments(self, given: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, with tensors (or what stands for them) in the place of those given."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, given, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._arguments)
        return tuple(args), dict(kwargs)

    def fake(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that the layer returns for fake ones.

        Raises:
            ValueError: If it is given no tensor, or returns something else.
        """
        mode = next((mode for tensor in given if (mode := getattr(tensor, "fake_mode", None)) is not None), None)
        if mode is None:
            raise ValueError(f"{self.name!r} is called without a tensor")
        own = (*self._layer.named_parameters(), *self._layer.named_buffers())
        fakes = {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in own}
        args, kwargs = self.arguments(given)
        returned = torch.func.functional_call(self._layer, fakes, args, kwargs)
        found = [(path, leaf) for path, leaf in tree_flatten_with_path(returned)[0] if leaf is not None]
        if not all(isinstance(leaf, Tensor) for _, leaf in found):
            raise ValueError(f"{self.name!r} returns something else than tensors")
        self._returned = returned
        self.outputs = [tuple(_step(key) for key in path) for path, _ in found]
        return [leaf.clone() for _, leaf in found]  # an operator's outputs are no views of its inputs

    def returned(self, tensors: Sequence[Tensor]) -> Any:
        """What the layer returns, with some tensors in the place of the fake ones."""
        leaves, spec = tree_flatten(self._returned)
        rest = iter(tensors)
        return tree_unflatten([None if leaf is None else next(rest) for leaf in leaves], spec)


def _step(key: Any) -> Any:
    """The index or key of one step into a structure."""
    return key.idx if hasattr(key, "idx") else key.key


_calls: list[LayerCall] = []
"""Calls of the trace that is under way: operators hold no objects, so they name calls by their places."""


@cache
def layer_operator() -> Any:
    """`amc::layer(tensors, place of the call) -> tensors`, which is never executed."""
    torch.library.define("amc::layer", "(Tensor[] inputs, int call) -> Tensor[]")
    torch.library.register_fake("amc::layer", lambda inputs, call: _calls[call].fake(inputs))
    return torch.ops.amc.layer.default


@contextmanager
def opaque_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[list[LayerCall]]:
    """Within the context every call of some modules of a network is one operator.

    Args:
        network: A copy: the modules get another forward, for good.
        layers: Name -> the same module of a network that stays as it is.

    Yields:
        The calls, by their places.
    """
    for name, layer in layers.items():
        network.get_submodule(name).forward = partial(_called, name, layer)
    _calls.clear()
    try:
        yield _calls
    finally:
        _calls.clear()


def _called(name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    call = LayerCall(name, layer, args, kwargs)
    _calls.append(call)
    tensors = layer_operator()(call.inputs, len(_calls) - 1)
    return call.returned(tensors)
