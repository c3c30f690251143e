"""A rival: Kwon et al., A Fast Post-Training Pruning Framework for Transformers (NeurIPS 2022), from its description.

Masks of heads and neurons are found in three steps: search by the diagonal of the empirical Fisher information under a
budget of multiply-accumulates (section 4.1, algorithm 1), rearrangement within each layer by its block (section 4.2),
and tuning of what stays to real numbers by least squares, layer by layer (section 4.3).

Deviations: every layer keeps one head and one neuron, because an attention without heads is none of ours; tuning solves
the normal equations with a small ridge toward 1 in place of LSMR with damping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.tasks.batches import Batch
from envs.network.copies import copy_network, functional_copy
from envs.network.inputs import call
from envs.regression.rows import weight_of
from envs.units.units import Unit
from experiments.transformers.minilm import SentenceEncoder

FloatArray = NDArray[np.float64]
Kept = dict[str, list[int]]
"""Unit -> channels (heads or neurons) that stay, ascending."""
Losses = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets of a batch -> [B] loss of each sample."""
TUNING_RIDGE = 1e-2
"""Penalty on (mask - 1)^2 relative to the mean diagonal of the normal equations."""


def mask_gradients(
    network: nn.Module, units: Sequence[Unit], batches: Sequence[Batch], losses: Losses
) -> dict[str, FloatArray]:
    """[N, C] gradient of each sample's loss by the mask of each head or neuron, which are 1.

    Args:
        network: The dense network.
        units: Heads and neurons; each has one layer that reads them.
        batches: Inputs and targets.
        losses: What the network was trained for.
    """
    twin = functional_copy(network)
    readers = {unit.name: unit.role("consumer")[0] for unit in units}
    masks: dict[str, Tensor] = {}

    def masked(name: str) -> Callable[..., tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = inputs[0]
            masks[name] = torch.ones(len(x), x.shape[-1], requires_grad=True)
            return (x * masks[name].view(len(x), *[1] * (x.ndim - 2), -1),)

        return hook

    for name, member in readers.items():
        twin.get_submodule(member.module).register_forward_pre_hook(masked(name))
    found: dict[str, list[Tensor]] = {unit.name: [] for unit in units}
    for inputs, targets in batches:
        with torch.enable_grad():
            total = losses(call(twin, inputs), targets).sum()
        gradients = torch.autograd.grad(total, [masks[unit.name] for unit in units])
        for unit, gradient in zip(units, gradients, strict=True):
            found[unit.name].append(gradient[:, torch.tensor(readers[unit.name].positions)].sum(dim=2))
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def search_masks(fisher: Mapping[str, FloatArray], costs: Mapping[str, float], budget: float) -> Kept:
    """Algorithm 1: the number of heads is tried, neurons take what is left, and the least information is lost.

    Args:
        fisher: [C] diagonal of each unit.
        costs: Multiply-accumulates of one channel of each unit; two kinds, those of heads and of neurons.
        budget: What all channels together may cost.
    """
    kinds = sorted(set(costs.values()), reverse=True)
    if len(kinds) != 2:
        raise ValueError(f"heads and neurons must have one cost each, but there are {len(kinds)} costs: {kinds}")
    ranked = [_ranked({name: one for name, one in fisher.items() if costs[name] == kind}) for kind in kinds]
    kept_sums = [np.concatenate([[0.0], np.cumsum([score for score, _, _ in order])]) for order in ranked]
    least = len(fisher) // 2  # of each kind, one of each layer
    best, counts = -np.inf, (0, 0)
    for heads in range(least, len(ranked[0]) + 1):
        neurons = min(len(ranked[1]), int((budget - heads * kinds[0]) // kinds[1]))
        if neurons >= least and kept_sums[0][heads] + kept_sums[1][neurons] > best:
            best, counts = kept_sums[0][heads] + kept_sums[1][neurons], (heads, neurons)
    if not any(counts):
        raise ValueError(f"the budget must leave each layer one head and one neuron, but is {budget:g}: raise it")
    kept: Kept = {name: [] for name in fisher}
    for order, count in zip(ranked, counts, strict=True):
        for _, name, channel in order[:count]:
            kept[name].append(channel)
    return {name: sorted(channels) for name, channels in kept.items()}


def _ranked(fisher: Mapping[str, FloatArray]) -> list[tuple[float, str, int]]:
    """(information, unit, channel) of all channels: the best of each unit first, then by falling information."""
    first = {name: int(one.argmax()) for name, one in fisher.items()}
    every = [(float(value), name, k) for name, one in fisher.items() for k, value in enumerate(one)]
    return sorted(every, key=lambda entry: (first[entry[1]] != entry[2], -entry[0]))


def rearranged(kept: Kept, gradients: Mapping[str, FloatArray]) -> Kept:
    """Within each layer, every channel that goes is exchanged once for the one that stays by which most is won.

    Minimizes (1 - m)' I (1 - m) with the layer's block of the Fisher information (equation 9), warm-started.
    """
    found: Kept = {}
    for name, channels in kept.items():
        rows = gradients[name]
        information = rows.T @ rows / len(rows)
        gone = np.ones(rows.shape[1])
        gone[channels] = 0
        for channel in np.flatnonzero(gone):
            slopes = information @ gone
            change = 2 * (slopes - slopes[channel]) - 2 * information[channel]
            change += information.diagonal() + information[channel, channel]
            change[gone == 1] = np.inf
            partner = int(change.argmin())
            if change[partner] < 0:
                gone[channel], gone[partner] = 0, 1
        found[name] = np.flatnonzero(gone == 0).tolist()
    return found


@torch.no_grad()
def tuned(dense: SentenceEncoder, small: SentenceEncoder, batches: Sequence[Batch], heads: int) -> nn.Module:
    """The masks of what stays, fitted so that each layer's residual stream is the dense one; they go into the weights.

    Args:
        dense: The dense network.
        small: The pruned one; it is not changed.
        batches: Inputs of calibration.
        heads: Width of a head.
    """
    twin = copy_network(small)
    seen = [(inputs["mask"] > 0)[..., None, None, :] for inputs, _ in batches]
    counted = [inputs["mask"].bool() for inputs, _ in batches]
    wanted = [dense.embedded(inputs["ids"]) for inputs, _ in batches]
    own = list(wanted)
    for before, block in zip(dense.blocks, twin.get_submodule("blocks").children(), strict=True):
        for part, reader, norm, width in (("attention", "attention.dense", "norm1", heads), ("", "narrow", "norm2", 1)):
            targets = [x + _branch(before, part, x, mask) for x, mask in zip(wanted, seen, strict=True)]
            _tune(block, part, reader, width, own, targets, seen, counted)
            own = [getattr(block, norm)(x + _branch(block, part, x, m)) for x, m in zip(own, seen, strict=True)]
            wanted = [getattr(before, norm)(x) for x in targets]
    return twin


def _branch(block: nn.Module, part: str, x: Tensor, seen: Tensor) -> Tensor:
    found: Tensor = block.attention(x, seen) if part else block.feed_forward(x)  # type: ignore[operator]
    return found


def _tune(
    block: nn.Module,
    part: str,
    reader: str,
    width: int,
    own: Sequence[Tensor],
    targets: Sequence[Tensor],
    seen: Sequence[Tensor],
    counted: Sequence[Tensor],
) -> None:
    """Fits the masks of one layer (`width` columns each) and scales the weights that read it."""
    layer = block.get_submodule(reader)
    weight = weight_of(layer).double()
    rows: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0]))
    gram, cross = torch.zeros(weight.shape[1], weight.shape[1]).double(), torch.zeros(weight.shape[1]).double()
    for x, target, mask, tokens in zip(own, targets, seen, counted, strict=True):
        lacking = (target - x - _branch(block, part, x, mask))[tokens].double()
        read = rows.pop()[tokens].double()
        gram += (read.T @ read) * (weight.T @ weight)
        cross += ((read.T @ lacking) * weight.T).sum(dim=1)
    hook.remove()
    gram = gram.view(len(cross) // width, width, -1, width).sum(dim=(1, 3))
    penalty = TUNING_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    masks = 1 + torch.linalg.solve(gram + penalty, cross.view(-1, width).sum(dim=1))
    scaled = weight * masks.repeat_interleave(width)
    layer.weight = nn.Parameter(scaled.float(), requires_grad=False)
