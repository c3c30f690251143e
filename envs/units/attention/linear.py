"""Linear layers of other classes than torch's, such as GPT-2's, whose weight lies the other way round.

They are made `nn.Linear` before anything is found, so that slicing, statistics and repair know one class; that they
compute the same is tried on random weights and inputs.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from envs.network.copies import copy_network, in_mode, same_output
from envs.network.kinds import is_layer

TOLERANCE = 1e-4
"""Largest accepted difference relative to the output's largest value."""


def transposed_layers(network: nn.Module) -> list[str]:
    """Names of the layers that compute x W + b with a weight [inputs, outputs] of their own.

    Args:
        network: The network; it is not changed.
    """
    owners = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    return [
        name
        for name, module in network.named_modules()
        if name
        and not is_layer(module)
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())
        and _is_transposed(module)
    ]


def _is_transposed(module: nn.Module) -> bool:
    own = dict(module.named_parameters())
    weight = own.get("weight")
    alone = not any(True for _ in (*module.children(), *module.buffers()))
    if weight is None or weight.ndim != 2 or not own.keys() <= {"weight", "bias"} or not alone:
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor) for name, tensor in own.items()
    }
    twin = in_mode(copy_network(module))
    for name, value in drawn.items():
        setattr(twin, name, nn.Parameter(value, requires_grad=False))
    x = torch.randn(2, 3, weight.shape[0], generator=generator, device="cpu").to(weight)
    with torch.no_grad():
        try:
            got = twin(x)
        except Exception:  # whatever the module's own code raises
            return False
    return same_output(x @ drawn["weight"] + drawn.get("bias", x.new_zeros(())), got, TOLERANCE)


def as_linear(module: nn.Module) -> nn.Linear:
    """The layer of torch's class that computes the same, with a weight of its own and the same bias.

    Args:
        module: One that `transposed_layers` names; it is not changed.
    """
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    if isinstance(bias, Tensor):
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer.train(module.training)
