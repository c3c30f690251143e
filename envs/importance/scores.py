"""Importance: one score per channel of a unit; the best-scored channels stay, so kept sets are nested.

Deviations: He et al. (AMC, ECCV 2018) score input channels of one layer by |W|; here all consumers of a unit
count, each relative to its own total, because a unit can have several. For the same reason `fpgm` adds up all
producers and `fluctuation` all consumers. `taylor` has its own list in `gates.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from envs.network.graph import BATCH_NORMS, TRANSPOSED
from envs.regression.ridge import Sums, factor, penalty_of
from envs.regression.rows import can_gather, column_indices, kernel_size, weight_of, weight_rows
from envs.regression.statistics import energy_of, gram_of
from envs.units.units import Member, Unit

ELIMINATIONS = 128
"""At most this many rounds of elimination per unit; wider units drop several channels per round."""
OBS_RIDGE = 1e-2
"""Damping of the Gram matrix relative to its mean diagonal (SparseGPT damps by 1e-2 as well)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What importance may look at.

    Attributes:
        network: The dense network.
        moments: Input moments of consumers, by layer name (empty unless the importance needs them).
        output_scales: [O] scale that the normalization behind a layer gives each of its outputs.
        sensitivities: [C] what the output suffers from each channel, by unit (empty unless the importance needs them).
        seed: Seed of random scores.
    """

    network: nn.Module
    moments: Mapping[str, Sums]
    output_scales: Mapping[str, Tensor] = field(default_factory=dict)
    sensitivities: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where the network is, and so its scores."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))


Importance = Callable[[Unit, Evidence], Tensor]


def channel_order(unit: Unit, scores: Tensor) -> list[int]:
    """Channels by descending score, whole granules at a time (a granule scores the sum of its channels)."""
    scores = scores.cpu()  # one transfer, and the same order among equals on every device
    totals = torch.stack([scores[list(granule)].double().sum() for granule in unit.granules])
    ranked = torch.sort(totals, descending=True, stable=True).indices.tolist()
    return [channel for granule in ranked for channel in unit.granules[granule]]


def l1(unit: Unit, evidence: Evidence) -> Tensor:
    """Sum of |W| over the consumers' weights that read a channel (AMC's criterion): [C] float64."""
    return _consumer_norm(unit, evidence, torch.abs)


def l2(unit: Unit, evidence: Evidence) -> Tensor:
    """Sum of W^2 over the consumers' weights that read a channel: [C] float64."""
    return _consumer_norm(unit, evidence, torch.square)


def bn_scale(unit: Unit, evidence: Evidence) -> Tensor:
    """Sum of |gamma| of the unit's batch normalizations (Liu et al., Network Slimming, ICCV 2017): [C].

    Raises:
        ValueError: If the unit has no batch normalization with a scale.
    """
    scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
    found = False
    for member in unit.role("carrier"):
        module = evidence.network.get_submodule(member.module)
        if isinstance(module, BATCH_NORMS) and module.affine:
            found = True
            gamma = module.weight.detach().double().abs()
            scores += torch.stack([gamma[list(row)].sum() for row in member.positions])
    if not found:
        raise ValueError(
            f"importance `bn_scale` needs a batch normalization in every unit, but {unit.name!r} has none: "
            "use obs, l1 or l2, or skip that layer"
        )
    return scores


def fpgm(unit: Unit, evidence: Evidence) -> Tensor:
    """Sum of distances of a channel's filter to all others, over the producers: [C] float64.

    The filter nearest to the geometric median is the one that the others replace best (He et al., Filter Pruning
    via Geometric Median, CVPR 2019, equation 8).
    """
    scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
    for member in unit.role("producer"):
        filters = _filters(evidence.network.get_submodule(member.module))
        own = filters[torch.tensor(member.positions, device=filters.device)].flatten(1)
        total = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
        scores += _relative(total)
    return scores


