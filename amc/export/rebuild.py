"""A network from the file that `amc.export.structure` wrote: nothing in it is executed, no constructor is called."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from amc.export.applied import WEIGHTS, Which, load_applied, network_folder
from amc.export.names import NotNamed, named, packages_of
from amc.export.structure import NUMBERS, SCHEMA_VERSION, STRUCTURE, source_digest
from hw_profiles.documents import one_line

DAMAGED = (OSError, SafetensorError, RecursionError, ValueError, KeyError, TypeError, AttributeError, IndexError)


class OtherCode(ValueError):
    """The code of a network is missing, or is not the one that it was written with."""


def load(folder: Path | str, network: nn.Module | None = None, *, which: Which = "newest") -> nn.Module:
    """The network of a finished run, or of an applied policy: plain, trainable, on the CPU.

    Args:
        folder: A run folder, or what `amc apply` wrote.
        network: The dense network with any weights, where the found one's own code cannot be imported by its name;
            it is not changed.
        which: "newest": fine-tuned once that has ended, found before; or one of these two.

    Raises:
        OtherCode: If its code cannot be imported, or has changed since; says what helps.
        ValueError: If a file is missing or damaged, or belongs to another network.
    """
    home = network_folder(Path(folder), which)
    return load_network(home) if network is None else load_applied(network, home)


def load_network(folder: Path) -> nn.Module:
    """The network of a folder, in the state in which it was written, on the CPU.

    Args:
        folder: With the files of weights and structure.

    Raises:
        OtherCode: If its code cannot be imported, or differs from what the files were written with.
        ValueError: If a file is missing, damaged or of another version.
    """
    for name in (WEIGHTS, STRUCTURE):
        if not (folder / name).is_file():
            raise ValueError(
                f"a network is loaded from {WEIGHTS} and {STRUCTURE}, but {str(folder)!r} holds no {name}: name the "
                "folder of a run that has ended, or of an applied policy"
            )
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        with safe_open(folder / STRUCTURE, framework="pt") as file:
            header = json.loads((file.metadata() or {})["structure"])
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        if header["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {header['schema_version']}, not {SCHEMA_VERSION}")
        if reason := header.get("undescribed"):
            raise OtherCode(f"{reason}; or load it by `amc.load(folder, network=...)` into a dense network of yours")
        _check_code(header["sources"])
        return _Reader(header["objects"], header["sources"], tensors).network(header["root"])
    except OtherCode:
        raise
    except DAMAGED as error:
        raise ValueError(
            f"a network must be readable weights and structure, but those in {str(folder)!r} are not "
            f"({type(error).__name__}: {one_line(error)}): apply the policy again"
        ) from error


def _check_code(sources: Mapping[str, str]) -> None:
    """Finds the source of every module named, without importing it, and compares it.

    Raises:
        OtherCode: If one is missing or differs.
    """
    for module, digest in sources.items():
        file = _source_of(module)
        if file is None:
            raise OtherCode(
                f"the network's code must be importable, but there is no module {module!r}: install it, put its folder "
                "on PYTHONPATH, or load the network into one of your own by `policy.apply`"
            )
        if source_digest(file) != digest:
            raise OtherCode(
                f"the network's code must be the one that it was written with, but {str(file)!r} has changed since: "
                "check out that version, or load the network into one of your own by `policy.apply`"
            )


def _source_of(module: str) -> Path | None:
    """The file of a module, found without executing anything."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        return Path(file) if file else None
    places, spec = None, None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None


