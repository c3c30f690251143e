"""What a module is called with in a network, and calling it so again."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from envs.network.copies import copy_network, in_mode
from envs.network.inputs import Inputs, call


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a module is called with.

    Attributes:
        args: By place.
        kwargs: By name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies: a cache of keys and values that a module writes to is as it was, the next time."""
        return deepcopy((self.args, dict(self.kwargs)))

    def call(self, module: nn.Module) -> Any:
        """What a module gives."""
        args, kwargs = self.arguments()
        with torch.no_grad():
            return module(*args, **kwargs)


def given_to(network: nn.Module, name: str, example_input: Inputs) -> Given | None:
    """What a module is called with before it changes any of it, None where it is not called once.

    Args:
        network: The network; it is not changed.
        name: Of the module.
        example_input: Input of batch 1.
    """
    twin = in_mode(copy_network(network))
    taken: list[Given] = []
    twin.get_submodule(name).register_forward_pre_hook(
        lambda module, args, kwargs: taken.append(Given(*deepcopy((args, kwargs)))), with_kwargs=True
    )
    with torch.no_grad():
        call(twin, example_input)
    return taken[0] if len(taken) == 1 else None


def scope(owner: str, out: str) -> str:
    """The module nearest to an attention's own that holds the layer that reads what its heads give, too.

    Args:
        owner: Name of the module in whose forward the attention stands.
        out: Name of that layer.
    """
    while owner and not out.startswith(f"{owner}."):
        owner = owner.rpartition(".")[0]
    return owner
