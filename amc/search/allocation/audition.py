"""How good whole networks are before any search: repaired, and judged on images that repair has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from amc.pool.pool import Pool
from amc.problem.prepare import Prepared
from amc.scoring.draws import Role
from amc.scoring.scorer import read
from amc.search.tools import Tools
from envs.compression.damage import damage_named, forward, total_damage
from envs.network.inference import inference_copy
from envs.network.inputs import channels_last, mapped
from envs.parallel import map_chunks
from envs.space.assignment import Assignment


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


class Judged(NamedTuple):
    """Mean damage of a whole network, and the image-forwards of its repair."""

    damage: float
    image_forwards: int


def audition(
    prepared: Prepared, pool: Pool, tools: Tools, candidates: Sequence[Assignment], *, quick: bool = False
) -> list[float]:
    """Damage of whole networks: the first kind of damage, on images that repair has not seen; charged.

    Args:
        prepared: Whose images are used.
        pool: Where the work is done.
        tools: Of the search.
        candidates: What is judged.
        quick: Repair as in an episode, not in full.
    """
    role, indices = prepared.setup.draws.audition()
    outputs = [dense for _, dense in _outputs(tools, tools.compressor.network, role, indices)]
    damage = prepared.config.knapsack.damages[0]
    images = AuditionImages(role=role, indices=indices, damage=damage, outputs=outputs, quick=quick)
    judged = [answer.result() for answer in pool.map(judge, tools, images, candidates)]
    prepared.ledger.charge(len(indices) * (1 + len(candidates)) + sum(one.image_forwards for one in judged))
    return [one.damage for one in judged]


def judge(tools: Tools, images: AuditionImages, candidate: Assignment) -> Judged:
    """Repairs a candidate and measures how far its outputs are from the dense network's."""
    small, forwards = tools.compressor.compress(tools.compressor.policy_of(candidate), quick=images.quick)
    damage = damage_named(images.damage)
    found = _outputs(tools, small, images.role, images.indices)
    sums = [
        total_damage(damage, new, dense, targets) for (targets, new), dense in zip(found, images.outputs, strict=True)
    ]
    return Judged(sum(sums) / len(images.indices), forwards)


def _outputs(tools: Tools, network: nn.Module, role: Role, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(targets, outputs) of each scoring chunk, in order."""
    fast = inference_copy(network, tools.compressor.graph)
    device = tools.scorer.device
    split, size = tools.splits[role], tools.scorer.chunk

    def one(start: int) -> tuple[Tensor, Tensor]:
        inputs, targets = read(split, indices[start : start + size])
        inputs = mapped(lambda tensor: tensor.to(device), inputs)
        return targets.to(device), forward(fast, channels_last(inputs))

    return list(map_chunks(one, range(0, len(indices), size)))
