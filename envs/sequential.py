"""Sequential repair: consumers are refitted in execution order, on the inputs that the pruned network really has.

Dense and pruned network walk the traced graph side by side over the calibration images; at each layer to be
refitted the walk stops, rows are gathered, and a ridge regression toward the sliced weights is solved. The
target is the layer's dense output, plus what the other branch of the addition it feeds still misses (mapped
back through the per-channel affine operators between them), so that errors do not pile up along a residual
stream (in the spirit of He, Zhang & Sun, ICCV 2017, section 3.2, for whole residual networks).
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.graph import BATCH_NORMS, Graph, execute, functional_copy
from envs.parallel import map_chunks
from envs.ridge import Sums, add, solve, summarize
from envs.rows import (
    Positions,
    as_weight,
    can_gather,
    draw_positions,
    gather_inputs,
    output_places,
    take_outputs,
    weight_rows,
)
from envs.slicing import Axes
from envs.statistics import Sampling

DEAD_SCALE = 1e-3
"""Per-channel scales below this fraction of the largest cannot be divided by: the channel is left as it is."""
PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(slots=True)
class _State:
    """Live values of one chunk in both networks."""

    dense: dict[fx.Node, Any]
    small: dict[fx.Node, Any]


@dataclass(frozen=True, slots=True)
class _Refit:
    """One layer to refit: its node, the other addend (if it feeds an addition) and the scale in between."""

    node: fx.Node
    name: str
    outputs: Tensor | None
    other: fx.Node | None
    scale: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialRepair:
    """Repairs sliced copies of one network.

    Attributes:
        network: The dense network.
        graph: Its graph, with a program.
        chunks: Calibration inputs.
        sampling: Output positions per image and seed.
        ridge: Penalty relative to the mean diagonal of the Gram matrix.
        producers: Refit every layer whose input drifted, not only the consumers of pruned units.
    """

    network: nn.Module
    graph: Graph
    chunks: Sequence[Tensor]
    sampling: Sampling
    ridge: float
    producers: bool = True

    @property
    def images(self) -> int:
        """Image-forwards of one repair: both networks over all calibration images."""
        return 2 * sum(len(chunk) for chunk in self.chunks)

    def __call__(self, small: nn.Module, axes: Mapping[str, Axes]) -> nn.Module:
        """Refits the layers of a sliced network, in place.

        Args:
            small: The sliced network; layers that are refitted get tensors of their own.
            axes: What stays of each touched module (`kept_axes`).

        Returns:
            `small`.
        """
        program = self.graph.program
        assert program is not None
        if not axes:
            return small
        dense, walked = functional_copy(self.network), functional_copy(small)
        drifted = _drifted(program, set(axes))
        pending = self._refits(program, axes, drifted)
        order = _schedule(program, pending)
        last = {source: node for node in order for source in node.all_input_nodes}
        states = [_State({}, {}) for _ in self.chunks]
        segment: list[fx.Node] = []
        for node in order:
            if not pending:
                break
            if node in pending:
                self._advance(segment, states, dense, walked, drifted, last)
                segment = []
                self._refit(pending.pop(node), states, dense, walked, small)
            segment.append(node)
        return small

    def _refits(self, program: fx.Graph, axes: Mapping[str, Axes], drifted: set[fx.Node]) -> dict[fx.Node, _Refit]:
        calls = self.graph.calls()
        refits: dict[fx.Node, _Refit] = {}
        for node in program.nodes:
            name = str(node.target)
            if node.op != "call_module" or calls.get(name) != 1 or not node.all_input_nodes:
                continue
            if node.all_input_nodes[0] not in drifted or not can_gather(self.network.get_submodule(name)):
                continue
            touched = axes.get(name, Axes())
            if touched.inputs is None and not self.producers:
                continue
            other, scale = _addition(node, self.network)
            if scale is not None and touched.outputs is not None:
                scale = scale[touched.outputs]
            refits[node] = _Refit(node, name, touched.outputs, other, scale)
        return refits

    def _advance(
        self,
        segment: Sequence[fx.Node],
        states: Sequence[_State],
        dense: nn.Module,
        small: nn.Module,
        drifted: set[fx.Node],
        last: Mapping[fx.Node, fx.Node],
    ) -> None:
        """Executes a run of nodes for every chunk, in both networks where they differ."""

        def one(index: int) -> None:
            state = states[index]
            with torch.no_grad():
                for node in segment:
                    if node.op == "placeholder":
                        value = self.chunks[index] if not state.dense else (node.args[0] if node.args else None)
                        state.dense[node] = state.small[node] = value
                        continue
                    if node not in state.dense:  # a refitted layer's dense output is there already
                        state.dense[node] = execute(node, dense, state.dense)
                    state.small[node] = execute(node, small, state.small) if node in drifted else state.dense[node]
                    for source in node.all_input_nodes:
                        if last[source] is node:
                            state.dense.pop(source, None)
                            state.small.pop(source, None)

        for _ in map_chunks(one, range(len(states))):
            pass

    def _refit(
        self, refit: _Refit, states: Sequence[_State], dense: nn.Module, walked: nn.Module, small: nn.Module
    ) -> None:
        """Fits one layer and writes it to the walked twin and to the result."""
        layer = walked.get_submodule(refit.name)
        key = list(self.graph.order()).index(refit.name)

        def one(index: int) -> Sums:
            with torch.no_grad():
                return self._rows(refit, states[index], dense, walked, self.sampling.generator(key, index))

        normalization = self._normalization(refit.name)
        has_bias = isinstance(getattr(layer, "bias", None), Tensor)
        fit = solve(
            add(map_chunks(one, range(len(states)))), weight_rows(layer), self.ridge,
            intercept=has_bias or normalization is not None,
        )  # fmt: skip
        weights, shift = fit.weights, fit.shift.flatten()
        if refit.scale is not None:
            live = _live(refit.scale)
            per_group = live.view(len(weights), 1, -1)
            weights = torch.where(per_group, weights, weight_rows(layer).double())
            shift = torch.where(live, shift, torch.zeros_like(shift))
        write_fit(walked, refit.name, normalization, weights, shift)
        write_fit(small, refit.name, normalization, weights, shift)

    def _rows(
        self, refit: _Refit, state: _State, dense: nn.Module, small: nn.Module, generator: torch.Generator
    ) -> Sums:
        source = refit.node.all_input_nodes[0]
        target = state.dense[refit.node] = execute(refit.node, dense, state.dense)
        layer = small.get_submodule(refit.name)
        at = draw_positions(len(target), output_places(layer, tuple(target.shape)), self.sampling.positions, generator)
        wanted = take_outputs(layer, target, at)
        if refit.outputs is not None:
            wanted = wanted[:, refit.outputs]
        x = gather_inputs(layer, state.small[source], at)
        other = state.dense.get(refit.other) if refit.other in state.small else None
        if isinstance(other, Tensor) and other.shape == target.shape:
            wanted = wanted + _missing(refit, layer, state, at)
        weights = weight_rows(layer)
        wanted = wanted.reshape(len(wanted), len(weights), -1).transpose(0, 1)
        residual = wanted - x @ weights
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            residual = residual - bias.view(len(weights), 1, -1)
        rows = x.shape[1] // len(target) * sum(len(chunk) for chunk in self.chunks)
        return summarize(x, residual, gram=x.shape[2] <= rows)  # the same answer for every chunk

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


def _missing(refit: _Refit, layer: nn.Module, state: _State, at: Positions) -> Tensor:
    """[m, O] what the other addend lacks, in units of the layer's output (0 where the scale is dead)."""
    assert refit.other is not None
    assert refit.scale is not None
    before = take_outputs(layer, state.dense[refit.other], at)
    if refit.outputs is not None:
        before = before[:, refit.outputs]
    lacking = before - take_outputs(layer, state.small[refit.other], at)
    return torch.where(_live(refit.scale), lacking / refit.scale, torch.zeros_like(lacking))


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


def _addition(node: fx.Node, network: nn.Module) -> tuple[fx.Node | None, Tensor | None]:
    """The other addend of the first addition that a layer's output reaches, and the scale on the way.

    Only single-use per-channel affine operators may stand in between.
    """
    module = network.get_submodule(str(node.target))
    scale = torch.ones(getattr(module, "out_channels", getattr(module, "out_features", 1)))
    current = node
    while len(current.users) == 1:
        reader = next(iter(current.users))
        if _is_addition(reader):
            other = next((source for source in reader.all_input_nodes if source is not current), None)
            return (other, scale) if other is not None else (None, None)
        if reader.op != "call_module":
            return None, None
        between = network.get_submodule(str(reader.target))
        if isinstance(between, BATCH_NORMS) and between.running_var is not None:
            step = (between.running_var + between.eps).rsqrt()
            scale = scale * (step if between.weight is None else step * between.weight.detach())
        elif not isinstance(between, PASS_THROUGH):
            return None, None
        current = reader
    return None, None


def _is_addition(node: fx.Node) -> bool:
    known = node.target in (operator.add, torch.add) or (node.op == "call_method" and node.target == "add")
    return known and "alpha" not in node.kwargs and len(node.all_input_nodes) == 2
