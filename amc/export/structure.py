"""A network's structure as a file without code: classes by name, and attributes; read back by `amc.export.rebuild`.

It lies beside the file of the weights, and holds no tensor that is there.

Pickle would do this and execute whatever the file says. Here a file can only name classes of modules (`nn.Module`), and
functions and objects of the packages that those come from; their constructors are never called. Of every source file
that is named the file holds the SHA-256, so that other code than the network's own is refused before it is imported.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import inspect
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinMethodType
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from amc.export.names import NotNamed, named, packages_of
from amc.storage.files import write_bytes
from amc.tasks.checks import wrapped

SCHEMA_VERSION = 1
STRUCTURE = "structure.safetensors"
"""Name of the file, beside that of the weights."""
JSON: TypeAlias = Any
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
EMPTY = nn.Module().__dict__.keys()
"""What every module has; it is made again by `nn.Module.__init__`, or stands under a heading of its own."""


RECURRENT = ("_flat_weights", "_flat_weight_refs")
"""What recurrent modules keep of their parameters beside them; made again from those."""
NUMBERS = frozenset(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)) - {"float8"} | {
    "bool"
}
"""Numbers of numpy that Python's own hold without loss."""


class Undescribed(ValueError):
    """A network holds something that no file without code can hold."""


@dataclass(slots=True)
class _Description:
    """What was met so far."""

    objects: list[JSON] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)


def write_structure(network: nn.Module, path: Path) -> None:
    """Writes a network's structure; where it cannot be described, the reason, which reading says.

    Args:
        network: On any device.
        path: The file; replaced atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    try:
        header, tensors = describe(network)
    except Undescribed as error:
        header, tensors = {"schema_version": SCHEMA_VERSION, "undescribed": str(error)}, {}
    write_bytes(path, safetensors.torch.save(tensors, metadata={"structure": json.dumps(header)}))


def describe(network: nn.Module) -> tuple[dict[str, JSON], dict[str, Tensor]]:
    """The structure as JSON, and the tensors that no state dict holds, by name.

    Raises:
        Undescribed: If the network holds what such a file cannot: hooks, parametrizations, classes made at run time.
    """
    into = _Description()
    root = _module(network, into, "the network")
    _check_names(into)
    header = {
        "schema_version": SCHEMA_VERSION,
        "root": root,
        "objects": into.objects,
        "sources": into.sources,
    }
    state = network.state_dict()
    others = {key: tensor for key, tensor in into.tensors.items() if key not in state}
    return header, {key: tensor.detach().cpu().clone().contiguous() for key, tensor in others.items()}


def source_digest(path: Path) -> str:
    """SHA-256 of a source file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _module(module: nn.Module, into: _Description, where: str) -> int:
    """Describes one module, once; its place in the list of objects."""
    if id(module) in into.places:
        return into.places[id(module)]
    if (inner := wrapped(module)) and not isinstance(module, nn.DataParallel):
        raise Undescribed(
            f"{where} is a {type(module).__name__}, which no file without code can hold: search its `{inner}`, which "
            "has the same weights"
        )
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise Undescribed(f"{where} has hooks, which are code: remove them, or write a program (`amc.save_program`)")
    place = _reserve(module, into)
    made_again = {*EMPTY, *(RECURRENT if isinstance(module, nn.RNNBase) else ())}
    own = {name: value for name, value in vars(module).items() if name not in made_again}
    into.objects[place] = {
        "kind": "module",
        "class": _name(type(module), into, where),
        "training": module.training,
        "attributes": {name: _value(value, into, f"{where}.{name}") for name, value in own.items()},
        "parameters": {
            name: None if parameter is None else [_tensor(parameter, into, where, name), parameter.requires_grad]
            for name, parameter in module._parameters.items()
        },
        "buffers": {
            name: None
            if buffer is None
            else [_tensor(buffer, into, where, name), name not in module._non_persistent_buffers_set]
            for name, buffer in module._buffers.items()
        },
        "children": {
            name: None if child is None else _module(child, into, name if where == "the network" else f"{where}.{name}")
            for name, child in module._modules.items()
        },
    }
    return place


def _check_names(into: _Description) -> None:
    """Refuses names that the reader will refuse: only after the last module is it known where all of them come from."""
    packages = packages_of(into.objects)
    for name, where in into.names.items():
        try:
            named(name, into.sources, packages)
        except NotNamed as error:
            raise Undescribed(
                f"{where} is {name.replace(':', '.')}, which is neither of torch.nn nor of a package that the "
                "network's modules come from: define it there, or write a program (`amc.save_program`)"
            ) from error


def _reserve(value: Any, into: _Description) -> int:
    place = into.places[id(value)] = len(into.objects)
    into.objects.append(None)
    into.alive.append(value)  # an id is only unique while its object lives
    return place


def _tensor(tensor: Tensor, into: _Description, where: str, name: str) -> str:
    """The key of a tensor; tied ones share theirs."""
    if id(tensor) not in into.keys:
        key = name if where == "the network" else f"{where}.{name}"  # as in a state dict
        into.keys[id(tensor)] = key
        into.tensors[key] = tensor
        into.alive.append(tensor)
    return into.keys[id(tensor)]


