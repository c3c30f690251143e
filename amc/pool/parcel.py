"""Objects on their way to workers: pickled, with every array beside the pickle, so that a store of shared memory
gives arrays without copying them.

Large plain tensors (images, Gram matrices) stay where they arrive, read-only; parameters and small tensors are
copied once into torch's own memory, since networks may be written to.
"""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch._ops import OpOverload

_MAPPED_BYTES = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """An object in pieces.

    Attributes:
        body: The pickle.
        arrays: [n] uint8 each, what the pickle refers to.
    """

    body: bytes
    arrays: tuple[NDArray[np.uint8], ...]

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return len(self.body) + sum(array.nbytes for array in self.arrays)


def pack(value: object, own_modules: Sequence[str] = ()) -> Parcel:
    """Takes an object apart.

    Args:
        value: Anything that cloudpickle takes.
        own_modules: Modules whose functions and classes travel with the object, as the other side may not have
            them (the user's task, by the name of its module).

    Raises:
        ValueError: If something in it cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    with _by_value(own_modules):
        try:
            _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"what goes to workers must be picklable, but something is not ({' '.join(str(error).split())}): "
                "let task and objects hold numbers and arrays only, or work without workers"
            ) from error
    arrays = tuple(np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers)
    return Parcel(file.getvalue(), arrays)


def unpack(parcel: Parcel) -> Any:
    """Puts an object together again; arrays of the parcel that it holds on to must not be written to."""
    return pickle.loads(parcel.body, buffers=parcel.arrays)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Gives torch's tensors away as numpy arrays, and traced graphs as lists: as linked ones they nest too deeply."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, fx.Graph):
            return _graph, (_operators(value),)
        if isinstance(value, OpOverload):
            return _operator, (value.name(),)  # type: ignore[no-untyped-call]  # torch's
        if isinstance(value, fx.Node):
            return _node, (value.graph, list(value.graph.nodes).index(value))
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type in ("cpu", "cuda")
        if plain and type(value) is nn.Parameter:
            return _parameter, (*_pieces(value), value.requires_grad)
        if plain and type(value) is Tensor and not value.requires_grad:
            return _tensor, (*_pieces(value), value.nbytes >= _MAPPED_BYTES)
        return super().reducer_override(value)


def _pieces(tensor: Tensor) -> tuple[NDArray[np.uint8], torch.dtype, tuple[int, ...], tuple[int, ...], str]:
    """Bytes in the order of the values, and how to lay them out where: other strides may give other last digits."""
    values = tensor.detach().cpu().contiguous()
    raw = values.flatten().view(torch.uint8).numpy() if values.numel() else np.zeros(0, np.uint8)
    return raw, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor.device.type


def _tensor(
    raw: NDArray[np.uint8],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    device: str,
    mapped: bool,
) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of read-only memory, which is meant
        arrived = torch.from_numpy(raw)
    if not mapped:
        arrived = arrived.clone()
    values = arrived.view(dtype).view(shape) if arrived.numel() else torch.empty(shape, dtype=dtype, device="cpu")
    values = values.to(device)
    if values.stride() == stride or 0 in stride:
        return values
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(values)


def _parameter(
    raw: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], device: str, grad: bool
) -> nn.Parameter:
    return nn.Parameter(_tensor(raw, dtype, shape, stride, device, mapped=False), requires_grad=grad)


@dataclass(frozen=True, slots=True)
class _Reference:
    """Stands for a node in the arguments of a later one."""

    place: int


def _operators(graph: fx.Graph) -> list[tuple[Any, ...]]:
    places = {node: place for place, node in enumerate(graph.nodes)}

    def referring(arguments: Any) -> Any:
        refer: Any = lambda node: _Reference(places[node])  # noqa: E731 - fx knows no other placeholders
        return fx.map_arg(arguments, refer)

    return [(n.op, n.target, referring(n.args), referring(n.kwargs), n.name) for n in graph.nodes]


def _operator(name: str) -> OpOverload:
    """The operator of a name such as "aten::gelu" or "aten::add.Tensor"."""
    space, _, full = name.partition("::")
    packet, _, overload = full.partition(".")
    found: OpOverload = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    return found


def _graph(operators: Sequence[tuple[Any, ...]]) -> fx.Graph:
    graph, nodes = fx.Graph(), list[fx.Node]()

    def resolved(value: Any) -> Any:
        if isinstance(value, _Reference):
            return nodes[value.place]
        if isinstance(value, (tuple, list)):
            return type(value)(resolved(one) for one in value)
        if isinstance(value, dict):
            return {key: resolved(one) for key, one in value.items()}
        if isinstance(value, slice):
            return slice(resolved(value.start), resolved(value.stop), resolved(value.step))
        return value

    for op, target, args, kwargs, name in operators:
        nodes.append(graph.create_node(op, target, resolved(args), resolved(kwargs), name))
    return graph


def _node(graph: fx.Graph, place: int) -> fx.Node:
    nodes: list[fx.Node] = list(graph.nodes)
    return nodes[place]


@contextmanager
def _by_value(names: Sequence[str]) -> Iterator[None]:
    modules = [sys.modules[name.partition(".")[0]] for name in names if name.partition(".")[0] in sys.modules]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
