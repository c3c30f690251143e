"""The layout of a network as a function of its units' widths, measured on really sliced networks."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from envs.network.calls import Call, Shape
from envs.network.copies import functional_copy
from envs.network.graph import Graph, Node, record
from envs.network.inputs import Inputs
from envs.units.products import ProductSizes, multiplied, product_slopes, products_of
from envs.units.units import Unit, is_depthwise
from envs.units.verification.trial import Removal
from hw_profiles.layers import WEIGHTED, IntArray, LayerShape, Layout, Widths

EXACT = 2**53
"""Sums of integers below it are exact in float64, in whichever order they are added."""


@dataclass(frozen=True, kw_only=True)
class LayoutFamily:
    """All layouts that a network can take: channel counts linear in the units' widths.

    Attributes:
        dense: The layout with every unit at full width.
        units: Names of the units, in site order.
        channels: [U] full widths.
        inputs: [N, U] change of an operator's input channels per channel of a unit.
        outputs: [N, U] the same for output channels.
        groups: [N, U] the same for groups: of depthwise layers, which follow their width, and heads of attentions.
        products: [N, U] change of an operator's multiply-accumulates beside those of its weight.
    """

    dense: Layout
    units: tuple[str, ...]
    channels: IntArray
    inputs: IntArray
    outputs: IntArray
    groups: IntArray
    products: IntArray

    def widths(self, kept: IntArray, patterns: IntArray | None = None) -> Widths:
        """Channel counts of `K` variants.

        Args:
            kept: [K, U] kept channels per unit.
            patterns: [K, N] `Pattern.code` of each operator, None where all are dense.
        """
        gone = self.channels[None, :] - np.atleast_2d(kept)
        base = self.dense.widths()
        inputs, outputs, groups, products = np.split((gone @ self._slopes).astype(np.int64), 4, axis=1)
        return Widths(
            inputs=base.inputs - inputs,
            outputs=base.outputs - outputs,
            groups=base.groups - groups,
            patterns=patterns,
            products=self.dense.products(base) - products,
        )

    @cached_property
    def _slopes(self) -> NDArray[Any]:
        """[U, 4 N] all changes per channel of a unit: inputs, outputs, groups, products."""
        return quick_factor(np.concatenate([self.inputs, self.outputs, self.groups, self.products]).T, self.channels)

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
            groups=self.groups[:, keep],
            products=self.products[:, keep],
        )

    def layers_of(self, unit: str) -> list[int]:
        """Indices of the operators whose multiply-accumulates depend on a unit."""
        column = self.units.index(unit)
        weighted = np.asarray([layer.has_weight for layer in self.dense.layers])
        touched = weighted & ((self.inputs[:, column] != 0) | (self.outputs[:, column] != 0))
        return [int(index) for index in np.flatnonzero(touched | (self.products[:, column] != 0))]


def quick_factor(factor: IntArray, largest: IntArray) -> NDArray[Any]:
    """[U, N] integers as float64 where products with [K, U] integers of at most `largest` [U] are exact in it.

    numpy multiplies matrices of integers without BLAS.
    """
    exact = int((np.abs(largest) @ np.abs(factor)).max(initial=0)) < EXACT
    return factor.astype(np.float64) if exact else factor


def read_layout(network: nn.Module, graph: Graph, example_input: Inputs) -> Layout:
    """The layout of a network as it stands, counted on the real modules and feature maps."""
    calls = record(graph, functional_copy(network), example_input)[1]
    return _layout(network, graph, calls, _first_axes(network, graph, calls), products_of(network, graph, calls, ()))


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
    first = _first_axes(network, graph, calls)
    axes = _channel_axes(first, calls, [r for r in removals if r.unit not in refused])
    sizes = products_of(network, graph, calls, removals)
    dense = _layout(network, graph, calls, axes, sizes)
    family = _family(network, graph, dense, calls, axes, sizes, units, removals)
    family = replace(family, dense=_with_tables(network, graph, family, units))
    products, curved = _product_slopes(graph, family, removals)
    family = replace(family, products=products)
    return family.only([unit.name for unit in units if unit.name not in curved]), refused | curved


def _family(
    network: nn.Module,
    graph: Graph,
    dense: Layout,
    calls: Sequence[Call],
    axes: Sequence[Shape],
    sizes: Sequence[ProductSizes | None],
    units: Sequence[Unit],
    removals: Sequence[Removal],
) -> LayoutFamily:
    """The family by shapes alone; what operators multiply beside their weights does not change in it yet."""
    first = {removal.unit: removal for removal in reversed(removals)}
    inputs = np.zeros((len(graph.nodes), len(units)), dtype=np.int64)
    outputs, heads = np.zeros_like(inputs), np.zeros_like(inputs)
    for column, unit in enumerate(units):
        removal = first[unit.name]
        for row, (before, after) in enumerate(zip(calls, removal.calls, strict=True)):
            gone = _channels(before.after, axes[row]) - _channels(after.after, axes[row])
            outputs[row, column] = gone // removal.dropped
        _weighted_inputs(network, graph, unit, inputs, column)
    weightless = np.asarray([not layer.has_weight for layer in dense.layers])
    inputs[weightless] = outputs[weightless]
    for column, unit in enumerate(units):
        product_slopes(network, graph, sizes, first[unit.name], (inputs, outputs, heads), column)
    depthwise = np.asarray([_depthwise(network, node) for node in graph.nodes])
    return LayoutFamily(
        dense=dense,
        units=tuple(unit.name for unit in units),
        channels=np.asarray([unit.channels for unit in units], dtype=np.int64),
        inputs=inputs,
        outputs=outputs,
        groups=np.where(depthwise[:, None], outputs, heads),
        products=np.zeros_like(inputs),
    )


def _with_tables(network: nn.Module, graph: Graph, family: LayoutFamily, units: Sequence[Unit]) -> Layout:
    """The dense layout with the parameters of tables that units cut counted where they are first read by channel."""
    layers, extra = list(family.dense.layers), family.dense.extra_params
    for column, unit in enumerate(units):
        for attribute in unit.attributes:
            table = operator.attrgetter(attribute.name)(network)
            if not isinstance(table, nn.Parameter):
                continue
            whole = family.outputs[:, column] * unit.channels
            for row in (row for row in _readers(graph, attribute.name) if layers[row].out_channels == whole[row]):
                own = table.numel() // layers[row].out_channels
                layers[row] = replace(layers[row], channel_params=layers[row].channel_params + own)
                extra -= table.numel()
                break
    return replace(family.dense, layers=tuple(layers), extra_params=extra)


def _readers(graph: Graph, tensor: str) -> list[int]:
    """The operators that depend on a parameter, by what it is called or by the layer that holds it."""
    rows = {node.source: row for row, node in enumerate(graph.nodes)}
    reached: set[Any] = set()
    found = []
    for node in graph.program.nodes if graph.program is not None else ():
        holds = node.op in ("get_attr", "call_module") and node.target in (tensor, tensor.rpartition(".")[0])
        if holds or any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            found += [rows[node.name]] if node.name in rows else []
    return found


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
            axes = _axes(before.after, after.after, removal)
            slope = (_channels(before.after, axes) - _channels(after.after, axes)) / removal.dropped if axes else 0
            if slopes.setdefault((removal.unit, row), slope) != slope or slope % 1:
                refused.setdefault(removal.unit, f"the size of what {graph.nodes[row]} gives is not linear in them")
    return refused


def _changed(before: Shape, after: Shape) -> list[int]:
    return [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


def _first_axes(network: nn.Module, graph: Graph, calls: Sequence[Call]) -> list[Shape]:
    """For each operator the axis of its output that holds channels: the last behind a linear layer, else the second."""
    axes: list[Shape] = []
    for node, call in zip(graph.nodes, calls, strict=True):
        last = len(call.after) - 1
        alike = [source for source in node.inputs if calls[source].after == call.after]
        heads = last > 2 and any(graph.nodes[source].kind == "reshape" for source in alike)
        if last < 0:
            axes.append(())
        elif node.kind == "linear" or (_is_layer_norm(network, node) and not heads):
            axes.append((last,))
        elif alike and node.kind in ("activation", "add", "mul"):
            axes.append(axes[alike[0]])
        else:
            axes.append((min(1, last),))
    return axes


def _is_layer_norm(network: nn.Module, node: Node) -> bool:
    return node.module is not None and isinstance(network.get_submodule(node.module), nn.LayerNorm)


def _axes(before: Shape, after: Shape, removal: Removal) -> Shape:
    """The axis that a removal changed, () where none; with another one where its channels lie on both.

    Query heads lie on an axis of groups and one of heads within, widths of heads on one beside that of heads.
    """
    axis = next(iter(_changed(before, after)), None)
    if axis is None or removal.shares < 2 or (before[axis] - after[axis]) * removal.shares != removal.dropped:
        return () if axis is None else (axis,)
    others = [(place, size) for place, size in enumerate(before) if place not in (0, axis)]
    fitting = [place for place, size in others if size == removal.shares]  # else shares were repeated, for each head
    return (axis, *(fitting or [place for place, size in others if size % removal.shares == 0])[:1])


def _channels(shape: Shape, axes: Shape) -> int:
    return prod(shape[axis] for axis in axes)


def _channel_axes(axes: Sequence[Shape], dense: Sequence[Call], removals: Sequence[Removal]) -> list[Shape]:
    """For each operator the axes of its output that units change, those of `axes` where none does."""
    axes = list(axes)
    for removal in removals:
        for row, (before, after) in enumerate(zip(dense, removal.calls, strict=True)):
            axes[row] = _axes(before.after, after.after, removal) or axes[row]
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


def _layout(
    network: nn.Module,
    graph: Graph,
    calls: Sequence[Call],
    axes: Sequence[Shape],
    products: Sequence[ProductSizes | None],
) -> Layout:
    layers: list[LayerShape] = []
    for node, call, held, sizes in zip(graph.nodes, calls, axes, products, strict=True):
        module = network.get_submodule(node.module) if node.module is not None else None
        layers.append(_layer(node, module, call, held) if sizes is None else multiplied(node, sizes))
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


def _layer(node: Node, module: nn.Module | None, call: Call, axes: Shape) -> LayerShape:
    before, after, _ = call
    kind = "other" if node.kind in ("attention", "product") else node.kind
    common: dict[str, Any] = {"name": node.name, "kind": kind, "inputs": node.inputs, "function": node.function}
    if node.kind == "linear" and isinstance(module, nn.Linear):
        out_map = _positions(after, (len(after) - 1,))
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
        frames = tuple(size for size in after[:1] if size > 1)  # in the place of the batch: a kernel of 1 over them
        return LayerShape(
            in_channels=int(convolution.in_channels),
            out_channels=int(convolution.out_channels),
            kernel=(*[1] * len(frames), *convolution.kernel_size),
            stride=(*[1] * len(frames), *convolution.stride),
            groups=int(convolution.groups),
            bias=convolution.bias is not None,
            in_map=(*frames, *before[2:]),
            out_map=(*frames, *after[2:]),
            **common,
        )
    channels, rest = max(_channels(after, axes), 1), _positions(after, axes)  # a fresh cache is an empty tensor
    return LayerShape(
        in_channels=channels,
        out_channels=channels,
        in_map=rest,
        out_map=rest,
        channel_params=0 if _normalizes_others(module, after, axes) else _channel_params(module, channels),
        **common,
    )


def _positions(shape: Shape, axes: Shape) -> Shape:
    """Sizes of all axes but the channels' and the batch's; windows or frames may stand in the place of the batch."""
    return tuple(size for k, size in enumerate(shape) if k not in axes and (k > 0 or size > 1))


def _normalizes_others(module: nn.Module | None, after: Shape, axes: Shape) -> bool:
    """Whether the parameters of a normalization belong to another axis than the one that units change (heads)."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) and axes[0] < len(after) - len(module.normalized_shape)


def _channel_params(module: nn.Module | None, channels: int) -> int:
    own = list(module.parameters(recurse=False)) if module is not None else []
    return sum(parameter.ndim == 1 and len(parameter) == channels for parameter in own)
