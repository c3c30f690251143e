"""The weights that training begins with, where they lie, and the same network with fewer channels later on."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agents.searcher import keyed_seed
from envs.space.policy import Policy
from envs.units.branches.branch import constant_of, cut_constants, is_gone, without_branches
from envs.units.slicing import Axes, kept_axes, slice_axes


def initialized(network: nn.Module, seed: int) -> nn.Module:
    """A copy with random weights, each module's by its own `reset_parameters`.

    Raises:
        ValueError: If a parameter belongs to a module that has none.
    """
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "finetune scratch", 0))
        for name, module in fresh.named_modules():
            own = [key for key, _ in module.named_parameters(recurse=False)]
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if own and reset is None:
                raise ValueError(
                    f"init scratch needs reset_parameters() in every module, but {name or 'the network'!r} with "
                    f"{own[0]!r} has none: add it, or begin with init inherited"
                )
            if own and reset is not None:
                reset()
    return fresh


def rewound(policy: Policy, early: nn.Module) -> nn.Module:
    """The found widths on the weights of an early checkpoint (Renda et al., ICLR 2020: weight rewinding)."""
    return policy.apply(early, check_weights=False)


def placed(network: nn.Module, device: str, *, channels_last: bool) -> nn.Module:
    """The network itself on a device, with its tensors of four axes in the layout that convolutions are fast in.

    `Module.to(memory_format=torch.channels_last)` refuses tensors of five axes, which a Conv3d has.

    Args:
        network: Changed in place.
        device: Where it trains.
        channels_last: Whether it runs on channels-last images; else its tensors stay as they lie.
    """
    network.to(device)
    images = (tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.ndim == 4)
    for tensor in images if channels_last else ():
        tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


def sliced(
    network: nn.Module,
    dense: nn.Module,
    policy: Policy,
    before: Mapping[str, tuple[int, ...]],
    after: Mapping[str, tuple[int, ...]],
) -> nn.Module:
    """A network of one stage with the channels of a later stage; the policy's branches are gone from the first one on.

    Args:
        network: With the channels `before`; it is not changed.
        dense: In whose numbering channels are given.
        policy: Whose units they belong to.
        before: Unit name -> channels that the network has.
        after: Unit name -> channels that stay, each a part of those before.
    """
    units = [entry.unit for entry in policy.units]
    old, new = kept_axes(dense, units, before), kept_axes(dense, units, after)
    relative = {name: _relative(old.get(name, Axes()), axes) for name, axes in new.items()}
    there = [branch for branch in policy.branches if constant_of(network, branch) is None]
    small = slice_axes(network, {name: axes for name, axes in relative.items() if not is_gone(network, name)})
    cut_constants(small, policy.branches, relative)
    return copy.deepcopy(without_branches(small, there))


def _relative(held: Axes, stays: Axes) -> Axes:
    """What stays of a module, in the numbering of what it holds."""
    tables = dict(stays.tables)
    for name, (axis, kept) in held.tables.items():
        tables[name] = (axis, torch.searchsorted(kept, tables[name][1]))
    return Axes(
        _places(held.inputs, stays.inputs), _places(held.outputs, stays.outputs), numbers=stays.numbers, tables=tables
    )


def _places(held: Tensor | None, stays: Tensor | None) -> Tensor | None:
    """Where positions that stay are among those held (ascending); None: all."""
    return stays if held is None or stays is None else torch.searchsorted(held, stays)
