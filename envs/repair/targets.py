"""What every layer wrote in the dense network at the sampled positions: the targets of sequential repair.

No policy changes them, so one pass over the calibration images serves all policies.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.graph import BATCH_NORMS, Graph, execute, functional_copy, last_readers, make_channels_last
from envs.network.inference import channels_last
from envs.parallel import map_chunks, return_memory
from envs.regression.rows import Positions, can_gather, draw_positions, output_places, take_outputs, weight_of
from envs.regression.statistics import Sampling

PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

Values = dict[fx.Node, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Addend:
    """How a layer's output reaches an addition.

    Attributes:
        sum: The addition.
        other: Its other addend.
        scale: [O] what single-use per-channel affine operators on the way multiply each output by.
    """

    sum: fx.Node
    other: fx.Node
    scale: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One layer in one chunk.

    Attributes:
        at: The sampled output positions.
        own: [m, O] the layer's output in the dense network.
        other: [m, O] the other addend there, None without an addition (or if it is of another shape).
        images: Images in the chunk; each has m / images positions.
    """

    at: Positions
    own: Tensor
    other: Tensor | None = None
    images: int

    def first(self, per_image: int) -> Target:
        """The same at the first positions of each image."""
        count = len(self.own) // self.images
        if per_image >= count:
            return self

        def cut(rows: Tensor) -> Tensor:
            return rows.reshape(self.images, count, *rows.shape[1:])[:, :per_image].flatten(0, 1)

        at, other = Positions(cut(self.at.image), cut(self.at.place)), self.other
        return Target(at=at, own=cut(self.own), other=None if other is None else cut(other), images=self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets of all layers that can be refitted.

    Attributes:
        chunks: Calibration inputs, channels-last where the network runs so.
        addends: The layers that reach an addition.
        rows: Per chunk, the target of each layer.
        per_image: Positions of each image that are used, None: all.
    """

    chunks: tuple[Tensor, ...]
    addends: Mapping[fx.Node, Addend]
    rows: tuple[Mapping[fx.Node, Target], ...]
    per_image: int | None = None

    def at(self, layer: fx.Node, chunk: int) -> Target:
        """One layer in one chunk."""
        target = self.rows[chunk][layer]
        return target if self.per_image is None else target.first(self.per_image)

    def first(self, chunks: int, per_image: int) -> Targets:
        """A view of the first chunks and of the first positions of each image."""
        return replace(self, chunks=self.chunks[:chunks], rows=self.rows[:chunks], per_image=per_image)

    def excerpt(self) -> Targets:
        """The same without what is not used."""
        rows = tuple({layer: self.at(layer, chunk) for layer in found} for chunk, found in enumerate(self.rows))
        return replace(self, rows=rows, per_image=None)

    @property
    def layers(self) -> set[fx.Node]:
        """The layers that can be refitted."""
        return set(self.rows[0])


def record_targets(
    network: nn.Module, graph: Graph, chunks: Sequence[Tensor], sampling: Sampling, *, narrow: bool = False
) -> Targets:
    """Runs the dense network once over the calibration images and keeps what repair aims at.

    Args:
        network: The dense network.
        graph: Its graph, with a program.
        chunks: Calibration inputs.
        sampling: Output positions per image and seed.
        narrow: Keep bfloat16, half of the memory: its rounding is small beside what a fit leaves.
    """
    program = graph.program
    assert program is not None
    twin, last = walkable(network, graph), last_readers(program)
    keys = {name: key for key, name in enumerate(graph.order())}
    layers = [node for node in program.nodes if _refittable(node, network, graph)]
    addends = {layer: addend for layer in layers if (addend := _addend(layer, network)) is not None}
    inputs = tuple(channels_last(chunk) if graph.channels_last else chunk for chunk in chunks)

    def narrowed(rows: Tensor) -> Tensor:
        return rows.to(torch.bfloat16) if narrow else rows

    def one(index: int) -> dict[fx.Node, Target]:
        values: Values = {}
        found: dict[fx.Node, Target] = {}
        shapes: dict[fx.Node, torch.Size] = {}
        with torch.no_grad():
            for node in program.nodes:
                step(node, twin, values, inputs[index])
                if node in layers:
                    module, output = twin.get_submodule(str(node.target)), values[node]
                    generator = sampling.generator(keys[str(node.target)], index)
                    places = output_places(module, tuple(output.shape))
                    at = draw_positions(len(output), places, sampling.positions, generator, output.device)
                    own = narrowed(take_outputs(module, output, at))
                    found[node], shapes[node] = Target(at=at, own=own, images=len(output)), output.shape
                for layer in (layer for layer, addend in addends.items() if addend.sum is node):
                    other = values[addends[layer].other]
                    if isinstance(other, Tensor) and other.shape == shapes[layer]:
                        module = twin.get_submodule(str(layer.target))
                        other = narrowed(take_outputs(module, other, found[layer].at))
                        found[layer] = replace(found[layer], other=other)
                release(node, values, last)
        return_memory()  # what is kept lies scattered between activations that are gone
        return found

    return Targets(chunks=inputs, addends=addends, rows=tuple(map_chunks(one, range(len(inputs)))))


def walkable(network: nn.Module, graph: Graph) -> nn.Module:
    """A copy to be executed node by node: nothing works in place, weights channels-last where that is faster."""
    twin = functional_copy(network)
    if graph.channels_last:
        make_channels_last(twin)
    return twin


def step(node: fx.Node, network: nn.Module, values: Values, inputs: Tensor) -> None:
    """Computes one node; the first placeholder gets the inputs, others their default."""
    if node.op == "placeholder":
        values[node] = inputs if not values else (node.args[0] if node.args else None)
    else:
        values[node] = execute(node, network, values)


def release(node: fx.Node, values: Values, last: Mapping[fx.Node, fx.Node]) -> None:
    """Drops the values that nothing after this node reads."""
    for source in node.all_input_nodes:
        if last[source] is node:
            values.pop(source, None)


def _refittable(node: fx.Node, network: nn.Module, graph: Graph) -> bool:
    name = str(node.target)
    once = node.op == "call_module" and graph.calls().get(name) == 1 and bool(node.all_input_nodes)
    return once and can_gather(network.get_submodule(name))


def _addend(layer: fx.Node, network: nn.Module) -> Addend | None:
    """How a layer's output reaches an addition; only single-use per-channel affine operators may stand in between."""
    module = network.get_submodule(str(layer.target))
    width = getattr(module, "out_channels", getattr(module, "out_features", 1))
    scale = torch.ones(width, device=weight_of(module).device)
    current = layer
    while len(current.users) == 1:
        reader = next(iter(current.users))
        if _is_addition(reader):
            other = next((source for source in reader.all_input_nodes if source is not current), None)
            return None if other is None else Addend(sum=reader, other=other, scale=scale)
        if reader.op != "call_module":
            return None
        between = network.get_submodule(str(reader.target))
        if isinstance(between, BATCH_NORMS) and between.running_var is not None:
            factor = (between.running_var + between.eps).rsqrt()
            scale = scale * (factor if between.weight is None else factor * between.weight.detach())
        elif not isinstance(between, PASS_THROUGH):
            return None
        current = reader
    return None


def _is_addition(node: fx.Node) -> bool:
    known = node.target in (operator.add, torch.add) or (node.op == "call_method" and node.target == "add")
    return known and "alpha" not in node.kwargs and len(node.all_input_nodes) == 2
