"""The layout of a network as a function of its units' widths, measured on really sliced networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.graph import Graph, Node, Shape, functional_copy, record
from envs.units import Unit, is_depthwise
from envs.verify import Removal
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
    """

    dense: Layout
    units: tuple[str, ...]
    channels: IntArray
    inputs: IntArray
    outputs: IntArray
    depthwise: NDArray[np.bool_]

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
        return Widths(inputs=base.inputs - gone @ self.inputs.T, outputs=outputs, groups=groups, patterns=patterns)

    def at(self, kept: IntArray) -> Layout:
        """The layout of one variant; `kept` is [U]."""
        widths = self.widths(kept)
        layers = tuple(
            replace(layer, in_channels=int(i), out_channels=int(o), groups=int(g))
            for layer, i, o, g in zip(
                self.dense.layers, widths.inputs[0], widths.outputs[0], widths.groups[0], strict=True
            )
        )
        return replace(self.dense, layers=layers)

    def layers_of(self, unit: str) -> list[int]:
        """Indices of the weighted layers whose shape depends on a unit."""
        column = self.units.index(unit)
        touched = (self.inputs[:, column] != 0) | (self.outputs[:, column] != 0)
        return [index for index in np.flatnonzero(touched).tolist() if self.dense.layers[index].has_weight]


def read_layout(network: nn.Module, graph: Graph, example_input: Tensor) -> Layout:
    """The layout of a network as it stands, counted on the real modules and feature maps."""
    shapes = record(graph, functional_copy(network), example_input)[1]
    return _layout(network, graph, shapes, [1 if len(shape) > 1 else 0 for _, shape in shapes])


def measure_family(
    network: nn.Module,
    graph: Graph,
    example_input: Tensor,
    units: Sequence[Unit],
    removals: Sequence[Removal],
) -> tuple[LayoutFamily, dict[str, str]]:
    """Derives the family from the shapes recorded while units were verified.

    Returns:
        The family over the units whose sizes are linear in their width, and the reason for each other unit.
    """
    dense_shapes = record(graph, functional_copy(network), example_input)[1]
    refused = _nonlinear(dense_shapes, removals)
    units = [unit for unit in units if unit.name not in refused]
    axes = _channel_axes(dense_shapes, [r for r in removals if r.unit not in refused])
    dense = _layout(network, graph, dense_shapes, axes)
    first = {removal.unit: removal for removal in removals}
    inputs = np.zeros((len(graph.nodes), len(units)), dtype=np.int64)
    outputs = np.zeros_like(inputs)
    for column, unit in enumerate(units):
        removal = first[unit.name]
        for row, (before, after) in enumerate(zip(dense_shapes, removal.shapes, strict=True)):
            outputs[row, column] = (before[1][axes[row]] - after[1][axes[row]]) // removal.dropped
        _weighted_inputs(network, graph, unit, inputs, column)
    weightless = np.asarray([not layer.has_weight for layer in dense.layers])
    inputs[weightless] = outputs[weightless]
    family = LayoutFamily(
        dense=dense,
        units=tuple(unit.name for unit in units),
        channels=np.asarray([unit.channels for unit in units], dtype=np.int64),
        inputs=inputs,
        outputs=outputs,
        depthwise=np.asarray([_depthwise(network, node) for node in graph.nodes]),
    )
    return family, refused


def kept_counts(family: LayoutFamily, kept: Mapping[str, int]) -> IntArray:
    """[U] kept channels from a mapping; units that are not named keep all."""
    pairs = zip(family.units, family.channels.tolist(), strict=True)
    return np.asarray([kept.get(name, full) for name, full in pairs], dtype=np.int64)


def _nonlinear(dense: list[tuple[Shape, Shape]], removals: Sequence[Removal]) -> dict[str, str]:
    """Units whose removal changes sizes in a way that is not one axis, linear in the channels removed."""
    refused: dict[str, str] = {}
    slopes: dict[tuple[str, int], float] = {}
    for removal in removals:
        for row, ((_, before), (_, after)) in enumerate(zip(dense, removal.shapes, strict=True)):
            changed = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            if len(changed) > 1:
                refused[removal.unit] = "more than one axis of a feature map depends on its channels"
            slope = sum(before[axis] - after[axis] for axis in changed) / removal.dropped
            if slopes.setdefault((removal.unit, row), slope) != slope or slope % 1:
                refused[removal.unit] = "a feature map's size is not linear in its channels"
    return refused


def _channel_axes(dense: list[tuple[Shape, Shape]], removals: Sequence[Removal]) -> list[int]:
    """For each operator the axis of its output that units change (1 where none does)."""
    axes = [1 if len(shape) > 1 else 0 for _, shape in dense]
    for removal in removals:
        for row, ((_, before), (_, after)) in enumerate(zip(dense, removal.shapes, strict=True)):
            axes[row] = next((k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), axes[row])
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


def _layout(network: nn.Module, graph: Graph, shapes: list[tuple[Shape, Shape]], axes: Sequence[int]) -> Layout:
    layers: list[LayerShape] = []
    for node, (before, after), axis in zip(graph.nodes, shapes, axes, strict=True):
        module = network.get_submodule(node.module) if node.module is not None else None
        layers.append(_layer(node, module, before, after, axis))
    # A weight that several calls share is counted with each of them, and taken back here: its widths never change.
    total = sum(parameter.numel() for parameter in network.parameters())
    extra = total - sum(_own_params(layer) for layer in layers)
    return Layout(layers=tuple(layers), extra_params=extra, edges_known=graph.traced)


def _own_params(layer: LayerShape) -> int:
    weight = layer.in_channels * layer.out_channels // layer.groups * prod(layer.kernel) if layer.has_weight else 0
    return weight + layer.out_channels * (int(layer.bias) + layer.channel_params)


def _layer(node: Node, module: nn.Module | None, before: Shape, after: Shape, axis: int) -> LayerShape:
    common: dict[str, Any] = {"name": node.name, "kind": node.kind, "inputs": node.inputs, "function": node.function}
    if node.kind == "linear" and isinstance(module, nn.Linear):
        out_map = after[1:-1]
        return LayerShape(
            in_channels=module.in_features, out_channels=module.out_features, bias=module.bias is not None,
            in_map=out_map, out_map=out_map, **common,
        )  # fmt: skip
    if node.kind in ("conv", "transposed") and module is not None:
        return LayerShape(
            in_channels=int(module.in_channels), out_channels=int(module.out_channels),  # type: ignore[arg-type]
            kernel=tuple(module.kernel_size), stride=tuple(module.stride),  # type: ignore[arg-type]
            groups=int(module.groups), bias=module.bias is not None,  # type: ignore[arg-type]
            in_map=before[2:], out_map=after[2:], **common,
        )  # fmt: skip
    channels = after[axis] if after else 1
    rest = tuple(size for k, size in enumerate(after) if k not in (0, axis))
    return LayerShape(
        in_channels=channels, out_channels=channels, in_map=rest, out_map=rest,
        channel_params=_channel_params(module, channels), **common,
    )  # fmt: skip


def _channel_params(module: nn.Module | None, channels: int) -> int:
    own = list(module.parameters(recurse=False)) if module is not None else []
    return sum(parameter.ndim == 1 and len(parameter) == channels for parameter in own)
