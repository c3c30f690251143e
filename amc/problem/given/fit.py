"""Whether an object fits a Protocol: every method that is needed is there, and can be called as it will be."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from envs.lookup import name_of


def check_fit(kind: str, thing: object, protocol: type, methods: Sequence[str], attributes: Sequence[str] = ()) -> None:
    """Refuses an object that does not fit.

    Args:
        kind: What it is to be, for the message: "searcher".
        thing: The object; a function fits where `__call__` is all that is needed; a class stands for its instances.
        protocol: Whose methods say with what arguments they are called.
        methods: Those that are needed.
        attributes: What else must be there.

    Raises:
        ValueError: Naming the first method or attribute that is missing or has another signature.
    """
    for name in methods:
        _check_method(kind, thing, name, protocol)
    for name in attributes:
        if getattr(thing, name, None) is None:
            raise ValueError(f"a {kind} needs the attribute {name!r}, but {name_of(thing)} has none: {_see(protocol)}")


def check_call(kind: str, thing: Any, argument: str) -> None:
    """Refuses what cannot be called with one argument.

    Raises:
        ValueError: If it is not callable, or wants another number of arguments.
    """
    if not callable(thing):
        raise ValueError(f"a {kind} must be called as ({argument}), but {name_of(thing)} is no function: pass one")
    try:
        inspect.signature(thing).bind(None)
    except TypeError:
        got = _parameters(inspect.signature(thing))
        raise ValueError(f"a {kind} is called as ({argument}), but {name_of(thing)} takes {got}: correct it") from None
    except ValueError:
        return  # written in C, and silent about its arguments


def _check_method(kind: str, thing: Any, name: str, protocol: type) -> None:
    of_class = isinstance(thing, type)
    arguments = list(inspect.signature(getattr(protocol, name)).parameters.values())[1:]
    called = f"{'' if name == '__call__' else name}({', '.join(one.name for one in arguments)})"
    own = vars_of(thing).get(name) if of_class else getattr(thing, name, None)
    if not callable(own):
        raise ValueError(
            f"a {kind} needs the method {name}, called as {called}, but {name_of(thing)} has none: {_see(protocol)}"
        )
    try:
        signature = inspect.signature(thing if name == "__call__" and not of_class else own)
    except (TypeError, ValueError):
        return  # written in C, and silent about its arguments
    try:
        keywords = {one.name: None for one in arguments if one.kind is one.KEYWORD_ONLY}
        signature.bind(*[None] * (len(arguments) - len(keywords) + of_class), **keywords)
    except TypeError:
        raise ValueError(
            f"a {kind} is called as {called}, but {name} of {name_of(thing)} takes {_parameters(signature)}: "
            f"{_see(protocol)}"
        ) from None


def vars_of(kind: type) -> dict[str, Any]:
    """What a class and those that it extends define, `object` and its metaclass apart."""
    return {name: value for base in reversed(kind.__mro__[:-1]) for name, value in vars(base).items()}


def _parameters(signature: inspect.Signature) -> str:
    return f"({', '.join(name for name in signature.parameters if name != 'self')})"


def _see(protocol: type) -> str:
    return f"see {protocol.__module__}.{protocol.__name__} and docs/extending.md"
