"""What is trained: all parameters, normalization and biases, or low-rank updates beside frozen weights.

What the user has frozen stays as it is. Only a network without any parameter that requires a gradient is taken as one
that was frozen for inference, and thawed: who asks for its training cannot have meant that nothing is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from amc.runs.finetuning.settings import FinetuneConfig

NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class LowRank(nn.Module):
    """weight + (B A) * mask: an update of low rank that leaves pruned weights zero.

    Hu et al., LoRA, ICLR 2022, equation 3; masked as in Zimmer et al., PERP, 2023 (MaskLoRA), so that it can be merged.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        """Draws A and begins with B = 0, so that nothing changes at first.

        Args:
            weight: [O, ...] the weight that is updated.
            rank: Of the update.
            generator: On the CPU.
        """
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        drawn = torch.randn(rank, columns, generator=generator, device="cpu") / columns**0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=weight.dtype))
        self.register_buffer("mask", (weight != 0).to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight, of the same shape."""
        return weight + (self.up @ self.down).view_as(weight) * self.mask


def thaw(network: nn.Module) -> None:
    """Lets every parameter be trained that can have a gradient, in place."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())


def choose(network: nn.Module, config: FinetuneConfig, generator: torch.Generator) -> list[nn.Parameter]:
    """Freezes what is not trained and returns the rest; low-rank updates are added to the network.

    Args:
        network: Changed in place; what is frozen already stays so.
        config: What to train.
        generator: Draws the updates.

    Raises:
        ValueError: If nothing is left to train.
    """
    if config.parameters == "all":
        chosen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    else:
        chosen = _light_or_lora(network, config, generator)
    if not chosen:
        raise ValueError(
            f"training needs parameters that may change, but with parameters={config.parameters!r} this network has "
            "none that is not frozen: choose others of all, norms and lora, or requires_grad_(True) what is to change"
        )
    return chosen


def _light_or_lora(network: nn.Module, config: FinetuneConfig, generator: torch.Generator) -> list[nn.Parameter]:
    light = _light(network)
    heavy = [module for module in network.modules() if _weighty(module)]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if config.parameters == "lora":
        for module in heavy:
            weight = module.get_parameter("weight")
            rank = min(config.rank, weight.shape[0], weight[0].numel())
            parametrize.register_parametrization(module, "weight", LowRank(weight.detach(), rank, generator))
        light += [p for m in network.modules() if isinstance(m, LowRank) for p in (m.down, m.up)]
    for parameter in light:
        parameter.requires_grad_(True)
    return light


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The state of the plain network: low-rank updates are added to the weights they belong to."""
    state = network.state_dict()
    for name, module in network.named_modules():
        if _updated(module):  # a weight or spectral normalization of the user's own stays what it is
            prefix = f"{name}." if name else ""
            state = {key: one for key, one in state.items() if not key.startswith(f"{prefix}parametrizations.")}
            state[f"{prefix}weight"] = module.weight
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _updated(module: nn.Module) -> bool:
    """Whether a module's weight has an update of low rank."""
    if not parametrize.is_parametrized(module, "weight"):
        return False
    return any(isinstance(one, LowRank) for one in module.parametrizations["weight"])  # type: ignore[index]


def _light(network: nn.Module) -> list[nn.Parameter]:
    """Normalization and biases that are not frozen (PERP, section 3: some per mille of the parameters)."""
    found = dict[int, nn.Parameter]()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and (isinstance(module, NORMALIZATIONS) or name.endswith("bias")):
                found[id(parameter)] = parameter
    return list(found.values())


def _weighty(module: nn.Module) -> bool:
    """Whether a module has a weight matrix of its own, not frozen, that updates of low rank make sense for."""
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, nn.Parameter) and weight.requires_grad and weight.ndim >= 2
    return matrix and not isinstance(module, NORMALIZATIONS)
