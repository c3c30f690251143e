"""How good whole networks are before any search: repaired, and judged on images that repair has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.pool.pool import Pool
from amc.problem.prepare import Prepared
from amc.scoring.draws import Role
from amc.scoring.scorer import read
from amc.search.tools import Tools
from amc.storage.cache import cached_tensors
from envs.compression.damage import damage_named, total_damage
from envs.network.inputs import tensors
from envs.space.assignment import Assignment
from envs.space.policy import tensors_fingerprint, weights_fingerprint

VERSION = 2
"""Of what is remembered; counts up when candidates are judged otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditionImages:
    """The images on which starts are judged.

    Attributes:
        role: Split that they are from.
        indices: Which of them.
        damage: Name of the kind of damage.
        outputs: The dense network's outputs on them, one tensor per scoring chunk.
        quick: Whether candidates are repaired as in an episode, not in full.
    """

    role: Role
    indices: Sequence[int]
    damage: str
    outputs: Sequence[Tensor]
    quick: bool


def quick_audition(prepared: Prepared, pool: Pool, tools: Tools, candidates: Sequence[Assignment]) -> list[float]:
    """What `audition` says after quick repair, remembered by weights, images and settings; charged in any case."""
    setup, config = prepared.setup, prepared.config
    role, indices = setup.audition()
    split, size = tools.splits[role], tools.scorer.chunk
    pieces = (read(split, indices[start : start + size]) for start in range(0, len(indices), size))
    key: Mapping[str, object] = {
        "version": VERSION,
        "weights": weights_fingerprint(setup.task.network),
        "images": tensors_fingerprint(one for inputs, targets in pieces for one in (*tensors(inputs), targets)),
        "calibration": prepared.compressor.calibration_fingerprint,
        "compression": config.compression.model_dump(mode="json"),
        "damage": config.knapsack.damages[0],
        **setup.judged(),
        **({"principal": names} if (names := prepared.compressor.principal) else {}),
        "sites": [[site.name, *([choice.value, choice.label] for choice in site.choices)] for site in setup.sites],
        "candidates": [list(one.key) for one in candidates],
        "seed": config.seed,
        "device": config.device,
    }

    def judged() -> dict[str, Tensor]:
        found = _judged(prepared, pool, tools, candidates, quick=True)
        return {"damage": torch.tensor(found, dtype=torch.float64, device="cpu")}

    prepared.ledger.charge(_forwards(prepared, len(indices), len(candidates), quick=True))
    # what the user's own code does may be something else tomorrow
    tables = judged() if setup.objects.of_compression() else cached_tensors("audition", key, judged)
    return [float(one) for one in tables["damage"]]


def audition(prepared: Prepared, pool: Pool, tools: Tools, candidates: Sequence[Assignment]) -> list[float]:
    """Damage of whole networks: the first kind of damage, on images that repair has not seen; charged."""
    images = len(prepared.setup.audition()[1])
    prepared.ledger.charge(_forwards(prepared, images, len(candidates), quick=False))
    return _judged(prepared, pool, tools, candidates, quick=False)


def _judged(
    prepared: Prepared, pool: Pool, tools: Tools, candidates: Sequence[Assignment], *, quick: bool
) -> list[float]:
    role, indices = prepared.setup.audition()
    outputs = tools.scorer.outputs(tools.compressor.network, tools.splits[role], indices)
    damage = prepared.config.knapsack.damages[0]
    images = AuditionImages(role=role, indices=indices, damage=damage, outputs=outputs, quick=quick)
    return [answer.result() for answer in pool.map(judge, tools, images, candidates)]


def _forwards(prepared: Prepared, images: int, candidates: int, *, quick: bool) -> int:
    """Image-forwards of judging so many candidates beside the dense network."""
    compressor = prepared.compressor
    repair = compressor.quick_forwards if quick else compressor.repair_forwards
    return images * (1 + candidates) + candidates * repair


def judge(tools: Tools, images: AuditionImages, candidate: Assignment) -> float:
    """Repairs a candidate and measures how far its outputs are from the dense network's: the mean damage."""
    small = tools.compressor.compress(tools.compressor.policy_of(candidate), quick=images.quick).network
    damage, scorer = damage_named(images.damage), tools.scorer

    def each(part: range, new: Tensor, targets: Tensor, mask: Tensor | None) -> float:
        old = images.outputs[part.start // scorer.chunk]
        return total_damage(damage, scorer.metric.judged(new), scorer.metric.judged(old), targets, mask)

    return sum(scorer.over(small, tools.splits[images.role], images.indices, each)) / len(images.indices)
