"""Damage per unit and width: what the network's output suffers when one unit alone is pruned and repaired."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from envs.compression.compress import Compressor
from envs.compression.names import DAMAGES
from envs.compression.preparation import HELD_SHARE
from envs.lookup import find
from envs.network.inference import Twins, inference_copy
from envs.network.inputs import Inputs, batch_size, call, channels_last, mapped
from envs.network.interpreter import Checkpoints, Interpreter
from envs.parallel import map_chunks
from envs.regression.counted import mask_of
from envs.regression.shrinkage import FOLDS
from envs.space.assignment import Assignment
from envs.space.sites import Site
from envs.units.units import Unit
from hw_profiles.cost import Macs, cost_of
from hw_profiles.layers import Layout

FloatArray = NDArray[np.float64]
MAX_DAMAGE = 1e6
"""Of one image: what an output that overflows counts."""
DAMAGE_MACS = 1e13
"""Multiply-accumulates that all damage curves together should not take more than."""
MIN_DAMAGE_ROWS, MIN_DAMAGE_IMAGES = 256, 8
"""Outputs (one per image, or per token) and images below which damage curves tell little."""
MANY_OUTPUTS, FEW_TOKENS = 100_000, 32
"""Numbers of one image's outputs from which on damage is measured at so many of its tokens only, in single precision:
on 49,152 words that is three times as fast, and wrong by 1e-5 in a divergence at temperature 4."""
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
        return np.asarray(_monotone(self.kept, self.damage)(kept), dtype=np.float64)

    def scaled(self, factor: float) -> Curve:
        """The same with every damage so many times as large."""
        return replace(self, damage=tuple((factor * np.asarray(self.damage)).tolist()))


@lru_cache(maxsize=4096)
def _monotone(kept: tuple[int, ...], damage: tuple[float, ...]) -> PchipInterpolator:
    """Remembered: searches look at the same curves again and again."""
    return PchipInterpolator(kept, damage)


def measured_widths(site: Site, count: int) -> list[int]:
    """At most `count` widths of a site, evenly spread from the lightest, full width left out."""
    kept = [choice.value for choice in site.choices if choice.value < site.size]
    picks = np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int))
    return [kept[index] for index in picks]


def damage_images(dense: Layout, sites: Sequence[Site], widths: int, max_images: int, rows: int = 1) -> int:
    """Images per variant: `max_images`, fewer where a network is so large that the curves would take hours.

    Args:
        dense: The dense network.
        sites: What is measured.
        widths: Widths of each.
        max_images: Images that there are.
        rows: Outputs of one image.
    """
    variants = sum(len(measured_widths(site, widths)) for site in sites)
    affordable = 2 * DAMAGE_MACS / (cost_of(Macs(), dense) * max(variants, 1))  # a variant runs half of the network
    least = max(MIN_DAMAGE_IMAGES, math.ceil(MIN_DAMAGE_ROWS / rows))
    return int(min(max_images, max(least, affordable)))


def output_rows(outputs: Sequence[int], targets: Tensor) -> int:
    """Outputs of one image: 1 of a classifier, one per token or pixel where each has a target of its own.

    Args:
        outputs: Shape [1, ...] of one image's outputs.
        targets: [1, ...] its targets.
    """
    if targets.ndim > 2 and targets.shape == tuple(outputs):
        return max(1, targets.numel() // targets.shape[1])
    per_row = targets.ndim == len(outputs) - 1 and not targets.is_floating_point()
    return max(1, targets.numel()) if per_row else 1


def sensitivity_forwards(sites: Sequence[Site], widths: int, images: int) -> int:
    """Image-forwards that `measure_damage` is charged: one per image and variant, and the dense ones."""
    return images * (1 + sum(len(measured_widths(site, widths)) for site in sites))


class Batch(NamedTuple):
    """Calibration images with their targets, and the fold that fits must leave out to be judged on them."""

    inputs: Inputs
    targets: Tensor
    fold: int

    def on(self, device: str) -> Batch:
        """The same where the network is, in the layout that it prefers."""
        inputs = channels_last(mapped(lambda tensor: tensor.to(device), self.inputs))
        return Batch(inputs, self.targets.to(device), self.fold)


def measure_damage(
    compressor: Compressor,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    widths: int,
    damages: Mapping[str, Damage],
    progress: Callable[[int, int], None] = lambda done, total: None,
    judged: Callable[[Tensor], Tensor] = lambda outputs: outputs,
) -> dict[str, list[Curve]]:
    """Measures each unit's damage curve on images that the repair of that unit did not see (cross-fitting).

    Only what a unit changes is computed again: a traced network is walked once, and every variant starts
    from the values in front of its unit. With one unit pruned, sequential repair of its consumers is the
    layer-wise fit (nothing in front of them has drifted), so that is what is used.

    Args:
        compressor: Of the dense network.
        sites: The units to measure, in execution order.
        batches: Calibration images.
        widths: Widths per unit.
        damages: What to measure, by name; all of them on the same outputs.
        progress: Called with (variants done, all variants).
        judged: What of outputs is compared.

    Returns:
        For each damage one curve per site, in site order.
    """
    dense = inference_copy(compressor.network, compressor.graph)
    batches = [batch.on(compressor.settings.device) for batch in batches]
    outputs = list(map_chunks(lambda batch: judged(forward(dense, batch.inputs)), batches))
    inputs = [batch.inputs for batch in batches]
    runner = _Prefix(compressor, dense, inputs) if compressor.graph.traced else _Whole(inputs)
    plan = {site.name: measured_widths(site, widths) for site in sites}
    total, done = sum(map(len, plan.values())), 0
    curves: dict[str, list[Curve]] = {name: [] for name in damages}
    for site in sites:
        variants = [_variants(compressor, site, plan[site.name], fold, dense) for fold in range(FOLDS)]
        compressor.forget_folds()

        def one(index: int, site: Site = site, variants: list[list[nn.Module]] = variants) -> list[list[float]]:
            batch = batches[index]
            found = runner.outputs(variants[batch.fold], site.name, index)
            mask = mask_of(compressor.counts, batch.inputs)
            old, targets = outputs[index], batch.targets
            seen = map(judged, found)
            return [[total_damage(d, new, old, targets, mask) for d in damages.values()] for new in seen]

        sums = np.asarray(list(map_chunks(one, range(len(batches))))).sum(axis=0).reshape(-1, len(damages))
        means = np.clip(sums / sum(batch_size(batch.inputs) for batch in batches), 0.0, MAX_DAMAGE)
        for name, measured in zip(damages, means.T, strict=True):
            points = (*measured.tolist(), 0.0)
            curves[name].append(Curve(unit=site.name, kept=(*plan[site.name], site.size), damage=points))
        done += len(plan[site.name])
        progress(done, total)
    return curves


def _variants(
    compressor: Compressor, site: Site, widths: Sequence[int], fold: int, dense: nn.Module
) -> list[nn.Module]:
    """The network with one unit at each width, repaired on all images but those of one fold."""
    policies = [compressor.policy_of(Assignment.of((site,), (kept,))) for kept in widths]
    small = [compressor.compress_alone(policy, fold) for policy in policies]
    return [inference_copy(network, compressor.graph, Twins(compressor.network, dense)) for network in small]


def damage_named(name: str) -> Damage:
    """The damage of that name.

    Raises:
        ValueError: If there is none of that name.
    """
    damage: Damage = find("damage", name, DAMAGES)
    return damage


def total_damage(damage: Damage, new: Tensor, old: Tensor, targets: Tensor, mask: Tensor | None = None) -> float:
    """Sum over the images of a batch; a network that overflows is as bad as it gets."""
    many = new.numel() >= MANY_OUTPUTS * len(new)
    precision, most = (torch.float32, FEW_TOKENS) if many else (torch.float64, None)

    def exact(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
        return damage(new.to(precision), old.to(precision), targets)

    value = float(damage_of(exact, new, old, targets, mask, most).sum())
    return value if np.isfinite(value) else MAX_DAMAGE * len(new)


def damage_of(
    damage: Damage, new: Tensor, old: Tensor, targets: Tensor, mask: Tensor | None = None, most: int | None = None
) -> Tensor:
    """[B] damage per image; where there is an output for every token, the mean over those that count.

    Args:
        damage: What is measured.
        new: [B, ...] outputs.
        old: [B, ...] the dense network's.
        targets: [B, ...].
        mask: [B, ...] bool, which tokens count; None: all.
        most: Tokens of an image that are looked at, evenly spread over those that count; None: all.
    """
    if mask is not None and mask.shape == new.shape:
        new, old = new[..., None], old[..., None]
    rows = tuple(new.shape[:-1])
    if mask is None and _scores_tokens(new, targets):
        mask = torch.ones(rows, dtype=torch.bool, device=new.device)
    if mask is None or tuple(mask.shape) != rows:
        return damage(new, old, targets)
    each = targets if targets.shape == mask.shape else torch.zeros(rows, device=new.device)
    if most is not None:
        mask = torch.stack([_thinned(m, most) for m in mask])
    # Sample by sample: a copy of what a language model gives for all of them would be large.
    samples = zip(new, old, each, mask, strict=True)
    return torch.stack([damage(n[m], o[m], t[m]).sum() / m.sum().clamp_min(1) for n, o, t, m in samples])


def _thinned(mask: Tensor, most: int) -> Tensor:
    """At most so many of the tokens that count, evenly spread."""
    step = -(-int(mask.sum()) // most)
    return mask & ((mask.flatten().cumsum(0).view_as(mask) - 1) % max(step, 1) == 0)


def forward(network: nn.Module, inputs: Inputs) -> Tensor:
    """Output of one batch, without gradients."""
    with torch.no_grad():
        output: Tensor = call(network, inputs)
    return output


def divergence(new: Tensor, old: Tensor, targets: Tensor, temperature: float = 4.0) -> Tensor:
    """KL of the outputs, softened by a temperature, from the dense network's, times temperature squared, in nats.

    A trained network is so sure of its calibration images that the plain divergence (temperature 1) sees only
    few of them (Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015).
    """
    if not _scores_classes(new, targets):
        return _per_image((new - old).square())
    log_new, log_old = (F.log_softmax(outputs / temperature, dim=1) for outputs in (new, old))
    return _per_image((log_old.exp() * (log_old - log_new)).sum(dim=1)) * temperature**2


def plain_divergence(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
    """KL of the outputs from the dense network's, in nats."""
    return divergence(new, old, targets, temperature=1.0)


