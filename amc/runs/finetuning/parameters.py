"""What is trained: all parameters, normalization and biases, or low-rank updates beside frozen weights."""

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


def choose(network: nn.Module, config: FinetuneConfig, generator: torch.Generator) -> list[nn.Parameter]:
    """Freezes what is not trained and returns the rest; low-rank updates are added to the network.

    Args:
        network: Changed in place.
        config: What to train.
        generator: Draws the updates.
    """
    if config.parameters == "all":
        return [parameter for parameter in network.parameters() if parameter.requires_grad]
    light = _light(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if config.parameters == "lora":
        for module in [m for m in network.modules() if _weighty(m)]:
            weight = module.get_parameter("weight")
            rank = min(config.rank, weight.shape[0], weight[0].numel())
            parametrize.register_parametrization(module, "weight", LowRank(weight.detach(), rank, generator))
        light += [p for m in network.modules() if isinstance(m, LowRank) for p in (m.down, m.up)]
    for parameter in light:
        parameter.requires_grad_(True)
    return light


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The state of the plain network: low-rank updates are added to the weights they belong to."""
    state = {name: tensor for name, tensor in network.state_dict().items() if "parametrizations." not in name}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            state[f"{name}.weight" if name else "weight"] = module.weight
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _light(network: nn.Module) -> list[nn.Parameter]:
    """Normalization and biases (PERP, section 3: some per mille of the parameters)."""
    found = dict[int, nn.Parameter]()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMALIZATIONS) or name.endswith("bias"):
                found[id(parameter)] = parameter
    return list(found.values())


def _weighty(module: nn.Module) -> bool:
    """Whether a module has a weight matrix of its own that updates of low rank make sense for."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim >= 2 and not isinstance(module, NORMALIZATIONS)
