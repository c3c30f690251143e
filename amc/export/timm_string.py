"""A pruned network as the text from which timm makes its own pruned architectures.

timm's `adapt_model_from_string(dense, text)` (timm/models/_prune.py) gives convolutions, batch normalization and the
classifier of a dense model new sizes: "name.weight:[shape]" for every weight, joined by "***". It takes every grouped
convolution for a depthwise one, and gives linear layers new inputs only.
"""

from __future__ import annotations

from torch import nn

from envs.space.policy import Policy

SEPARATOR = "***"


def timm_string(network: nn.Module, policy: Policy) -> str:
    """The text of a network that timm can make of the dense one.

    Args:
        network: The network found, or fine-tuned.
        policy: Its policy.

    Raises:
        ValueError: If the policy changes a layer that timm's text cannot say; names it.
    """
    for entry in policy.units:
        if len(entry.indices) == entry.unit.channels:
            continue
        for member in entry.unit.members:
            module = network.get_submodule(member.module)
            if reason := _unsaid(module, member.role):
                raise ValueError(
                    f"timm's text gives new sizes to convolutions, batch normalization and a classifier's inputs, but "
                    f"the policy changes {member.module!r}, {reason}: load the network by `amc.load`"
                )
    weights = {name: one for name, one in network.state_dict().items() if name.endswith("weight")}
    return SEPARATOR.join(f"{name}:{list(one.shape)}" for name, one in weights.items())


def _unsaid(module: nn.Module, role: str) -> str:
    """Why a changed layer cannot be said, "" if it can."""
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups in (1, module.in_channels) and (module.groups == 1 or module.weight.shape[1] == 1)
        return "" if depthwise else f"a convolution of {module.groups} groups"
    if isinstance(module, nn.BatchNorm2d):
        return ""
    if isinstance(module, nn.Linear) and role == "consumer":
        return ""
    return f"a {type(module).__name__}" + (" with fewer outputs" if isinstance(module, nn.Linear) else "")
