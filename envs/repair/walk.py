"""One walk of sequential repair: layers are refitted in execution order, on the inputs that the pruned network has.

The pruned network walks the traced graph over the calibration images; at each layer to be refitted the walk
stops, rows are gathered, and a ridge regression toward the sliced weights is solved. The target is the layer's
dense output, plus what the other branch of the addition it feeds still misses (mapped back through the
per-channel affine operators between them), so that errors do not pile up along a residual stream (in the spirit
of He, Zhang & Sun, ICCV 2017, section 3.2, for whole residual networks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.graph import Graph
from envs.network.inference import converted, folded, inference_copy
from envs.network.inputs import tensors
from envs.network.interpreter import Checkpoints, Interpreter
from envs.parallel import map_chunks
from envs.regression.ridge import Finish, Sums, add, solve, sums_of
from envs.regression.rows import gather_patches, kernel_size, regrouped, take_outputs, weight_of, weight_rows
from envs.regression.shrinkage import FOLDS, UNDIVIDED_RIDGE, best_ridge, folded_sums
from envs.regression.statistics import GRAM_LIMIT
from envs.repair.beside import DenseWalk, TargetsBeside
from envs.repair.branches import NO_BRANCHES, BranchMeans, Gone, write_constant
from envs.repair.normalization import normalization_behind, takes_shift, write_fit
from envs.repair.refits import Refit, execution_order, refits_of
from envs.repair.targets import Target, Targets
from envs.units.slicing import Axes

WIDE = 2048
"""Columns beyond which Gram matrices are so large that only few of them are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairWalk:
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
        finishes: What brings layers to their patterns, by layer name; each on the inputs that it really has.
        gone: Branches that are gone, by the nodes of their constants, whose only argument is the shortcut.
        means: What branches give in the dense network.
    """

    network: nn.Module
    graph: Graph
    targets: Targets | TargetsBeside
    ridge: float | None = None
    ridges: Mapping[str, float] = field(default_factory=dict)
    held_bytes: float = math.inf
    producers: bool = True
    half: bool = False
    finishes: Mapping[str, Finish] = field(default_factory=dict)
    gone: Mapping[fx.Node, Gone] = field(default_factory=dict)
    means: BranchMeans = NO_BRANCHES

    def __call__(self, small: nn.Module, axes: Mapping[str, Axes]) -> dict[str, float]:
        """Refits the layers of a sliced network, in place.

        Args:
            small: The sliced network; layers that are refitted get tensors of their own.
            axes: What stays of each touched module (`kept_axes`).

        Returns:
            The ridge of each refitted layer.
        """
        if not axes and not self.finishes and not self.gone:
            return {}
        program = self.graph.require_program()
        pending = refits_of(
            program, self.targets, axes, self.finishes.keys(), producers=self.producers, constants=self.gone.keys()
        )
        interpreter = Interpreter(execution_order(program, {*pending, *self.gone}))
        arithmetic = torch.bfloat16 if self.half else None
        checkpoints = Checkpoints(interpreter, self.targets.chunks, self.held_bytes, arithmetic)
        aims = self.targets.along(interpreter, self.held_bytes)
        walked = self._walked(small)
        ridges = {}
        for place, node in enumerate(interpreter.order):
            if node in pending:
                ridges[str(node.target)] = self._refit(pending[node], place, walked, checkpoints, aims, small)
            elif node in self.gone:
                self._refit_constant(node, place, walked, checkpoints, small)
        return ridges

    def _walked(self, small: nn.Module) -> nn.Module:
        """The twin that walks: normalization folded, in the precision asked for."""
        twin = inference_copy(small, self.graph)
        return converted(twin, tensors(self.targets.chunks[0])[0].device, torch.bfloat16) if self.half else twin

    def _refit(
        self,
        refit: Refit,
        place: int,
        walked: nn.Module,
        checkpoints: Checkpoints,
        aims: Targets | DenseWalk,
        small: nn.Module,
    ) -> float:
        """Fits one layer and writes it to the walked twin and to the result; returns its ridge."""
        layer = small.get_submodule(refit.name)
        prior = weight_rows(layer)
        by_kernel = regrouped(prior, prior.shape[1] // kernel_size(layer))
        if self.half:  # what the products see, so that the fit makes up for the rounding too
            by_kernel = by_kernel.to(torch.bfloat16)

        def one(index: int) -> Sums:
            with torch.no_grad():
                values = checkpoints.advance(walked, index, place).values
                return self._rows(refit, values, aims.at(refit.node, index), layer, by_kernel, gram=gram)

        most = GRAM_LIMIT if refit.name in self.finishes else self.targets.count(refit.node)
        gram = prior.shape[1] <= most  # the same answer for every chunk
        chunks = range(len(self.targets.chunks))
        folds = folded_sums(map_chunks(one, chunks), FOLDS if prior.shape[1] > WIDE else 2 * FOLDS)
        intercept = takes_shift(small, self.graph.folds(), refit.name)
        ridge = self._ridge(refit, folds, intercept)
        finish = self._finish(refit, prior, kernel_size(layer))
        fit = solve(add(folds), by_kernel, ridge, intercept=intercept, finish=finish)
        weights, shift = regrouped(fit.weights, kernel_size(layer)), fit.shift.flatten()
        if refit.branch is not None:
            live = refit.branch.live
            if refit.name not in self.finishes:
                weights = torch.where(live.view(len(weights), 1, -1), weights, prior.double())
            shift = torch.where(live, shift, torch.zeros_like(shift))
        write_fit(small, refit.name, normalization_behind(small, self.graph.folds(), refit.name), weights, shift)
        self._follow(walked, small, refit.name)
        return ridge

    def _refit_constant(
        self, node: fx.Node, place: int, walked: nn.Module, checkpoints: Checkpoints, small: nn.Module
    ) -> None:
        """Gives a removed branch's constant what the dense sum has above the pruned network's shortcut, in the mean."""
        gone, shortcut = self.gone[node], node.all_input_nodes[0]
        lookout, sums = self.means.lookouts[gone.verified.name], self.means.sums[gone.verified.name]

        def one(index: int) -> Tensor:
            with torch.no_grad():
                values = checkpoints.advance(walked, index, place).values
                rows = lookout.rows(values[shortcut], index).double()
                return gone.kept(sums[index].own + sums[index].shortcut) - rows.sum(dim=0)

        chunks = range(len(self.targets.chunks))
        lacking = torch.stack(list(map_chunks(one, chunks))).sum(dim=0)
        for network in (walked, small):
            write_constant(network, gone.branch, lacking / sum(sums[index].rows for index in chunks))

    def _ridge(self, refit: Refit, folds: Sequence[Sums], intercept: bool) -> float:
        """The penalty of one fit: the one asked for, the known one, or that which serves unseen images best."""
        if self.ridge is not None:
            return self.ridge
        if refit.name in self.ridges:
            return self.ridges[refit.name]
        return best_ridge(folds, intercept=intercept) if refit.drifted and len(folds) > 1 else UNDIVIDED_RIDGE

    def _finish(self, refit: Refit, before: Tensor, kernel: int) -> Finish | None:
        """Brings a layer to its pattern, but for outputs that the network hardly hears; None without a pattern.

        Patterns see rows channel-major, as weights are stored; the fit has them kernel-major.
        """
        pattern = self.finishes.get(refit.name)
        if pattern is None:
            return None

        def finish(weights: Tensor, curvature: Tensor) -> Tensor:
            count = weights.shape[1]
            order = regrouped(torch.arange(count, device=weights.device).view(1, count, 1), kernel).flatten()
            stored = regrouped(weights, kernel)
            if refit.branch is not None:
                stored = torch.where(refit.branch.live.view(len(weights), 1, -1), stored, before.double())
            return regrouped(pattern(stored, curvature[:, order][:, :, order]), count // kernel)

        return finish

    def _follow(self, walked: nn.Module, small: nn.Module, name: str) -> None:
        """Gives one layer of the walked twin the weights that `small` has there now."""
        source, layer = small.get_submodule(name), walked.get_submodule(name)
        reader = self.graph.folds().get(name)
        fused = folded(small, name, reader) if reader is not None else None
        weight, bias = fused or (weight_of(source), getattr(source, "bias", None))
        own: Tensor = layer.weight  # type: ignore[assignment]
        layout = torch.channels_last if self.graph.channels_last and own.ndim == 4 else torch.contiguous_format
        layer.weight = nn.Parameter(weight.detach().to(own.dtype, memory_format=layout), requires_grad=False)
        if isinstance(bias, Tensor):
            layer.bias = nn.Parameter(bias.detach().to(own.dtype), requires_grad=False)

    def _rows(
        self,
        refit: Refit,
        values: Mapping[fx.Node, Any],
        target: Target,
        layer: nn.Module,
        weights: Tensor,
        *,
        gram: bool,
    ) -> Sums:
        """Sums of one chunk: the inputs that the pruned network has, and what its weights leave to be explained."""
        x = gather_patches(layer, values[refit.node.all_input_nodes[0]], target.at).flatten(2).to(weights.dtype)
        wanted = refit.kept(target.own).to(torch.promote_types(target.own.dtype, torch.float32))
        branch = refit.branch
        if target.other is not None and branch is not None and branch.other in values:
            lacking = refit.kept(target.other) - take_outputs(layer, values[branch.other], target.at)
            wanted = wanted + torch.where(branch.live, lacking / branch.scale, torch.zeros_like(lacking))
        wanted = wanted.reshape(len(wanted), len(weights), -1).transpose(0, 1)
        residual = wanted - (x @ weights).float()
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            residual = residual - bias.view(len(weights), 1, -1)
        return sums_of(x, residual, gram=gram)
