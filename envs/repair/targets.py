"""What every layer wrote in the dense network at the sampled positions: the targets of sequential repair.

No policy changes them, so one pass over the calibration images serves all policies.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from envs.network.copies import functional_copy, make_channels_last
from envs.network.graph import Graph
from envs.network.inputs import Inputs, channels_last
from envs.network.interpreter import Interpreter
from envs.network.kinds import BATCH_NORMS
from envs.parallel import map_chunks, return_memory
from envs.regression.rows import Positions, can_gather, take_outputs, weight_of
from envs.regression.statistics import Sampling

PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


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
        images: Images in the chunk; the positions of each follow one another.
    """

    at: Positions
    own: Tensor
    other: Tensor | None = None
    images: int

    def count(self, per_image: int | None) -> int:
        """Rows, of at most so many positions of each image."""
        return len(self.own) if per_image is None else int(self._per_image().clamp(max=per_image).sum())

    def first(self, per_image: int) -> Target:
        """The same at the first positions of each image."""
        counts = self._per_image()
        if per_image >= int(counts.max()):
            return self
        place = torch.arange(len(self.own), device=counts.device) - (counts.cumsum(0) - counts)[self.at.image]
        kept = place < per_image
        at = Positions(self.at.image[kept], self.at.place[kept])
        other = None if self.other is None else self.other[kept]
        return Target(at=at, own=self.own[kept], other=other, images=self.images)

    def _per_image(self) -> Tensor:
        """[images] positions of each image: not all have as many that count."""
        return torch.bincount(self.at.image, minlength=self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets of all layers that can be refitted.

    Attributes:
        chunks: Calibration inputs, channels-last where the network runs so.
        addends: The layers that reach an addition.
        rows: Per chunk, the target of each layer.
        per_image: Positions of each image that are used, None: all.
    """

    chunks: tuple[Inputs, ...]
    addends: Mapping[fx.Node, Addend]
    rows: tuple[Mapping[fx.Node, Target], ...]
    per_image: int | None = None

    def at(self, layer: fx.Node, chunk: int) -> Target:
        """One layer in one chunk."""
        target = self.rows[chunk][layer]
        return target if self.per_image is None else target.first(self.per_image)

    def count(self, layer: fx.Node) -> int:
        """Rows of one layer over all chunks."""
        return sum(target.count(self.per_image) for target in (rows[layer] for rows in self.rows))

    def along(self, interpreter: Interpreter, held_bytes: float) -> Targets:
        """Themselves: nothing has to walk along a repair."""
        return self

    def first(self, chunks: int, per_image: int) -> Targets:
        """A view of the first chunks and of the first positions of each image."""
        return replace(self, chunks=self.chunks[:chunks], rows=self.rows[:chunks], per_image=per_image)

    def of(self, nodes: Mapping[fx.Node, fx.Node], gone: Collection[fx.Node]) -> Targets:
        """The same for a network without some operators.

        Args:
            nodes: Node of the dense program -> the one that stands for it.
            gone: Nodes that are not there.
        """
        addends = {
            nodes[layer]: replace(addend, sum=nodes[addend.sum], other=nodes[addend.other])
            for layer, addend in self.addends.items()
            if layer not in gone
        }
        rows = tuple(
            {nodes[layer]: target for layer, target in found.items() if layer not in gone} for found in self.rows
        )
        return replace(self, addends=addends, rows=rows)

    def excerpt(self) -> Targets:
        """The same without what is not used."""
        rows = tuple({layer: self.at(layer, chunk) for layer in found} for chunk, found in enumerate(self.rows))
        return replace(self, rows=rows, per_image=None)

    @property
    def layers(self) -> set[fx.Node]:
        """The layers that can be refitted."""
        return set(self.rows[0])


def record_targets(
    network: nn.Module, graph: Graph, chunks: Sequence[Inputs], sampling: Sampling, *, narrow: bool = False
) -> Targets:
    """Runs the dense network once over the calibration images and keeps what repair aims at.

    Args:
        network: The dense network.
        graph: Its graph, with a program.
        chunks: Calibration inputs.
        sampling: Output positions per image and seed.
        narrow: Keep bfloat16, half of the memory: its rounding is small beside what a fit leaves.
    """
    layers = refittable_layers(network, graph)
    recorder = _Recorder(
        interpreter=Interpreter(graph.require_program().nodes),
        network=walkable(network, graph),
        keys={name: key for key, name in enumerate(graph.order())},
        layers=frozenset(layers),
        addends=addends_of(layers, network),
        sampling=sampling,
        narrow=narrow,
    )
    inputs = tuple(channels_last(chunk) if graph.channels_last else chunk for chunk in chunks)
    rows = tuple(map_chunks(lambda index: recorder(index, inputs[index]), range(len(inputs))))
    return Targets(chunks=inputs, addends=recorder.addends, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorder:
    """Records the targets of one chunk: see `record_targets`; `keys` number the layers for the draws."""

    interpreter: Interpreter
    network: nn.Module
    keys: Mapping[str, int]
    layers: frozenset[fx.Node]
    addends: Mapping[fx.Node, Addend]
    sampling: Sampling
    narrow: bool

    def __call__(self, index: int, inputs: Inputs) -> dict[fx.Node, Target]:
        found: dict[fx.Node, Target] = {}
        shapes: dict[fx.Node, torch.Size] = {}
        with torch.no_grad():
            for node, values in self.interpreter.walk(self.network, inputs):
                if node in self.layers:
                    found[node] = self._target(node, values[node], index)
                    shapes[node] = values[node].shape
                for layer in (layer for layer, addend in self.addends.items() if addend.sum is node):
                    other = values[self.addends[layer].other]
                    if isinstance(other, Tensor) and other.shape == shapes[layer]:
                        found[layer] = replace(found[layer], other=self._rows(layer, other, found[layer].at))
        return_memory()  # what is kept lies scattered between activations that are gone
        return found

    def _target(self, layer: fx.Node, output: Tensor, index: int) -> Target:
        module = self.network.get_submodule(str(layer.target))
        name = str(layer.target)
        at = self.sampling.draw(module, name, output, self.keys[name], index)
        return Target(at=at, own=self._rows(layer, output, at), images=len(output))

    def _rows(self, layer: fx.Node, values: Tensor, at: Positions) -> Tensor:
        rows = take_outputs(self.network.get_submodule(str(layer.target)), values, at)
        return rows.to(torch.bfloat16) if self.narrow else rows


def refittable_layers(network: nn.Module, graph: Graph) -> list[fx.Node]:
    """The layers of a program that can be refitted, in order."""
    return [node for node in graph.require_program().nodes if _refittable(node, network, graph)]


def addends_of(layers: Sequence[fx.Node], network: nn.Module) -> dict[fx.Node, Addend]:
    """How those layers that reach an addition do."""
    return {layer: addend for layer in layers if (addend := _addend(layer, network)) is not None}


def walkable(network: nn.Module, graph: Graph) -> nn.Module:
    """A copy to be executed node by node: nothing works in place, weights channels-last where that is faster."""
    twin = functional_copy(network)
    if graph.channels_last:
        make_channels_last(twin)
    return twin


def _refittable(node: fx.Node, network: nn.Module, graph: Graph) -> bool:
    name = str(node.target)
    once = node.op == "call_module" and graph.calls().get(name) == 1 and bool(node.all_input_nodes)
    if not once:
        return False
    module = network.get_submodule(name)
    return can_gather(module) and not is_parametrized(module)  # its weight is computed: none can be written


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
        factor = _scaled_by(reader, current, module, network)
        if factor is not None:
            scale, current = scale * factor, reader
            continue
        if reader.op != "call_module":
            return None
        between = network.get_submodule(str(reader.target))
        if isinstance(between, BATCH_NORMS) and between.running_var is not None:
            inverse = (between.running_var + between.eps).rsqrt()
            scale = scale * (inverse if between.weight is None else inverse * between.weight.detach())
        elif not isinstance(between, PASS_THROUGH):
            return None
        current = reader
    return None


def _scaled_by(node: fx.Node, current: fx.Node, layer: nn.Module, network: nn.Module) -> Tensor | None:
    """[O] what an operator multiplies each channel of a layer's output by, if it is a parameter (LayerScale)."""
    if node.target not in (operator.mul, torch.mul) or len(node.all_input_nodes) != 2:
        return None
    other = next(source for source in node.all_input_nodes if source is not current)
    value = operator.attrgetter(str(other.target))(network) if other.op == "get_attr" else None
    rest = 0 if isinstance(layer, nn.Linear) else len(getattr(layer, "kernel_size", ()))
    width = getattr(layer, "out_channels", getattr(layer, "out_features", 1))
    if not isinstance(value, Tensor) or value.ndim <= rest or value.numel() != width or value.shape[-1 - rest] != width:
        return None
    return value.detach().flatten()


def _is_addition(node: fx.Node) -> bool:
    known = node.target in (operator.add, torch.add) or (node.op == "call_method" and node.target == "add")
    return known and "alpha" not in node.kwargs and len(node.all_input_nodes) == 2
