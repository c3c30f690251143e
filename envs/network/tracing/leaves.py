"""What stands whole in a program: layers, and tensors that forward makes from nothing."""

from __future__ import annotations

from torch import Tensor, fx, nn

from envs.network.kinds import is_layer


def is_leaf(module: nn.Module, name: str) -> bool:
    """Whether a module is one operator of a program: a layer, or one of torch's own modules.

    Encoders and decoders of torch's are run layer by layer.

    Args:
        module: The module.
        name: Its name in the network.
    """
    if type(module).__module__ == "torch.nn.modules.transformer":
        return False
    return is_layer(module) or fx.Tracer().is_leaf_module(module, name)


def constant(value: Tensor) -> Tensor:
    """A tensor that forward makes from nothing."""
    return value