def output_error(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of the outputs, each centred over the classes (the limit of high temperature)."""
    difference = new - old
    if not _scores_classes(new, targets):
        return _per_image(difference.square())
    return _per_image((difference - difference.mean(dim=1, keepdim=True)).square().mean(dim=1))


def cross_entropy_rise(new: Tensor, old: Tensor, targets: Tensor) -> Tensor:
    """Rise of the cross-entropy on the targets."""
    if not _scores_classes(new, targets):
        return _per_image((new - old).square())
    rise = F.cross_entropy(new, targets, reduction="none") - F.cross_entropy(old, targets, reduction="none")
    return _per_image(rise)


def _scores_classes(outputs: Tensor, targets: Tensor) -> bool:
    """Whether outputs are scores [B, K, ...] of K > 1 classes; others are compared by squared difference."""
    fits = outputs.ndim >= 2 and outputs.shape[1] > 1
    return fits and not targets.is_floating_point() and targets.shape == (len(outputs), *outputs.shape[2:])


def _scores_tokens(outputs: Tensor, targets: Tensor) -> bool:
    """Whether outputs are scores [B, T, K] of the classes of tokens, with targets [B, T]."""
    apart = outputs.ndim > 2 and targets.shape == outputs.shape[:-1]
    return apart and not targets.is_floating_point() and not _scores_classes(outputs, targets)


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.ndim > 1 else values


class _Whole:
    """Runs every variant from the start (networks that could not be traced)."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._inputs = inputs

    def outputs(self, variants: Sequence[nn.Module], unit: str, index: int) -> Iterator[Tensor]:
        """Each variant's output for one batch."""
        for variant in variants:
            yield forward(variant, self._inputs[index])


def _start(unit: Unit, first: Mapping[str, int]) -> int:
    """Where the program first runs or reads something that a unit changes."""
    members = [first.get(member.module, 0) for member in unit.members]
    changed = [name for one in unit.attributes for name in (one.name, one.name.rpartition(".")[0])]
    return min([*members, *(first[name] for name in changed if name in first)])


class _Prefix:
    """Runs variants from their unit's first layer on; in front of it the dense network's values serve all of them."""

    def __init__(self, compressor: Compressor, dense: nn.Module, inputs: Sequence[Inputs]) -> None:
        self._dense = dense
        self._inputs = inputs
        self._interpreter = Interpreter(compressor.graph.require_program().nodes)
        held_bytes = HELD_SHARE * 1e9 * compressor.settings.memory_gb
        self._checkpoints = Checkpoints(self._interpreter, inputs, held_bytes)
        first: dict[str, int] = {}
        for index, node in enumerate(self._interpreter.order):
            if node.op in ("call_module", "get_attr"):
                first.setdefault(str(node.target), index)
        self._starts = {unit.name: _start(unit, first) for unit in compressor.units}
        self._starts |= {f"{name}.weight": index for name, index in first.items()}

    def outputs(self, variants: Sequence[nn.Module], unit: str, index: int) -> Iterator[Tensor]:
        """Each variant's output for one batch; units must come in execution order, or the walk begins again.

        Without a branch, a network has other operators, and is run from the start.
        """
        if unit not in self._starts:
            yield from _Whole(self._inputs).outputs(variants, unit, index)
            return
        cut = self._checkpoints.advance(self._dense, index, self._starts[unit])
        for variant in variants:
            yield self._interpreter.output(variant, self._inputs[index], cut=cut)