def taylor(unit: Unit, evidence: Evidence) -> Tensor:
    """Mean square of gradient x weight, summed over all weights that read a channel (`gates.py`): [C] float64.

    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019.
    """
    return evidence.sensitivities[unit.name]


def fluctuation(unit: Unit, evidence: Evidence) -> Tensor:
    """Variance of what the consumers read times the squares of the weights that read it: [C] float64.

    What remains of a channel's contribution once its mean is in the bias (An et al., FLAP, AAAI 2024, equation 5);
    `Compressor` puts it there, if no repair does. Weights count as the network sees them, behind the layer's
    normalization. Consumers whose inputs cannot be gathered do not count; with none left it is `l2`.
    """
    scores, found = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device), False
    for member in unit.role("consumer"):
        sums, module = evidence.moments.get(member.module), evidence.network.get_submodule(member.module)
        if sums is not None and can_gather(module):
            found = True
            variance = (energy_of(sums) - (sums.x.double() / sums.count).square()).clamp_min(0)
            squares = _heard_weights(member, evidence).square().sum(dim=2)  # [G, n]
            scores += _relative(_per_channel(member, variance * squares, kernel_size(module)))
    return scores if found else l2(unit, evidence)


def random(unit: Unit, evidence: Evidence) -> Tensor:
    """Seeded random scores: [C]."""
    key = sum((index + 1) * ord(letter) for index, letter in enumerate(unit.name))
    generator = torch.Generator().manual_seed(evidence.seed * 1_000_003 + key)
    return torch.rand(unit.channels, generator=generator, dtype=torch.float64, device="cpu").to(evidence.device)