@dataclass(slots=True)
class _Reader:
    """One file that is read."""

    objects: list[Any]
    sources: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    made: dict[int, Any] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    packages: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Notes which packages the network's own modules come from."""
        self.packages = packages_of(self.objects)

    def network(self, root: int) -> nn.Module:
        """The root of all modules."""
        network = self._object(root)
        if not isinstance(network, nn.Module):
            raise ValueError("its root is no module")
        return network

    def _object(self, place: int) -> Any:
        if place in self.made:
            return self.made[place]
        entry = self.objects[place]
        kind = self._class(entry["class"], module=entry["kind"] == "module")
        made: Any = kind.__new__(kind)  # type: ignore[call-overload]
        self.made[place] = made
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
            self._fill(made, entry)
        vars(made).update({name: self._value(value) for name, value in entry["attributes"].items()})
        if isinstance(made, nn.RNNBase):
            made._init_flat_weights()
        return made

    def _fill(self, module: nn.Module, entry: Mapping[str, Any]) -> None:
        """Parameters, buffers and children of one module."""
        for name, child in entry["children"].items():
            module._modules[name] = None if child is None else self._object(child)
        for name, given in entry["parameters"].items():
            module._parameters[name] = None if given is None else self._parameter(*given)
        for name, given in entry["buffers"].items():
            tensor = None if given is None else self.tensors[given[0]]
            module.register_buffer(name, tensor, persistent=given is None or bool(given[1]))
        module.training = bool(entry["training"])

    def _parameter(self, key: str, trained: bool) -> nn.Parameter:
        """Tied parameters are one again."""
        if key not in self.parameters:
            self.parameters[key] = nn.Parameter(self.tensors[key], requires_grad=bool(trained))
        return self.parameters[key]

    def _class(self, name: str, *, module: bool) -> type[Any]:
        """A class of modules; of other objects only one from the packages that modules come from."""
        found = self._named(name)
        if not inspect.isclass(found) or (module and not issubclass(found, nn.Module)):
            raise ValueError(f"{name!r} is no class of {'modules' if module else 'objects'}")
        return found

    def _named(self, name: str) -> Any:
        """What stands under "module:qualified.name", where a network may use it."""
        try:
            return named(name, self.sources, self.packages)
        except NotNamed as error:
            raise OtherCode(
                "what a stored network names must be of torch.nn or a package that its modules come from, but "
                f"{error}: load it by `amc.load(folder, network=...)` into a dense network of yours"
            ) from error

    def _value(self, value: Any) -> Any:
        """What `_value` of the writer made of an attribute."""
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        return getattr(self, f"_{_KINDS[kind]}")(content)

    def _float(self, text: str) -> float:
        return float(text)

    def _number(self, parts: list[Any]) -> Any:
        name, value = parts[0], self._value(parts[1])
        if name not in NUMBERS or not isinstance(value, bool | int | float):
            raise ValueError(f"{name!r} is no type of numbers")
        return np.dtype(name).type(value)

    def _list(self, values: list[Any]) -> list[Any]:
        return [self._value(value) for value in values]

    def _tuple(self, values: list[Any]) -> tuple[Any, ...]:
        return tuple(self._list(values))

    def _set(self, values: list[Any]) -> set[Any]:
        return set(self._list(values))

    def _frozenset(self, values: list[Any]) -> frozenset[Any]:
        return frozenset(self._list(values))

    def _named_tuple(self, parts: list[Any]) -> Any:
        kind, values = self._named(parts[0]), self._list(parts[1])
        if not (inspect.isclass(kind) and issubclass(kind, tuple) and len(getattr(kind, "_fields", ())) == len(values)):
            raise ValueError(f"{parts[0]!r} is no named tuple of {len(values)}")
        return tuple.__new__(kind, values)

    def _size(self, values: list[int]) -> torch.Size:
        return torch.Size(values)

    def _dict(self, pairs: list[Any]) -> dict[Any, Any]:
        return {self._value(key): self._value(value) for key, value in pairs}

    def _ordered_dict(self, pairs: list[Any]) -> OrderedDict[Any, Any]:
        return OrderedDict(self._dict(pairs))

    def _dtype(self, name: str) -> torch.dtype:
        found = getattr(torch, name)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{name!r} is no dtype")
        return found

    def _device(self, name: str) -> torch.device:
        return torch.device("cpu")  # whatever it was: the network is loaded there

    def _tensor(self, key: str) -> Tensor:
        return self.tensors[key]

    def _one_parameter(self, parts: list[Any]) -> nn.Parameter:
        return self._parameter(*parts)

    def _partial(self, parts: list[Any]) -> Any:
        function, arguments, keywords = map(self._value, parts)
        if not callable(function):
            raise ValueError("a partial function must be of a function")
        return functools.partial(function, *arguments, **keywords)

    def _enum(self, parts: list[str]) -> Any:
        kind = self._named(parts[0])
        if not (inspect.isclass(kind) and issubclass(kind, Enum)):
            raise ValueError(f"{parts[0]!r} is no enumeration")
        return kind[parts[1]]


_KINDS = {
    "float": "float",
    "number": "number",
    "list": "list",
    "tuple": "tuple",
    "set": "set",
    "frozenset": "frozenset",
    "namedtuple": "named_tuple",
    "size": "size",
    "dict": "dict",
    "ordered_dict": "ordered_dict",
    "dtype": "dtype",
    "device": "device",
    "tensor": "tensor",
    "parameter": "one_parameter",
    "partial": "partial",
    "enum": "enum",
    "object": "object",
    "name": "named",
}
"""Kinds of values, and which method reads them."""
