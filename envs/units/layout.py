"""The layout of a network as a function of its units' widths, measured on really sliced networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from envs.network.calls import Call, Shape
from envs.network.copies import functional_copy
from envs.network.graph import Graph, Node, record
from envs.network.inputs import Inputs
from envs.units.units import Unit, is_depthwise
from envs.units.verify import Removal
from hw_profiles.layers import WEIGHTED, IntArray, LayerShape, Layout, Widths


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutFamily:
    """All layouts that a network can take: channel counts linear in the units' widths.

    Attributes:
        dense: The layout with every unit at full width.
        units: Names of the units, in site order.
        channels: [U] full widths.
        inputs: [N, U] change of an operator's input channels per channel of a unit.
        outputs: [N, U] the same for output channels.
        depthwise: [N] bool, operators whose groups follow their width.
        products: [N, U] change of an operator's multiply-accumulates beside those of its weight.
    """

    dense: Layout
    units: tuple[str, ...]
    channels: IntArray
    inputs: IntArray
    outputs: IntArray
    depthwise: NDArray[np.bool_]
    products: IntArray

    def widths(self, kept: IntArray, patterns: IntArray | None = None) -> Widths:
        """Channel counts of `K` variants.

        Args:
            kept: [K, U] kept channels per unit.
            patterns: [K, N] `Pattern.code` of each operator, None where all are dense.
        """
        gone = self.channels[None, :] - np.atleast_2d(kept)
        base = self.dense.widths()
        outputs = base.outputs - gone @ self.outputs.T
        groups = np.where(self.depthwise[None, :], outputs, base.groups)
        return Widths(
            inputs=base.inputs - gone @ self.inputs.T,
            outputs=outputs,
            groups=groups,
            patterns=patterns,
            products=self.dense.products(base) - gone @ self.products.T,
        )

    def at(self, kept: IntArray) -> Layout:
        """The layout of one variant; `kept` is [U]."""
        widths = self.widths(kept)
        columns = (widths.inputs[0], widths.outputs[0], widths.groups[0], self.dense.products(widths)[0])
        layers = tuple(
            replace(layer, in_channels=int(i), out_channels=int(o), groups=int(g), products=int(p))
            for layer, i, o, g, p in zip(self.dense.layers, *columns, strict=True)
        )
        return replace(self.dense, layers=layers)

    def only(self, units: Sequence[str]) -> LayoutFamily:
        """The family over some of the units; the others stay as they are."""
        keep = [self.units.index(name) for name in units]
        return replace(
            self,
            units=tuple(units),
            channels=self.channels[keep],
            inputs=self.inputs[:, keep],
            outputs=self.outputs[:, keep],
            products=self.products[:, keep],
        )

    def layers_of(self, unit: str) -> list[int]:
        """Indices of the operators whose multiply-accumulates depend on a unit."""
        column = self.units.index(unit)
        weighted = np.asarray([layer.has_weight for layer in self.dense.layers])
        touched = weighted & ((self.inputs[:, column] != 0) | (self.outputs[:, column] != 0))
        return [int(index) for index in np.flatnonzero(touched | (self.products[:, column] != 0))]


def read_layout(network: nn.Module, graph: Graph, example_input: Inputs) -> Layout:
    """The layout of a network as it stands, counted on the real modules and feature maps."""
    calls = record(graph, functional_copy(network), example_input)[1]
    return _layout(network, graph, calls, [1 if len(call.after) > 1 else 0 for call in calls])


def measure_family(
    network: nn.Module,
    graph: Graph,
    example_input: Inputs,
    units: Sequence[Unit],
    removals: Sequence[Removal],
) -> tuple[LayoutFamily, dict[str, str]]:
    """Derives the family from what was recorded while units were verified.

    Returns:
        The family over the units whose sizes and products are linear in their width, and the reason for each other
        unit.
    """
    calls = record(graph, functional_copy(network), example_input)[1]
    refused = _nonlinear(graph, calls, removals)
    units = [unit for unit in units if unit.name not in refused]
    axes = _channel_axes(calls, [r for r in removals if r.unit not in refused])
    family = _family(network, graph, _layout(network, graph, calls, axes), calls, axes, units, removals)
    products, curved = _product_slopes(graph, family, removals)
    family = replace(family, products=products)
    return family.only([unit.name for unit in units if unit.name not in curved]), refused | curved


def _family(
    network: nn.Module,
    graph: Graph,
    dense: Layout,
    calls: Sequence[Call],
    axes: Sequence[int],
    units: Sequence[Unit],
    removals: Sequence[Removal],
) -> LayoutFamily:
    """The family by shapes alone; what operators multiply beside their weights does not change in it yet."""
    first = {removal.unit: removal for removal in reversed(removals)}
    inputs = np.zeros((len(graph.nodes), len(units)), dtype=np.int64)
    outputs = np.zeros_like(inputs)
    for column, unit in enumerate(units):
        removal = first[unit.name]
        for row, (before, after) in enumerate(zip(calls, removal.calls, strict=True)):
            if before.after:  # not a single number
                outputs[row, column] = (before.after[axes[row]] - after.after[axes[row]]) // removal.dropped
        _weighted_inputs(network, graph, unit, inputs, column)
    weightless = np.asarray([not layer.has_weight for layer in dense.layers])
    inputs[weightless] = outputs[weightless]
    return LayoutFamily(
        dense=dense,
        units=tuple(unit.name for unit in units),
        channels=np.asarray([unit.channels for unit in units], dtype=np.int64),
        inputs=inputs,
        outputs=outputs,
        depthwise=np.asarray([_depthwise(network, node) for node in graph.nodes]),
        products=np.zeros_like(inputs),
    )


def _product_slopes(graph: Graph, family: LayoutFamily, removals: Sequence[Removal]) -> tuple[IntArray, dict[str, str]]:
    """[N, U] multiply-accumulates per channel that no weight tells, and the units for which they are not linear."""
    slopes = np.zeros_like(family.products)
    curved = dict[str, str]()
    known: set[int] = set()
    for removal in (removal for removal in removals if removal.unit in family.units):
        column = family.units.index(removal.unit)
        kept = family.channels.copy()
        kept[column] -= removal.dropped
        counted = np.asarray([call.macs for call in removal.calls], dtype=np.int64)
        gone = family.dense.macs(family.widths(kept))[0] - counted
        if column not in known:
            slopes[:, column] = gone // removal.dropped
            known.add(column)
        wrong = np.flatnonzero(gone != slopes[:, column] * removal.dropped)
        if len(wrong):
            node = graph.nodes[int(wrong[0])]
            curved[removal.unit] = f"what {node} multiplies is not linear in its channels"
    return slopes, curved


def kept_counts(family: LayoutFamily, kept: Mapping[str, int]) -> IntArray:
    """[U] kept channels from a mapping; units that are not named keep all."""
    pairs = zip(family.units, family.channels.tolist(), strict=True)
    return np.asarray([kept.get(name, full) for name, full in pairs], dtype=np.int64)


def _nonlinear(graph: Graph, dense: Sequence[Call], removals: Sequence[Removal]) -> dict[str, str]:
    """Units whose removal changes sizes in a way that is not one axis, linear in the channels removed."""
    refused: dict[str, str] = {}
    slopes: dict[tuple[str, int], float] = {}
    for removal in removals:
        for row, (before, after) in enumerate(zip(dense, removal.calls, strict=True)):
            changed = _changed(before.after, after.after)
            if len(changed) > 1:
                refused.setdefault(removal.unit, f"more than one axis of what {graph.nodes[row]} gives depends on them")
            slope = sum(before.after[axis] - after.after[axis] for axis in changed) / removal.dropped
            if slopes.setdefault((removal.unit, row), slope) != slope or slope % 1:
                refused.setdefault(removal.unit, f"the size of what {graph.nodes[row]} gives is not linear in them")
    return refused


def _changed(before: Shape, after: Shape) -> list[int]:
    return [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


def _channel_axes(dense: Sequence[Call], removals: Sequence[Removal]) -> list[int]:
    """For each operator the axis of its output that units change (1 where none does)."""
    axes = [1 if len(call.after) > 1 else 0 for call in dense]
    for removal in removals:
        for row, (before, after) in enumerate(zip(dense, removal.calls, strict=True)):
            axes[row] = next(iter(_changed(before.after, after.after)), axes[row])
    return axes


def _weighted_inputs(network: nn.Module, graph: Graph, unit: Unit, inputs: IntArray, column: int) -> None:
    """Input channels of convolutions and linear layers come from the module, not from a feature map."""
    reads: dict[str, int] = {}
    for member in unit.members:
        depthwise = is_depthwise(network.get_submodule(member.module))
        if member.role == "consumer" or depthwise:
            reads[member.module] = reads.get(member.module, 0) + len(member.positions[0])
    for row, node in enumerate(graph.nodes):
        if node.kind in WEIGHTED and node.module is not None:
            inputs[row, column] = reads.get(node.module, 0)


def _depthwise(network: nn.Module, node: Node) -> bool:
    return node.module is not None and is_depthwise(network.get_submodule(node.module))


def _layout(network: nn.Module, graph: Graph, calls: Sequence[Call], axes: Sequence[int]) -> Layout:
    layers: list[LayerShape] = []
    for node, call, axis in zip(graph.nodes, calls, axes, strict=True):
        module = network.get_submodule(node.module) if node.module is not None else None
        layers.append(_layer(node, module, call.before, call.after, axis))
    # A weight that several calls share is counted with each of them, and taken back here: its widths never change.
    total = sum(parameter.numel() for parameter in network.parameters())
    extra = total - sum(_own_params(layer) for layer in layers)
    shapes = Layout(layers=tuple(layers), extra_params=extra, edges_known=graph.traced)
    beside = np.asarray([call.macs for call in calls], dtype=np.int64) - shapes.macs(shapes.widths())[0]
    own = tuple(replace(layer, products=int(count)) for layer, count in zip(layers, beside, strict=True))
    return replace(shapes, layers=own)


def _own_params(layer: LayerShape) -> int:
    weight = layer.in_channels * layer.out_channels // layer.groups * prod(layer.kernel) if layer.has_weight else 0
    return weight + layer.out_channels * (int(layer.bias) + layer.channel_params)


def _layer(node: Node, module: nn.Module | None, before: Shape, after: Shape, axis: int) -> LayerShape:
    common: dict[str, Any] = {"name": node.name, "kind": node.kind, "inputs": node.inputs, "function": node.function}
    if node.kind == "linear" and isinstance(module, nn.Linear):
        out_map = _positions(after, len(after) - 1)
        return LayerShape(
            in_channels=module.in_features,
            out_channels=module.out_features,
            bias=module.bias is not None,
            in_map=out_map,
            out_map=out_map,
            **common,
        )
    if node.kind in ("conv", "transposed") and module is not None:
        convolution: Any = module
        return LayerShape(
            in_channels=int(convolution.in_channels),
            out_channels=int(convolution.out_channels),
            kernel=tuple(convolution.kernel_size),
            stride=tuple(convolution.stride),
            groups=int(convolution.groups),
            bias=convolution.bias is not None,
            in_map=before[2:],
            out_map=after[2:],
            **common,
        )
    channels = after[axis] if after else 1
    rest = _positions(after, axis)
    return LayerShape(
        in_channels=channels,
        out_channels=channels,
        in_map=rest,
        out_map=rest,
        channel_params=0 if _normalizes_others(module, after, axis) else _channel_params(module, channels),
        **common,
    )


def _positions(shape: Shape, axis: int) -> Shape:
    """Sizes of all axes but the channels' and the batch's; windows or frames may stand in the place of the batch."""
    return tuple(size for k, size in enumerate(shape) if k != axis and (k > 0 or size > 1))


def _normalizes_others(module: nn.Module | None, after: Shape, axis: int) -> bool:
    """Whether the parameters of a normalization belong to another axis than the one that units change (heads)."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and axis < len(after) - len(module.normalized_shape)


def _channel_params(module: nn.Module | None, channels: int) -> int:
    own = list(module.parameters(recurse=False)) if module is not None else []
    return sum(parameter.ndim == 1 and len(parameter) == channels for parameter in own)