def obs(unit: Unit, evidence: Evidence) -> Tensor:
    """Structured optimal brain surgeon: rank at which a channel is eliminated, later = more important: [C].

    Greedy: the granule whose removal raises the consumers' squared output error least goes first, and the
    remaining weights are updated (Hassibi & Stork 1993, for blocks; Kurtic et al., ZipLM, 2023). Errors of
    several consumers are added, each relative to its output energy. Output errors count as the network sees
    them, behind the layer's normalization. Consumers too wide for a Gram matrix count with its diagonal.
    """
    blocks = [block for member in unit.role("consumer") for block in _blocks(unit, member, evidence)]
    if not blocks:
        return l2(unit, evidence)
    count = len(unit.granules)
    alive = torch.ones(count, dtype=torch.bool, device=evidence.device)
    rank = torch.zeros(count, dtype=torch.float64, device=evidence.device)
    per_round = -(-count // ELIMINATIONS)
    step = 0
    while int(alive.sum()) > 1:
        errors = torch.stack([block.errors(alive) for block in blocks]).sum(dim=0)
        number = min(per_round, int(alive.sum()) - 1)
        gone = torch.topk(errors.masked_fill(~alive, torch.inf), number, largest=False).indices
        for block in blocks:
            block.eliminate(gone)
        alive[gone] = False
        for index in gone.tolist():
            rank[index], step = step, step + 1
    rank[alive] = step
    scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
    for index, granule in enumerate(unit.granules):
        scores[list(granule)] = rank[index]
    return scores


IMPORTANCES: dict[str, Importance] = {
    "obs": obs,
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "fluctuation": fluctuation,
    "random": random,
}
NEEDS_MOMENTS = frozenset({"obs", "fluctuation"})
NEEDS_GRADIENTS = frozenset({"taylor"})
COMPENSATED = frozenset({"fluctuation"})
"""Whose removed channels leave their mean in the bias, even without repair."""


class _Block:
    """One group of one consumer: its weights, inverse Gram and columns per granule; state of an elimination."""

    def __init__(self, weights: Tensor, gram: Tensor, columns: Tensor) -> None:
        """Weights [o, n], gram [n, n] (or its diagonal [n]), columns [R, w] of each granule."""
        self.columns = columns
        self.weights = weights.clone()
        self.scale = 1.0
        self.inverse: Tensor | None = None
        if gram.ndim == 1:
            self.fixed = (weights.square().sum(dim=0) * gram)[columns].sum(dim=1)
            self.scale = float(self.fixed.sum().clamp_min(1e-30))
            return
        lower, _ = factor(gram[None], penalty_of(gram[None], OBS_RIDGE))
        self.inverse = torch.cholesky_inverse(lower[0])
        self.scale = float(((weights @ gram) * weights).sum().clamp_min(1e-30))

    def errors(self, alive: Tensor) -> Tensor:
        """[R] rise of the squared output error when each granule goes, relative to the output's energy."""
        if self.inverse is None:
            return self.fixed / self.scale
        corner = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        eye = torch.eye(corner.shape[1], dtype=corner.dtype, device=corner.device)
        corner = torch.where(alive[:, None, None], corner, eye)
        block = self.weights[:, self.columns].permute(1, 2, 0)  # [R, w, o]
        solved: Tensor = torch.linalg.solve(corner, block)
        return (solved * block).sum(dim=(1, 2)) / self.scale

    def eliminate(self, gone: Tensor) -> None:
        """Removes granules and updates what remains."""
        if self.inverse is None:
            return
        columns = self.columns[gone].flatten()
        rows = torch.linalg.solve(self.inverse[columns[:, None], columns], self.inverse[columns])
        self.weights -= self.weights[:, columns] @ rows
        self.inverse -= self.inverse[:, columns] @ rows


def _blocks(unit: Unit, member: Member, evidence: Evidence) -> list[_Block]:
    sums = evidence.moments.get(member.module)
    module = evidence.network.get_submodule(member.module)
    if sums is None or not can_gather(module):
        return []
    weights = _heard_weights(member, evidence)
    channels = weights.shape[1] // kernel_size(module)
    gram = gram_of(sums) if sums.xx is not None else energy_of(sums)
    blocks = []
    for group in range(len(weights)):
        columns = []
        for granule in unit.granules:
            places = sorted(p % channels for c in granule for p in member.positions[c] if p // channels == group)
            columns.append(column_indices(places, kernel_size(module), weights.device))
        blocks.append(_Block(weights[group].T, gram[group], torch.stack(columns)))
    return blocks


def _heard_weights(member: Member, evidence: Evidence) -> Tensor:
    """[G, n, o] float64 weights of a consumer, times what the normalization behind it makes of its outputs."""
    weights = weight_rows(evidence.network.get_submodule(member.module)).double()
    even = torch.ones(weights.shape[0] * weights.shape[2], device=weights.device)
    scales = evidence.output_scales.get(member.module, even)
    return weights * scales.double().reshape(len(weights), 1, -1)


def _consumer_norm(unit: Unit, evidence: Evidence, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[C] sum of `norm` of each weight over the weights that read a channel."""
    scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
    for member in unit.role("consumer"):
        module = evidence.network.get_submodule(member.module)
        if can_gather(module):
            own = _per_channel(member, norm(weight_rows(module).double()).sum(dim=2), kernel_size(module))
        else:  # transposed and 3-D convolutions
            weight = norm(weight_of(module).double())
            inputs = weight if isinstance(module, TRANSPOSED) else weight.transpose(0, 1)
            own = torch.stack([inputs[[p % len(inputs) for p in row]].sum() for row in member.positions])
        scores += _relative(own)
    return scores


def _per_channel(member: Member, values: Tensor, kernel: int) -> Tensor:
    """[C] sum of [G, n] values (one per column of `weight_rows`) over the columns that read a channel."""
    places = torch.tensor(member.positions, device=values.device)
    return values.reshape(-1, kernel).sum(dim=1)[places].sum(dim=1)


def _relative(own: Tensor) -> Tensor:
    """[C] scores of one member as shares of its total."""
    return own / own.sum().clamp_min(1e-30)


def _filters(module: nn.Module) -> Tensor:
    """[O, n] float64 what each output of a convolution or linear layer is computed with."""
    weight = weight_of(module).double()
    if isinstance(module, TRANSPOSED):  # [I, O / groups, ...], the inputs of a group one after the other
        weight = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)
