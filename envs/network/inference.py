"""A copy of a network made fast for scoring: batch norm folded into convolutions, weights channels-last."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._pytree import tree_map

from envs.network.copies import copy_network, functional_copy, make_channels_last
from envs.network.graph import Graph
from envs.network.kinds import BATCH_NORMS
from envs.network.probe import is_plain


class Twins(NamedTuple):
    """A network and its fast copy, with which a copy of another network can share what the two have in common."""

    network: nn.Module
    fast: nn.Module


def inference_copy(network: nn.Module, graph: Graph, like: Twins | None = None) -> nn.Module:
    """A copy in eval mode that gives the same outputs (up to rounding) in less time.

    Args:
        network: The network that `graph` was traced from, or one sliced from it, maybe without some branches; it is not
            changed.
        graph: Tells which normalization alone reads which layer.
        like: A network whose tensors this one shares but for a few layers, and its fast copy: no layer that is the same
            is made again.
    """
    fast = functional_copy(network)
    there = {name for name, _ in network.named_modules()}
    for name, reader in graph.folds().items():
        if not there.issuperset((name, reader)):
            continue  # gone with the branch that they were in
        fused = _shared(network, like, name, reader) or folded(network, name, reader)
        if fused is not None:
            layer = fast.get_submodule(name)
            layer.weight, layer.bias = fused
            fast.set_submodule(reader, nn.Identity())
    if graph.channels_last:
        make_channels_last(fast)
    else:
        fast.register_forward_pre_hook(
            lambda module, args, kwargs: tree_map(_contiguous, (args, kwargs)), with_kwargs=True
        )
    return fast


def _shared(network: nn.Module, like: Twins | None, name: str, reader: str) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Folded weight and bias of the fast copy that `like` has, if layer and normalization are the very same there."""
    if like is None or not isinstance(like.fast.get_submodule(reader), nn.Identity):
        return None
    if not isinstance(like.network.get_submodule(reader), BATCH_NORMS):
        return None  # the network's own nn.Identity: nothing was folded
    for part in (name, reader):
        ours, theirs = (
            [*m.parameters(), *m.buffers()] for m in (n.get_submodule(part) for n in (network, like.network))
        )
        if len(ours) != len(theirs) or not all(a is b for a, b in zip(ours, theirs, strict=True)):
            return None
    layer = like.fast.get_submodule(name)
    return layer.weight, layer.bias  # type: ignore[return-value]


def folded(network: nn.Module, name: str, reader: str) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Weight and bias of a layer with the batch normalization that alone reads it; None where that cannot be.

    Args:
        network: Holds both; it is not changed.
        name: The layer.
        reader: The module that alone reads it.
    """
    layer, norm = network.get_submodule(name), network.get_submodule(reader)
    if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
        return None
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        return None  # computed from other parameters (weight normalization)
    if not is_plain(layer):
        return None  # its class computes something else from weight and bias
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        fuse = fuse_conv_bn_weights
    elif isinstance(layer, nn.Linear):
        fuse = fuse_linear_bn_weights  # type: ignore[assignment]
    else:
        return None
    with torch.no_grad():
        return fuse(
            layer.weight,
            layer.bias,
            norm.running_mean,
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            norm.weight,
            norm.bias,
        )


def converted(network: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
    """Gives a copy that shares tensors with its original tensors of its own, elsewhere or in another precision.

    `Module.to` would change the shared parameters in place, and so the original.

    Args:
        network: The copy, changed in place.
        device: Where its tensors go.
        dtype: What floating-point tensors become, None to leave them.
    """
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            tensor = value.detach().to(device, dtype if value.is_floating_point() else None)
            setattr(
                module, name, nn.Parameter(tensor, requires_grad=False) if isinstance(value, nn.Parameter) else tensor
            )
    return network


def placed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """The network on a device: itself where it is there already, else a copy."""
    here = {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}
    return network if here <= {torch.device(device).type} else converted(copy_network(network), device)


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