def _value(value: Any, into: _Description, where: str) -> JSON:
    """An attribute: numbers and texts as they are, everything else as {kind: content}."""
    if value is None or type(value) in (bool, int, str):
        return value
    if write := _EXACT.get(type(value)):
        return write(value, into, where)
    for kind, write in _KINDS:
        if isinstance(value, kind):
            return write(value, into, where)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _named_tuple(value, into, where)
    if inspect.isroutine(value) or inspect.isclass(value):
        return {"name": _name(value, into, where)}
    return _object(value, into, where)


def _object(value: Any, into: _Description, where: str) -> JSON:
    """Any other object, by its class and attributes; each once."""
    if id(value) not in into.places:
        if not hasattr(value, "__dict__") or not _is_plain(type(value)):
            raise Undescribed(f"{where} is a {type(value).__name__}, which no file without code can hold")
        place = _reserve(value, into)
        attributes = {name: _value(one, into, f"{where}.{name}") for name, one in vars(value).items()}
        into.objects[place] = {"kind": "object", "class": _name(type(value), into, where), "attributes": attributes}
    return {"object": into.places[id(value)]}


def _is_plain(kind: type[Any]) -> bool:
    """Whether objects of a class hold nothing beside their attributes: one of dicts or texts has items as well."""
    bases = [vars(base) for base in kind.__mro__ if base is not object]
    return not any(base.get("__slots__") or isinstance(base.get("__new__"), BuiltinMethodType) for base in bases)


def _items(kind: str) -> Writer:
    def write(values: Any, into: _Description, where: str) -> JSON:
        return {kind: [_value(value, into, f"{where}[{place}]") for place, value in enumerate(values)]}

    return write


def _pairs(kind: str) -> Writer:
    def write(values: Any, into: _Description, where: str) -> JSON:
        pairs = ((_value(key, into, where), key, value) for key, value in values.items())
        return {kind: [[name, _value(value, into, f"{where}[{key!r}]")] for name, key, value in pairs]}

    return write


def _named_tuple(value: Any, into: _Description, where: str) -> JSON:
    if getattr(value, "__dict__", None) or len(value) != len(value._fields):
        raise Undescribed(f"{where} is a {type(value).__name__}, which no file without code can hold")
    return {"namedtuple": [_name(type(value), into, where), _items("list")(value, into, where)["list"]]}


def _number(value: np.generic, into: _Description, where: str) -> JSON:
    if value.dtype.name not in NUMBERS:
        raise Undescribed(f"{where} is a {type(value).__name__}, which no file without code can hold")
    return {"number": [value.dtype.name, _value(value.item(), into, where)]}


def _parameter(value: nn.Parameter, into: _Description, where: str) -> JSON:
    return {"parameter": [_tensor(value, into, where, "(attribute)"), value.requires_grad]}


def _partial(value: Any, into: _Description, where: str) -> JSON:
    parts = [value.func, list(value.args), dict(value.keywords)]
    return {"partial": [_value(part, into, where) for part in parts]}


def _enum(value: Any, into: _Description, where: str) -> JSON:
    return {"enum": [_name(type(value), into, where), value.name]}


Writer: TypeAlias = Callable[[Any, _Description, str], JSON]
_EXACT: dict[type[Any], Writer] = {
    float: lambda value, into, where: {"float": repr(value)},
    Tensor: lambda value, into, where: {"tensor": _tensor(value, into, where, "(attribute)")},
    nn.Parameter: _parameter,
    torch.Size: _items("size"),
    list: _items("list"),
    tuple: _items("tuple"),
    set: _items("set"),
    frozenset: _items("frozenset"),
    dict: _pairs("dict"),
    OrderedDict: _pairs("ordered_dict"),
    functools.partial: _partial,
}
"""Types that come back as they are; what is derived from them would not."""
_KINDS: tuple[tuple[type[Any], Writer], ...] = (
    (nn.Module, lambda value, into, where: {"object": _module(value, into, where)}),
    (torch.dtype, lambda value, into, where: {"dtype": str(value).removeprefix("torch.")}),
    (torch.device, lambda value, into, where: {"device": str(value)}),
    (enum.Enum, _enum),
    (np.generic, _number),  # numpy.float64 is a float, too, whose text no float has
)


def _name(thing: Any, into: _Description, where: str) -> str:
    """The name "module:qualified.name" of a class or function that can be imported; its source file is noted."""
    module = getattr(thing, "__module__", None) or builtins.__name__
    qualified = thing.__qualname__
    if inspect.isbuiltin(thing):  # torch's functions that are written in C do not say where they are
        homes = (torch, torch.nn.functional)
        module = next((home.__name__ for home in homes if getattr(home, thing.__name__, None) is thing), module)
        qualified = thing.__name__
    name = f"{module}:{qualified}"
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        raise Undescribed(
            f"{where} is a {name.replace(':', '.')}, which cannot be imported by that name: define it at the top of a "
            "module, or write a program (`amc.save_program`)"
        )
    if module.partition(".")[0] != "torch":
        try:
            file = inspect.getsourcefile(thing)
        except (OSError, TypeError):  # made in a notebook, or by an interpreter's command line
            file = None
        if file is None:
            raise Undescribed(
                f"{where} is {name.replace(':', '.')}, which has no source file: define it in a module, or write a "
                "program (`amc.save_program`)"
            )
        into.sources[module] = source_digest(Path(file))
    into.names.setdefault(name, where)
    return name
