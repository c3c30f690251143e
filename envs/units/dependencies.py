"""Groups of channels that depend on each other, from Torch-Pruning's dependency graph.

The graph is Torch-Pruning's; it is walked here, so that one layer whose channels it loses does not cost the others.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from envs.network.copies import functional_copy
from envs.network.graph import Graph
from envs.network.inputs import Inputs, call
from envs.network.interpreter import run
from envs.network.kinds import WEIGHTED
from envs.units.fates import fate
from envs.units.islands import Island
from envs.units.verification.culprit import first_line

ARRIVALS = 256
"""Largest number of different sets of channels with which a walk reaches one axis: beyond, it would go on for hours."""


class Item(NamedTuple):
    """One axis that a group holds.

    Attributes:
        name: Name of the module, or of the parameter.
        axis: "in", "out" or "parameter".
        positions: Positions on the axis.
        roots: For each position the channel of the group's first layer that it belongs to.
    """

    name: str
    axis: str
    positions: list[int]
    roots: list[int]


class _Index(NamedTuple):
    idx: int
    root_idx: int


def channel_groups(
    network: nn.Module, example_input: Inputs, graph: Graph, taken: Collection[str] = ()
) -> tuple[list[list[Item]], dict[str, str]]:
    """Groups of axes, each with its root's output first, and the layers whose channels are lost, with the reason.

    Args:
        network: The network; it is not changed.
        example_input: Input of batch 1.
        graph: Its operator graph.
        taken: Layers that no group begins at: a walk through the operators of an attention takes long.
    """
    twin = _differentiable(network)
    names: dict[Any, str] = {module: name for name, module in twin.named_modules()}
    names |= {parameter: name for name, parameter in twin.named_parameters()}
    layers = [module for module in twin.modules() if isinstance(module, WEIGHTED)]
    groups: list[list[Item]] = []
    lost: dict[str, str] = {}
    visited: set[Any] = set()
    try:
        dependencies = _dependencies(twin, example_input, graph)
    except Exception as error:  # whatever Torch-Pruning raises
        lost = dict.fromkeys(map(names.__getitem__, layers), f"Torch-Pruning cannot read it ({first_line(error)})")
        return _by_graph(network, graph, lost)
    for module in (one for one in dependencies.module2node if isinstance(one, WEIGHTED)):
        skipped = module in visited or names[module] in taken
        if skipped or dependencies.get_pruner_of_module(module) is None:
            continue
        try:
            group = _walk(dependencies, module, _longest(layers))
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError):  # an arrangement unknown to it
            lost[names[module]] = fate(graph, [names[module]])
            continue
        visited |= {one.holder for one in group if one.axis == "out"}
        groups.append([Item(names[o.holder], o.axis, o.positions, o.roots) for o in group if o.holder in names])
    found, lost = _by_graph(network, graph, lost)
    return groups + found, lost


def _by_graph(network: nn.Module, graph: Graph, lost: dict[str, str]) -> tuple[list[list[Item]], dict[str, str]]:
    """Groups of layers that Torch-Pruning loses, as far as the operator graph alone tells, and those still lost."""
    groups: list[list[Item]] = []
    still: dict[str, str] = {}
    held: set[str] = set()
    for name, reason in lost.items():
        if name in held:
            continue
        island = Island(graph, network, name)
        if not island.closed or not island.producers.keys() <= lost.keys():
            still[name] = fate(graph, [name]) if graph.program is not None and name in graph.order() else reason
            continue
        layer = network.get_submodule(name)
        channels = list(range(int(getattr(layer, "out_features", 0) or getattr(layer, "out_channels", 0))))
        first = dict.fromkeys([name, *island.producers, *island.carriers])
        groups.append(
            [
                *(Item(one, "out", channels, channels) for one in first),
                *(Item(one, "in", channels, channels) for one in island.consumers),
            ]
        )
        held |= island.producers.keys()
    return groups, still


def _differentiable(network: nn.Module) -> nn.Module:
    """A copy that autograd can follow."""
    twin = functional_copy(network)
    for name, parameter in list(twin.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        fresh = nn.Parameter(parameter.detach(), requires_grad=parameter.is_floating_point())
        setattr(twin.get_submodule(owner), leaf, fresh)
    return twin


def _dependencies(network: nn.Module, example_input: Inputs, graph: Graph) -> tp.DependencyGraph:
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        dependencies = tp.DependencyGraph().build_dependency(
            network, example_input, lambda module, inputs: _all_outputs(module, inputs, graph), verbose=False
        )
        tp.dependency.index_mapping.update_index_mapping(dependencies)
    return dependencies


def _all_outputs(network: nn.Module, inputs: Inputs, graph: Graph) -> list[Tensor]:
    """What a forward pass computes, also where nothing reads it: shapes must fit there, too."""
    if graph.program is None:
        ends = call(network, inputs)
    else:
        ends = [value for node, value in run(graph.program, network, inputs) if not node.users]
    return [end for end in tree_leaves(ends) if isinstance(end, Tensor) and end.grad_fn is not None]


def _longest(layers: Sequence[nn.Module]) -> int:
    """The longest axis of any layer: no channel can have more places."""
    weights = [layer.weight for layer in layers]
    return max(max(len(weight), weight[0].numel()) for weight in weights if isinstance(weight, Tensor))


class _Held(NamedTuple):
    """The axis of one module or parameter that a walk has reached; fields as in `Item`."""

    holder: Any
    axis: str
    positions: list[int]
    roots: list[int]


def _walk(dependencies: tp.DependencyGraph, root: nn.Module, longest: int) -> list[_Held]:
    """All axes that depend on a layer's output channels.

    Raises:
        ValueError: If a channel has more places than any layer, or an axis is reached with ever other channels, as
            behind halves that change places (rotary positions): the walk has lost it, and might never end.
    """
    pruner = dependencies.get_pruner_of_module(root)
    indices: Sequence[Any] = [_Index(k, k) for k in range(pruner.get_out_channels(root))]
    start = (dependencies.module2node[root], pruner.prune_out_channels)
    places: dict[tuple[Any, Any], dict[int, int]] = {start: {index.idx: index.root_idx for index in indices}}
    seen, waiting = {(*start, frozenset(indices))}, [(*start, indices)]
    arrivals: Counter[tuple[Any, Any]] = Counter()
    while waiting:
        node, handler, here = waiting.pop()
        for step in (step for step in node.dependencies if step.is_triggered_by(handler)):
            indices = here
            for mapping in (mapping for mapping in step.index_mapping if mapping is not None):
                indices = mapping(indices)
                if len(indices) > longest:
                    raise ValueError(f"{len(indices)} places")
            reached = (step.target, step.handler)
            if indices and (*reached, frozenset(indices)) not in seen:
                seen.add((*reached, frozenset(indices)))
                waiting.append((*reached, indices))
                arrivals[reached] += 1
                if arrivals[reached] > ARRIVALS:
                    raise ValueError(f"{arrivals[reached]} sets of channels")
                known = places.setdefault(reached, {})
                for index in indices:
                    known.setdefault(index.idx, index.root_idx)
    return [
        _Held(node.module, _axis(dependencies, node.module, handler), list(held), list(held.values()))
        for (node, handler), held in places.items()
    ]


def _axis(dependencies: tp.DependencyGraph, module: Any, handler: Any) -> str:
    if isinstance(module, nn.Parameter):
        return "parameter"
    return "out" if dependencies.is_out_channel_pruning_fn(handler) else "in"  # depthwise: one axis is both
