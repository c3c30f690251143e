"""Damage per unit and width: what the network's output suffers when one unit alone is pruned and repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import Tensor, fx, nn

from envs.compress import Compressor
from envs.graph import execute, last_readers
from envs.inference import channels_last, inference_copy
from envs.parallel import map_chunks
from envs.sites import Site, decode

FloatArray = NDArray[np.float64]
OVERFLOW = 1e6
Damage = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps new outputs, dense outputs and targets of one batch to one value per image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Damage of one unit at the widths where it was measured.

    Attributes:
        unit: Name of the unit.
        kept: [k] ascending kept channels; the last is the full width.
        damage: [k] damage per image, 0 at full width.
    """

    unit: str
    kept: tuple[int, ...]
    damage: tuple[float, ...]

    def at(self, kept: NDArray[np.int64]) -> FloatArray:
        """Damage at any widths: monotone cubic between measured ones (Fritsch & Carlson 1980).

        Straight lines would overrate every width between two measured ones of a convex curve, and an
        allocation would end up on measured widths only.
        """
        if len(self.kept) < 2:
            return np.interp(kept, self.kept, self.damage)
        return np.asarray(PchipInterpolator(self.kept, self.damage)(kept), dtype=np.float64)


def measured_widths(site: Site, count: int) -> list[int]:
    """At most `count` widths of a site, evenly spread from the lightest, full width left out."""
    kept = [choice.kept for choice in site.choices if choice.kept < site.channels]
    picks = np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int))
    return [kept[index] for index in picks]


def sensitivity_forwards(sites: Sequence[Site], widths: int, images: int) -> int:
    """Image-forwards that `measure_damage` is charged: one per image and variant, and the dense ones."""
    return images * (1 + sum(len(measured_widths(site, widths)) for site in sites))


def measure_damage(
    compressor: Compressor,
    sites: Sequence[Site],
    batches: Sequence[tuple[Tensor, Tensor]],
    widths: int,
    damages: Mapping[str, Damage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Curve]]:
    """Measures each unit's damage curve, with the compressor's repair of that unit alone.

    Only what a unit changes is computed again: a traced network is walked once, and every variant starts
    from the values in front of its unit. With one unit pruned, sequential repair of its consumers is the
    layer-wise fit (nothing in front of them has drifted), so that is what is used.

    Args:
        compressor: Of the dense network.
        sites: The units to measure, in execution order.
        batches: Calibration (inputs, targets).
        widths: Widths per unit.
        damages: What to measure, by name; all of them on the same outputs.
        progress: Called with (variants done, all variants).

    Returns:
        For each damage one curve per site, in site order.
    """
    repair: Literal["none", "layerwise"] = "none" if compressor.settings.repair == "none" else "layerwise"
    dense = inference_copy(compressor.network, compressor.graph)
    device = compressor.settings.device
    inputs = [channels_last(batch.to(device)) for batch, _ in batches]
    targets = [wanted.to(device) for _, wanted in batches]
    outputs = list(map_chunks(lambda batch: forward(dense, batch), inputs))
    runner = _Prefix(compressor, dense, inputs) if compressor.graph.traced else _Whole(inputs)
    plan = {site.unit: measured_widths(site, widths) for site in sites}
    total, done = sum(map(len, plan.values())), 0
    curves: dict[str, list[Curve]] = {name: [] for name in damages}
    for site in sites:
        values: dict[str, list[float]] = {name: [] for name in damages}
        for kept in plan[site.unit]:
            policy = compressor.policy(*decode((site,), (kept,)))
            variant = inference_copy(compressor.compress(policy, repair).network, compressor.graph)
            found = list(runner.outputs(variant, site.unit))
            for name, damage in damages.items():
                values[name].append(mean_damage(damage, found, outputs, targets))
            done += 1
            progress(done, total)
        for name, measured in values.items():
            points = (*np.maximum(measured, 0.0).tolist(), 0.0)
            curves[name].append(Curve(unit=site.unit, kept=(*plan[site.unit], site.channels), damage=points))
    return curves


