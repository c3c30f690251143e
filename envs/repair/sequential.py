"""Sequential repair: consumers are refitted in execution order, on the inputs that the pruned network really has.

The pruned network walks the traced graph over the calibration images; at each layer to be refitted the walk
stops, rows are gathered, and a ridge regression toward the sliced weights is solved. The target is the layer's
dense output, plus what the other branch of the addition it feeds still misses (mapped back through the
per-channel affine operators between them), so that errors do not pile up along a residual stream (in the spirit
of He, Zhang & Sun, ICCV 2017, section 3.2, for whole residual networks).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import torch
from torch import Tensor, fx, nn

from envs.network.graph import BATCH_NORMS, Graph
from envs.network.inference import converted, folded, inference_copy
from envs.parallel import map_chunks
from envs.regression.ridge import Finish, Sums, add, solve, summarize
from envs.regression.rows import as_weight, gather_patches, kernel_size, regrouped, take_outputs, weight_rows
from envs.regression.shrinkage import FOLDS, UNDIVIDED_RIDGE, best_ridge, folded_sums
from envs.regression.statistics import GRAM_LIMIT
from envs.repair.targets import Target, Targets, Values, release, step
from envs.units.slicing import Axes

WIDE = 2048
"""Columns beyond which Gram matrices are so large that only few of them are kept."""
DEAD_SCALE = 1e-3
"""Per-channel scales below this fraction of the largest cannot be divided by: the channel is left as it is."""


@dataclass(frozen=True, slots=True)
class _Refit:
    """One layer to refit: whether its input drifted (or only its pattern is new), which of its outputs stay, and the
    other addend and scale if it feeds an addition.
    """

    node: fx.Node
    drifted: bool
    outputs: Tensor | None
    other: fx.Node | None
    scale: Tensor | None

    @property
    def name(self) -> str:
        return str(self.node.target)

    def kept(self, rows: Tensor) -> Tensor:
        """[m, kept] columns of [m, O] that stay."""
        return rows if self.outputs is None else rows[:, self.outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """The nodes in the order of execution, the last reader of each, and the network that executes them."""

    order: Sequence[fx.Node]
    last: Mapping[fx.Node, fx.Node]
    walked: nn.Module


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where in the order one chunk stands, and the values that later nodes read."""

    place: int
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialRepair:
    """Repairs sliced copies of one network.

    Attributes:
        network: The dense network.
        graph: Its graph, with a program.
        targets: What the dense network has at the sampled positions.
        ridge: Penalty relative to the mean diagonal of the Gram matrix; None: chosen for each fit.
        ridges: Penalties of layers for which they are known, by name.
        held_bytes: Activations that are kept at a cut, for all images; where a cut would hold more, the walk to the
            next layer begins again at the last cut that held less.
        producers: Refit every layer whose input drifted, not only the consumers of pruned units.
        half: Walk and multiply in bfloat16; sums, factors and the weights that are written stay as they are.
        sparse: What brings layers to their patterns, by layer name; each on the inputs that it really has.
    """

    network: nn.Module
    graph: Graph
    targets: Targets
    ridge: float | None = None
    ridges: Mapping[str, float] = field(default_factory=dict)
    held_bytes: float = math.inf
    producers: bool = True
    half: bool = False
    sparse: Mapping[str, Finish] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Image-forwards of one repair (those of the targets come once, before)."""
        return sum(len(chunk) for chunk in self.targets.chunks)

    def __call__(self, small: nn.Module, axes: Mapping[str, Axes]) -> dict[str, float]:
        """Refits the layers of a sliced network, in place.

        Args:
            small: The sliced network; layers that are refitted get tensors of their own.
            axes: What stays of each touched module (`kept_axes`).

        Returns:
            The ridge of each refitted layer.
        """
        program = self.graph.program
        assert program is not None
        if not axes and not self.sparse:
            return {}
        walked = self._walked(small)
        pending = self._refits(program, axes)
        order = _schedule(program, pending)
        walk = _Walk(
            order=order, last={source: node for node in order for source in node.all_input_nodes}, walked=walked
        )
        cuts = [_Cut(0, {}) for _ in self.targets.chunks]
        return {
            str(node.target): self._refit(pending[node], place, walk, cuts, small)
            for place, node in enumerate(order)
            if node in pending
        }

    def _walked(self, small: nn.Module) -> nn.Module:
        """The twin that walks: normalization folded, in the precision asked for."""
        twin = inference_copy(small, self.graph)
        return converted(twin, self.targets.chunks[0].device, torch.bfloat16) if self.half else twin

    def _refits(self, program: fx.Graph, axes: Mapping[str, Axes]) -> dict[fx.Node, _Refit]:
        drifted, layers = _drifted(program, {*axes, *self.sparse}), self.targets.layers
        refits: dict[fx.Node, _Refit] = {}
        for node in program.nodes:
            sparse = node.target in self.sparse
            if node not in layers or not (sparse or node.all_input_nodes[0] in drifted):
                continue
            touched = axes.get(str(node.target), Axes())
            if touched.inputs is None and not self.producers and not sparse:
                continue
            addend = self.targets.addends.get(node)
            scale = None if addend is None else addend.scale
            if scale is not None and touched.outputs is not None:
                scale = scale[touched.outputs]
            moved = node.all_input_nodes[0] in drifted
            refits[node] = _Refit(node, moved, touched.outputs, None if addend is None else addend.other, scale)
        return refits

    def _to(self, place: int, walk: _Walk, cuts: list[_Cut], index: int) -> Values:
        """The values in front of a node for one chunk; they become its cut where they are small enough."""
        cut, inputs = cuts[index], self.targets.chunks[index]
        values = dict(cut.values)
        if self.half and inputs.is_floating_point():
            inputs = inputs.to(torch.bfloat16)
        for node in walk.order[cut.place : place]:
            step(node, walk.walked, values, inputs)
            release(node, values, walk.last)
        held = sum(value.nbytes for value in values.values() if isinstance(value, Tensor)) / len(inputs)
        if held * self.images <= self.held_bytes:
            cuts[index] = _Cut(place, values)
        return values

    def _refit(self, refit: _Refit, place: int, walk: _Walk, cuts: list[_Cut], small: nn.Module) -> float:
        """Fits one layer and writes it to the walked twin and to the result; returns its ridge."""
        layer = small.get_submodule(refit.name)
        prior = weight_rows(layer)
        by_kernel = regrouped(prior, prior.shape[1] // kernel_size(layer))
        if self.half:  # what the products see, so that the fit makes up for the rounding too
            by_kernel = by_kernel.to(torch.bfloat16)

        def one(index: int) -> Sums:
            with torch.no_grad():
                values = self._to(place, walk, cuts, index)
                return self._rows(refit, values, self.targets.at(refit.node, index), layer, by_kernel)

        folds = folded_sums(map_chunks(one, range(len(cuts))), FOLDS if prior.shape[1] > WIDE else 2 * FOLDS)
        normalization = self._normalization(refit.name)
        intercept = isinstance(getattr(layer, "bias", None), Tensor) or normalization is not None
        ridge = self._ridge(refit, folds, intercept)
        finish = self._finish(refit, prior, kernel_size(layer))
        fit = solve(add(folds), by_kernel, ridge, intercept=intercept, finish=finish)
        weights, shift = regrouped(fit.weights, kernel_size(layer)), fit.shift.flatten()
        if refit.scale is not None:
            live = _live(refit.scale)
            if refit.name not in self.sparse:
                weights = torch.where(live.view(len(weights), 1, -1), weights, prior.double())
            shift = torch.where(live, shift, torch.zeros_like(shift))
        write_fit(small, refit.name, normalization, weights, shift)
        self._follow(walk.walked, small, refit.name)
        return ridge

    def _ridge(self, refit: _Refit, folds: Sequence[Sums], intercept: bool) -> float:
        """The penalty of one fit: the one asked for, the known one, or that which serves unseen images best."""
        if self.ridge is not None:
            return self.ridge
        if refit.name in self.ridges:
            return self.ridges[refit.name]
        return best_ridge(folds, intercept=intercept) if refit.drifted and len(folds) > 1 else UNDIVIDED_RIDGE

    def _finish(self, refit: _Refit, before: Tensor, kernel: int) -> Finish | None:
        """Brings a layer to its pattern, but for outputs that the network hardly hears; None without a pattern.

        Patterns see rows channel-major, as weights are stored; the fit has them kernel-major.
        """
        pattern = self.sparse.get(refit.name)
        if pattern is None:
            return None

        def finish(weights: Tensor, curvature: Tensor) -> Tensor:
            count = weights.shape[1]
            order = regrouped(torch.arange(count, device=weights.device).view(1, count, 1), kernel).flatten()
            stored = regrouped(weights, kernel)
            if refit.scale is not None:
                stored = torch.where(_live(refit.scale).view(len(weights), 1, -1), stored, before.double())
            return regrouped(pattern(stored, curvature[:, order][:, :, order]), count // kernel)

        return finish

    def _follow(self, walked: nn.Module, small: nn.Module, name: str) -> None:
        """Gives one layer of the walked twin the weights that `small` has there now."""
        source, layer = small.get_submodule(name), walked.get_submodule(name)
        reader = self.graph.folds().get(name)
        fused = folded(small, name, reader) if reader is not None else None
        weight, bias = fused or (source.weight, getattr(source, "bias", None))
        own: Tensor = layer.weight  # type: ignore[assignment]
        layout = torch.channels_last if self.graph.channels_last and own.ndim == 4 else torch.contiguous_format
        assert isinstance(weight, Tensor)
        layer.weight = nn.Parameter(weight.detach().to(own.dtype, memory_format=layout), requires_grad=False)
        if isinstance(bias, Tensor):
            layer.bias = nn.Parameter(bias.detach().to(own.dtype), requires_grad=False)

    def _rows(self, refit: _Refit, values: Values, target: Target, layer: nn.Module, weights: Tensor) -> Sums:
        """Sums of one chunk: the inputs that the pruned network has, and what its weights leave to be explained."""
        x = gather_patches(layer, values[refit.node.all_input_nodes[0]], target.at).flatten(2).to(weights.dtype)
        wanted = refit.kept(target.own).to(torch.promote_types(target.own.dtype, torch.float32))
        if target.other is not None and refit.other in values:
            assert refit.scale is not None
            lacking = refit.kept(target.other) - take_outputs(layer, values[refit.other], target.at)
            wanted = wanted + torch.where(_live(refit.scale), lacking / refit.scale, torch.zeros_like(lacking))
        wanted = wanted.reshape(len(wanted), len(weights), -1).transpose(0, 1)
        residual = wanted - (x @ weights).float()
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            residual = residual - bias.view(len(weights), 1, -1)
        rows = len(target.own) // target.images * self.images
        small = x.shape[2] <= (GRAM_LIMIT if refit.name in self.sparse else rows)
        return summarize(x, residual, gram=small)  # the same answer for every chunk

    def _normalization(self, name: str) -> str | None:
        """The batch normalization that can take up a shift of the layer's output."""
        reader = self.graph.folds().get(name)
        if reader is None:
            return None
        module = self.network.get_submodule(reader)
        return reader if isinstance(module, BATCH_NORMS) and module.running_mean is not None else None


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


def _live(scale: Tensor) -> Tensor:
    return scale.abs() > DEAD_SCALE * scale.abs().max()


def _drifted(program: fx.Graph, touched: set[str]) -> set[fx.Node]:
    """Nodes whose value differs between the dense and the sliced network."""
    drifted: set[fx.Node] = set()
    for node in program.nodes:
        own = node.op == "call_module" and node.target in touched
        if own or any(source in drifted for source in node.all_input_nodes):
            drifted.add(node)
    return drifted


def _schedule(program: fx.Graph, late: Collection[fx.Node]) -> list[fx.Node]:
    """The nodes in an order of execution that puts every refit off until nothing else can be computed.

    A shortcut without weights often comes after the branch it is added to; the branch's last layer can make up
    for what the shortcut lacks only if the shortcut is there already.
    """
    place = {node: index for index, node in enumerate(program.nodes)}
    missing = {node: len(node.all_input_nodes) for node in program.nodes}
    ready = [(node in late, place[node], node) for node in program.nodes if not missing[node]]
    order: list[fx.Node] = []
    while ready:
        node = heappop(ready)[2]
        order.append(node)
        for reader in node.users:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (reader in late, place[reader], reader))
    return order
