"""Objects on their way to workers: pickled, with every array beside the pickle, so that a store of shared memory
hands arrays out without copying them.

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
from torch import Tensor, nn

_MAPPED_BYTES = 1 << 20


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
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    with _by_value(own_modules):
        _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    arrays = tuple(np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers)
    return Parcel(file.getvalue(), arrays)


def unpack(parcel: Parcel) -> Any:
    """Puts an object together again; arrays of the parcel that it holds on to must not be written to."""
    return pickle.loads(parcel.body, buffers=parcel.arrays)


class _Pickler(cloudpickle.Pickler):
    """Gives torch's tensors away as numpy arrays."""

    def reducer_override(self, value: Any) -> Any:
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if plain and type(value) is nn.Parameter:
            return _parameter, (*_pieces(value), value.requires_grad)
        if plain and type(value) is Tensor and not value.requires_grad:
            return _tensor, (*_pieces(value), value.nbytes >= _MAPPED_BYTES)
        return super().reducer_override(value)


def _pieces(tensor: Tensor) -> tuple[NDArray[np.uint8], torch.dtype, tuple[int, ...], tuple[int, ...]]:
    """Bytes in the order of the values, and how to lay them out: other strides may give other last digits."""
    values = tensor.detach().contiguous()
    raw = values.flatten().view(torch.uint8).numpy() if values.numel() else np.zeros(0, np.uint8)
    return raw, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride())


def _tensor(
    raw: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], mapped: bool
) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of read-only memory, which is meant
        arrived = torch.from_numpy(raw)
    if not mapped:
        arrived = arrived.clone()
    values = arrived.view(dtype).view(shape) if arrived.numel() else torch.empty(shape, dtype=dtype)
    if values.stride() == stride or 0 in stride:
        return values
    return torch.empty_strided(shape, stride, dtype=dtype).copy_(values)


def _parameter(
    raw: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool
) -> nn.Parameter:
    return nn.Parameter(_tensor(raw, dtype, shape, stride, mapped=False), requires_grad=requires_grad)


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
