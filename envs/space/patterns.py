"""Sparsity patterns on real weights: which layers may take one, which weights go by a score, whether they are gone.

Groups of an N:M pattern run along the input channels, for a fixed output channel and kernel position, as NVIDIA's
tools prune (Mishra et al., Accelerating Sparse Deep Neural Networks, 2021). `verify` reads nothing but the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from envs.network.graph import Graph
from envs.regression.rows import as_weight, can_gather, kernel_size, weight_of, weight_rows
from hw_profiles.layers import LayerShape
from hw_profiles.patterns import DENSE, Pattern, parse_pattern


class PatternMismatch(ValueError):
    """A weight does not keep to its pattern."""


def refusal(layer: LayerShape, pattern: Pattern) -> str:
    """Why a layer of this shape cannot take the pattern, or ''."""
    if pattern.dense:
        return ""
    if layer.kind not in ("conv", "linear"):
        return f"a {layer.kind} operator has no pattern"
    inputs = layer.in_channels // layer.groups
    if not pattern.structured:
        weights = inputs * layer.out_channels * prod(layer.kernel)
        return "" if pattern.allowed(weights) else f"{pattern} of {weights} weights leaves none"
    if inputs < pattern.group:
        return f"it reads {inputs} channels per group, fewer than the {pattern.group} of {pattern}"
    if inputs % pattern.group:
        return f"it reads {inputs} channels per group, no multiple of the {pattern.group} of {pattern}"
    return ""


def unfit(network: nn.Module, graph: Graph, name: str) -> str:
    """Why a layer cannot take any pattern, whatever its shape, or ''."""
    module = dict(network.named_modules()).get(name)
    if module is None:
        return "it is a further call of another layer"
    if not can_gather(module):
        return f"{type(module).__name__} has no pattern"
    if graph.calls().get(name, 1) > 1:
        return "it is called more than once in a forward pass"
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own:
        return "it computes its weight from other parameters"
    if sum(other is own["weight"] for _, other in network.named_parameters(remove_duplicate=False)) > 1:
        return "it shares its weight with another layer"
    if graph.program is not None and any(
        node.op == "get_attr" and node.target == f"{name}.weight" for node in graph.program.nodes
    ):
        return "forward reads its weight elsewhere, too"
    return ""


def grouped(rows: Tensor, pattern: Pattern, kernel: int) -> Tensor:
    """[G, n / M, M, o] view of [G, n, o] rows (channel-major, as `weight_rows`): one N:M group per row of M."""
    split = rows.reshape(len(rows), -1, pattern.group, kernel, rows.shape[2])  # [G, channels / M, M, k, o]
    return split.transpose(2, 3).reshape(len(rows), -1, pattern.group, rows.shape[2])


def ungrouped(groups: Tensor, kernel: int) -> Tensor:
    """Inverse of `grouped`: [G, n, o]."""
    count, blocks, size, outputs = groups.shape
    split = groups.reshape(count, blocks // kernel, kernel, size, outputs)
    return split.transpose(2, 3).reshape(count, -1, outputs)


def best_mask(scores: Tensor, pattern: Pattern, kernel: int) -> Tensor:
    """[G, n, o] bool: the weights of highest score that the pattern lets stay; the first ones on a tie.

    Args:
        scores: [G, n, o] in the order of `weight_rows`, without NaN.
        pattern: N:M (in every group of M), or a density (over the whole layer).
        kernel: Kernel positions per input channel.
    """
    if pattern.dense:
        return torch.ones_like(scores, dtype=torch.bool)
    if not pattern.structured:
        keep = pattern.allowed(scores.numel())
        order = torch.sort(scores.flatten(), descending=True, stable=True).indices
        flat = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        flat[order[:keep]] = True
        return flat.view_as(scores)
    groups = grouped(scores, pattern, kernel)
    order = torch.sort(groups, dim=2, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(2, order[:, :, : pattern.keep], True)
    return ungrouped(mask, kernel)


def mask_by_magnitude(module: nn.Module, pattern: Pattern) -> None:
    """Zeroes the smallest weights of one layer, in place (with a new tensor)."""
    rows = weight_rows(module)
    kept = as_weight(module, rows * best_mask(rows.abs(), pattern, kernel_size(module)))
    module.weight = nn.Parameter(kept, requires_grad=module.weight.requires_grad)  # type: ignore[arg-type]


def verify(weight: Tensor, pattern: Pattern, *, groups: int = 1, what: str = "a weight") -> None:
    """Checks a weight as it is stored against its pattern, by a way of its own.

    Args:
        weight: [O, I / groups, ...] of a convolution, or [O, I] of a linear layer.
        pattern: What it should keep to.
        groups: Groups of the convolution (for the message only: a group's inputs stand in the second axis).
        what: Name for the message.

    Raises:
        PatternMismatch: If some group of M holds more than N values, more weights than the density differ from
            zero, the inputs are no multiple of M, or a value is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise PatternMismatch(f"every weight must be finite, but {what} holds inf or NaN: compress the network again")
    alive = weight.detach() != 0
    if pattern.dense:
        return
    if not pattern.structured:
        allowed = pattern.allowed(weight.numel())
        if int(alive.sum()) > allowed:
            raise PatternMismatch(
                f"at most {allowed} of {weight.numel()} weights may differ from zero under {pattern}, but "
                f"{int(alive.sum())} do in {what}: compress the network again"
            )
        return
    inputs = weight.shape[1]
    if inputs % pattern.group:
        raise PatternMismatch(
            f"the inputs per group must be a multiple of {pattern.group} under {pattern}, but {what} has {inputs} "
            f"(in {groups} groups): leave the layer dense, or keep another number of channels"
        )
    held = sum(alive[:, start :: pattern.group].to(torch.int32) for start in range(pattern.group))
    worst = int(held.max()) if isinstance(held, Tensor) and held.numel() else 0
    if worst > pattern.keep:
        raise PatternMismatch(
            f"at most {pattern.keep} of {pattern.group} consecutive inputs may differ from zero under {pattern}, but "
            f"{worst} do in {what}: compress the network again"
        )


def verify_network(network: nn.Module, patterns: Mapping[str, str]) -> None:
    """Checks every layer's weight against its pattern (`Policy.patterns`).

    Raises:
        PatternMismatch: For the first layer that does not keep to its pattern, or is not there.
    """
    modules = dict(network.named_modules())
    for name, text in patterns.items():
        pattern = parse_pattern(text)
        module = modules.get(name)
        if pattern.dense:
            continue
        if module is None or not can_gather(module):
            raise PatternMismatch(f"a pattern needs a convolution or linear layer, but {name!r} is none: use dense")
        verify(weight_of(module), pattern, groups=int(getattr(module, "groups", 1)), what=repr(name))


def tightest(weight: Tensor) -> Pattern:
    """The tightest of the usual patterns that a weight of unknown making keeps to, dense if none."""
    for pattern in (Pattern(keep=1, group=4), Pattern(keep=2, group=4), Pattern(keep=4, group=8)):
        try:
            verify(weight, pattern)
        except PatternMismatch:
            continue
        return pattern
    return DENSE
