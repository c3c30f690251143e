"""Structured optimal brain surgeon: channels are eliminated one by one, and what remains makes up for them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from envs.importance.consumers import consumer_norm, scaled_weights
from envs.importance.importance import Evidence, Importance
from envs.regression.ridge import factor, penalty_of
from envs.regression.rows import can_gather, column_indices, kernel_size
from envs.regression.statistics import energy_of, gram_of
from envs.units.units import Member, Unit

ELIMINATIONS = 128
"""At most this many rounds of elimination per unit; wider units drop several channels per round."""
OBS_RIDGE = 1e-2
"""Damping of the Gram matrix relative to its mean diagonal (SparseGPT damps by 1e-2 as well)."""


class OptimalBrainSurgeon(Importance):
    """Rank at which a channel is eliminated, later = more important.

    Greedy: the granule whose removal raises the consumers' squared output error least goes first, and the remaining
    weights are updated (Hassibi & Stork 1993, for blocks; Kurtic et al., ZipLM, 2023). Errors of several consumers are
    added, each relative to its output energy. Output errors count as the network sees them, behind the layer's
    normalization. A head's error is that of all its columns together, tr(W_h (G^-1_hh)^-1 W_h'). Channels of queries
    and keys are judged by the error of their products (`regression.factors`). Consumers too wide for a Gram matrix
    count with its diagonal; without any that can be gathered it is `L2`.
    """

    reads_moments: ClassVar[bool] = True

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        blocks = [block for member in unit.role("consumer") for block in _blocks(unit, member, evidence)]
        blocks += _factor_blocks(unit, evidence)
        if not blocks:
            return consumer_norm(unit, evidence, torch.square)
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
            for block in blocks:
                block.forget(alive)
            for index in gone.tolist():
                rank[index], step = step, step + 1
        rank[alive] = step
        scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
        for index, granule in enumerate(unit.granules):
            scores[list(granule)] = rank[index]
        return scores


class _Block:
    """One group of one consumer: its weights, inverse Gram and columns per granule; state of an elimination."""

    def __init__(self, weights: Tensor, gram: Tensor, columns: Tensor) -> None:
        """Weights [o, n], gram [n, n] (or its diagonal [n]), columns [R, w] of each granule."""
        self.columns = columns
        self.held = torch.arange(len(columns), device=columns.device)
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
        """[R] rise of the squared output error when each granule goes, relative to the output's energy; 0 if gone."""
        if self.inverse is None:
            return self.fixed / self.scale
        columns, still = self.columns[self.held], alive[self.held]
        if columns.shape[1] == 1:
            corner = self.inverse.diagonal()[columns[:, 0]].where(still, 1.0)
            rises = self.weights.square().sum(dim=0)[columns[:, 0]] / corner
        else:
            corner = self.inverse[columns[:, :, None], columns[:, None, :]]
            eye = torch.eye(corner.shape[1], dtype=corner.dtype, device=corner.device)
            corner = torch.where(still[:, None, None], corner, eye)
            block = self.weights[:, columns].permute(1, 2, 0)  # [R, w, o]
            rises = (torch.linalg.solve(corner, block) * block).sum(dim=(1, 2))
        errors = torch.zeros(len(alive), dtype=rises.dtype, device=rises.device)
        errors[self.held] = rises / self.scale
        return errors

    def eliminate(self, gone: Tensor) -> None:
        """Removes granules and updates what remains."""
        if self.inverse is None:
            return
        columns = self.columns[gone].flatten()
        rows = torch.linalg.solve(self.inverse[columns[:, None], columns], self.inverse[columns])
        self.weights.addmm_(self.weights[:, columns], rows, alpha=-1)
        self.inverse.addmm_(self.inverse[:, columns], rows, alpha=-1)

    def forget(self, alive: Tensor) -> None:
        """Lets go of columns that are gone, once they are half of all."""
        still = alive[self.held]
        if self.inverse is None or 2 * int(still.sum()) > len(still):
            return
        stays = torch.ones(len(self.inverse), dtype=torch.bool, device=alive.device)
        stays[self.columns[self.held[~still]].flatten()] = False
        self.held = self.held[still]
        self.columns = (stays.cumsum(dim=0) - 1)[self.columns.clamp_max(len(stays) - 1)]  # any, for granules gone
        self.weights, self.inverse = self.weights[:, stays], self.inverse[stays][:, stays]


def _factor_blocks(unit: Unit, evidence: Evidence) -> list[_Block]:
    factors = evidence.factors.get(unit.name)
    if factors is None:
        return []
    columns = torch.arange(unit.channels, device=evidence.device)[:, None]
    return [_Block(factors.weights[0], factors.gram()[0], columns)]


def _blocks(unit: Unit, member: Member, evidence: Evidence) -> list[_Block]:
    sums = evidence.moments.get(member.module)
    module = evidence.network.get_submodule(member.module)
    if sums is None or not can_gather(module):
        return []
    weights = scaled_weights(member, evidence)
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
