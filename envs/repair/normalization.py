"""Batch normalization around a layer: what it multiplies outputs by, what it takes up, its statistics re-estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from envs.network.inputs import Inputs, batch_size, call, rows
from envs.network.kinds import BATCH_NORMS
from envs.regression.rows import as_weight


def output_scales(network: nn.Module, folds: Mapping[str, str]) -> dict[str, Tensor]:
    """[O] |scale| that the batch normalization alone reading a layer gives each of its outputs, by layer."""
    scales: dict[str, Tensor] = {}
    for name, reader in folds.items():
        norm = network.get_submodule(reader)
        if isinstance(norm, BATCH_NORMS) and norm.running_var is not None:
            scale = (norm.running_var + norm.eps).rsqrt()
            scales[name] = scale if norm.weight is None else scale * norm.weight.detach().abs()
    return scales


def normalization_behind(network: nn.Module, folds: Mapping[str, str], name: str) -> str | None:
    """The batch normalization with statistics that alone reads a layer, and so can take up a shift of its output.

    Args:
        network: Holds both.
        folds: Module -> the module that alone reads it (`Graph.folds`).
        name: The layer.
    """
    reader = folds.get(name)
    if reader is None:
        return None
    module = network.get_submodule(reader)
    return reader if isinstance(module, BATCH_NORMS) and module.running_mean is not None else None


def takes_shift(network: nn.Module, folds: Mapping[str, str], name: str) -> bool:
    """Whether a shift of a layer's output can be written anywhere; arguments as in `normalization_behind`."""
    has_bias = isinstance(getattr(network.get_submodule(name), "bias", None), Tensor)
    return has_bias or normalization_behind(network, folds, name) is not None


def write_fit(network: nn.Module, name: str, normalization: str | None, weights: Tensor, shift: Tensor) -> None:
    """Puts fitted weights into a layer, and the shift of its output into its bias or its normalization.

    Args:
        network: The sliced network, changed in place (with new tensors).
        name: The layer.
        normalization: Batch normalization that alone reads the layer, if any.
        weights: [G, n, o] as in `weight_rows`.
        shift: [O] to add to the output.
    """
    layer = network.get_submodule(name)
    old: nn.Parameter = layer.weight  # type: ignore[assignment]
    layer.weight = nn.Parameter(as_weight(layer, weights), requires_grad=old.requires_grad)
    bias = getattr(layer, "bias", None)
    if isinstance(bias, nn.Parameter):
        layer.bias = nn.Parameter((bias.detach() + shift).to(bias.dtype), requires_grad=bias.requires_grad)
    elif normalization is not None:
        module = network.get_submodule(normalization)
        mean: Tensor = module.running_mean  # type: ignore[assignment]
        module.running_mean = (mean - shift).to(mean.dtype)


def reestimate_batch_norm(network: nn.Module, chunks: Sequence[Inputs], images: int) -> int:
    """Replaces batch-norm statistics by those of calibration images, in place; returns image-forwards.

    Args:
        network: A network whose buffers are its own or shared; new ones are assigned.
        chunks: Calibration inputs.
        images: Images to use at most.
    """
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        mean: Tensor = norm.running_mean  # type: ignore[assignment]
        norm.running_mean = torch.zeros_like(mean)
        norm.running_var = torch.ones_like(mean)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=mean.device)
        norm.momentum, norm.training = None, True  # cumulative average
    used = 0
    with torch.no_grad():
        for chunk in chunks:
            if used >= images:
                break
            call(network, rows(chunk, 0, images - used))
            used += min(batch_size(chunk), images - used)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.training = momentum, False
    return used