def mean_damage(damage: Damage, new: Sequence[Tensor], old: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """Mean over all images of a list of batches; a network that overflows is as bad as it gets."""
    parts = [damage(a.double(), b.double(), y).sum() for a, b, y in zip(new, old, targets, strict=True)]
    value = float(torch.stack(parts).sum()) / sum(map(len, new))
    return value if np.isfinite(value) else OVERFLOW


def forward(network: nn.Module, inputs: Tensor) -> Tensor:
    """Output of one batch, without gradients."""
    with torch.no_grad():
        output: Tensor = network(inputs)
    return output


def divergence(temperature: float) -> Damage:
    """KL of the outputs, softened by a temperature, from the dense network's, times temperature squared, in nats.

    A trained network is so sure of its calibration images that the plain divergence (temperature 1) sees only
    few of them (Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015).
    """

    def damage(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
        if not _scores_classes(new, targets):
            return _per_image((new - old).square())
        log_new, log_old = (F.log_softmax(outputs / temperature, dim=1) for outputs in (new, old))
        return _per_image((log_old.exp() * (log_old - log_new)).sum(dim=1)) * temperature**2

    return damage


def output_error(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of the outputs, each centred over the classes (the limit of high temperature)."""
    difference = new - old
    if not _scores_classes(new, targets):
        return _per_image(difference.square())
    return _per_image((difference - difference.mean(dim=1, keepdim=True)).square().mean(dim=1))


def loss(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
    """Rise of the cross-entropy on the targets."""
    if not _scores_classes(new, targets):
        return _per_image((new - old).square())
    rise = F.cross_entropy(new, targets, reduction="none") - F.cross_entropy(old, targets, reduction="none")
    return _per_image(rise)


def _scores_classes(outputs: Tensor, targets: Tensor) -> bool:
    """Whether outputs are scores [B, K, ...] of K > 1 classes; others are compared by squared difference."""
    fits = outputs.ndim >= 2 and outputs.shape[1] > 1
    return fits and not targets.is_floating_point() and targets.shape == (len(outputs), *outputs.shape[2:])


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.ndim > 1 else values


DAMAGES: dict[str, Damage] = {"kl": divergence(4.0), "kl1": divergence(1.0), "logits": output_error, "loss": loss}


class _Whole:
    """Runs every variant from the start (networks that could not be traced)."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = inputs

    def outputs(self, variant: nn.Module, unit: str) -> Iterator[Tensor]:
        """The variant's output for each batch, in order."""
        return map_chunks(lambda batch: forward(variant, batch), self._inputs)


class _Prefix:
    """Runs a variant from its unit's first layer on, on dense values kept at that cut."""

    def __init__(self, compressor: Compressor, dense: nn.Module, inputs: Sequence[Tensor]) -> None:
        program = compressor.graph.program
        assert program is not None
        self._nodes = list(program.nodes)
        self._last = last_readers(program)
        self._dense = dense
        self._cut = 0
        self._values: list[dict[fx.Node, Any]] = [{} for _ in inputs]
        self._inputs = inputs
        first: dict[str, int] = {}
        for index, node in enumerate(self._nodes):
            if node.op == "call_module":
                first.setdefault(str(node.target), index)
        self._starts = {
            unit.name: min(first.get(member.module, 0) for member in unit.members) for unit in compressor.units
        } | {f"{name}.weight": index for name, index in first.items()}

    def outputs(self, variant: nn.Module, unit: str) -> Iterator[Tensor]:
        """The variant's output for each batch, in order; units must come in execution order."""
        start = self._starts[unit]
        if start < self._cut:
            self._cut, self._values = 0, [{} for _ in self._inputs]
        if start > self._cut:
            list(map_chunks(lambda i: self._run(self._dense, self._values[i], i, self._cut, start), self._chunks()))
            self._cut = start
        return map_chunks(
            lambda i: self._run(variant, dict(self._values[i]), i, start, len(self._nodes)), self._chunks()
        )

    def _chunks(self) -> range:
        return range(len(self._inputs))

    def _run(self, network: nn.Module, values: dict[fx.Node, Any], chunk: int, start: int, stop: int) -> Any:
        with torch.no_grad():
            for node in self._nodes[start:stop]:
                if node.op == "placeholder":
                    values[node] = self._inputs[chunk] if not values else (node.args[0] if node.args else None)
                else:
                    values[node] = execute(node, network, values)
                for source in node.all_input_nodes:
                    if self._last[source] is node:
                        values.pop(source, None)
                if node.op == "output":
                    return values[node]
        return None
