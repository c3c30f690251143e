"""Which classes and functions the file of a network may name: one rule for those who write it and who read it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any


class NotNamed(ValueError):
    """A name is none that a file may hold."""


def packages_of(objects: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The packages that a network's own modules come from, of what a file says of its objects.

    A module that stands for another names the class of that one.
    """
    modules = [entry for entry in objects if entry["kind"] == "module"]
    stood_for = (entry["attributes"].get("resized_class") for entry in modules)
    classes = [*(entry["class"] for entry in modules), *(one["name"] for one in stood_for if isinstance(one, dict))]
    roots = {name.partition(":")[0].partition(".")[0] for name in classes if not name.startswith("torch.")}
    return frozenset(roots - sys.stdlib_module_names)


def named(name: str, sources: Collection[str], packages: Collection[str]) -> Any:
    """What stands under "module:qualified.name", where a network may use it.

    That are torch.nn, torch's operators, and the packages of the network's modules.

    Args:
        name: Of a class or function.
        sources: Modules whose source files were found to be those of the writer.
        packages: As from `packages_of`.

    Raises:
        NotNamed: If a network may not use it, or nothing stands there.
    """
    module, _, qualified = name.partition(":")
    of_torch = module == "torch" or module.startswith("torch.nn.")
    if not of_torch and (module not in sources or module.partition(".")[0] not in packages):
        raise NotNamed(f"{name!r} comes from no package that the network's modules come from")
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:  # of another version of torch
        raise NotNamed(f"{name!r} is not there") from error
    compiled = module in ("torch", "torch.nn.functional") and "." not in qualified and inspect.isbuiltin(found)
    plain = inspect.isfunction(found) or inspect.isclass(found)
    if not compiled and (module == "torch" or not plain or found.__module__ != module):
        raise NotNamed(f"{name!r} is no class or function that is defined there")
    return found
