"""Selecting the one tensor that counts of what a network returns: a field of a structure, or a function of it.

The network becomes one that returns that tensor, so that whatever calls, traces or exports it needs to know nothing
of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias

from torch import nn

Output: TypeAlias = str | int | Callable[[Any], Any]
"""An attribute or key of what a network returns, its index, or a function from that to a tensor."""

_OF = "_amc_selected_of"


def selecting(network: nn.Module, output: Output | None) -> nn.Module:
    """The network with a forward that returns one tensor; it shares modules and tensors with `network`.

    Its class is a subclass of the network's, so that the names of modules and parameters stay.

    Args:
        network: Any module.
        output: Which tensor; None: what it returns is one.
    """
    if output is None or hasattr(type(network), _OF):
        return network
    kind = type(network)
    forward = kind.forward

    @wraps(forward)
    def selected(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return select(forward(self, *args, **kwargs), output)

    names = {"forward": selected, _OF: kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return _as(type(kind.__name__, (kind,), names), network)


def unselected(network: nn.Module) -> nn.Module:
    """The network with the forward of its own class again; it shares modules and tensors."""
    kind: type[nn.Module] | None = getattr(type(network), _OF, None)
    return network if kind is None else _as(kind, network)


def _as(kind: type[nn.Module], network: nn.Module) -> nn.Module:
    """A shallow twin of another class."""
    twin = kind.__new__(kind)
    twin.__dict__ = dict(network.__dict__)
    return twin


def select(returned: Any, output: Output) -> Any:
    """What `output` names of what a network returned.

    Raises:
        ValueError: If there is no such field.
    """
    if callable(output):
        return output(returned)
    if isinstance(output, str) and not isinstance(returned, Mapping) and hasattr(returned, output):
        return getattr(returned, output)
    try:
        return returned[output]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"output={output!r} must name a field of what the network returns, but {_fields(returned)}: "
            "name one of these, or give a function"
        ) from error


def _fields(returned: Any) -> str:
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"its {kind} has the keys {', '.join(map(repr, returned))}"
    if isinstance(returned, tuple | list):
        return f"its {kind} has {len(returned)} entries"
    names = ", ".join(getattr(returned, "__dict__", {}))
    return f"its {kind} has {names or 'no fields'}"
