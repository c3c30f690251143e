"""Copies of networks that share their tensors, and whether two outputs agree."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from envs.network.inputs import Inputs, call, channels_last, tensors

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copy_network(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter and buffer with `network` (a few ms, no data moves)."""
    known: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    # A module has a dozen empty dictionaries, most for hooks, which would take half of deepcopy's time.
    empty = (v for m in network.modules() for v in vars(m).values() if type(v) in (dict, OrderedDict) and not v)
    known |= {id(value): value.copy() for value in empty}
    computed = (v for m in network.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf)
    known |= {id(value): value for value in computed}  # such as the weights of torch's older weight_norm
    return copy.deepcopy(network, known)


def in_mode(network: AnyModule, *, training: bool = False) -> AnyModule:
    """The network itself, set to a mode: `train` and `eval` of people's own classes may return nothing."""
    network.train(training)
    return network


def functional_copy(network: nn.Module) -> nn.Module:
    """`copy_network` in eval mode whose activations do not work in place, so that every value can be kept."""
    twin = in_mode(copy_network(network))
    for module in twin.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return twin


def make_channels_last(network: nn.Module) -> None:
    """Gives 2-D convolutions channels-last weights of their own, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and "weight" in dict(module.named_parameters(recurse=False)):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)


def runs_channels_last(network: nn.Module, example_input: Inputs, expected: Any) -> bool:
    """Whether the network gives the expected output on channels-last images, too."""
    images = any(tensor.ndim == 4 for tensor in tensors(example_input))
    if not images and not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return True
    fast = copy_network(network)
    make_channels_last(fast)
    try:
        with torch.no_grad():
            got = call(fast, channels_last(example_input))
        return same_output(expected, got, tolerance=1e-3)
    except RuntimeError:  # "view size is not compatible with input tensor's size and stride"
        return False


def same_output(expected: Any, got: Any, tolerance: float) -> bool:
    """Whether two outputs (tensors or structures of them) agree relative to the largest expected value."""
    wanted, found = tree_leaves(expected), tree_leaves(got)
    if not wanted or len(wanted) != len(found):
        return False
    return all(_close(a, b, tolerance) for a, b in zip(wanted, found, strict=True))


def _close(expected: Any, got: Any, tolerance: float) -> bool:
    if not (isinstance(expected, Tensor) and isinstance(got, Tensor)):
        return type(expected) is type(got) and bool(expected == got)
    if expected.shape != got.shape:
        return False
    if torch.equal(expected, got):  # as most are that are compared, and much faster than the rest
        return True
    a, b = expected.detach().double(), got.detach().double()
    finite = a[a.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    differences = (a - b).abs()[a != b]  # equal infinities have no difference
    return not differences.numel() or float(differences.max()) <= tolerance * max(largest, 1e-12)
