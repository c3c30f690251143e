"""Where a search starts: solutions of the knapsack for several kinds of damage, judged as whole networks.

Damage per unit is measured one unit at a time, so every allocation made of it is a guess about how damages add
up. Different kinds of damage guess differently; their mean is one more guess. Each is made into a network with
the chosen repair, and the one whose outputs stay closest to the dense network's, on calibration images that
repair has not seen, goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from amc.pool.pool import Pool
from amc.problem.prepare import Prepared
from amc.scoring.draws import Role
from amc.scoring.scorer import read
from amc.search.allocation.again import corrected, steps_around
from amc.search.allocation.curves import damage_curves
from amc.search.allocation.knapsack import knapsack
from amc.search.ranges.budgets import Limits
from amc.search.ranges.guides import KNAPSACK, Guides, solutions
from amc.search.ranges.taught import Taught
from amc.search.tools import Tools
from envs.compression.damage import Curve, damage_named, forward, total_damage
from envs.network.inference import inference_copy
from envs.network.inputs import channels_last, mapped
from envs.parallel import map_chunks
from envs.space.assignment import Assignment, Key
from envs.space.constraint import Constraint

ANSWER = "answer"
"""Label of the answer that an agent of a range gave for the budget: a candidate, but none that found is measured by."""


def starting_keys(prepared: Prepared, pool: Pool, tools: Tools, taught: Taught | None = None) -> dict[str, Key]:
    """The solutions that the configured agent starts from by label, best guess first.

    Args:
        prepared: Task and settings.
        pool: Where the work is done.
        tools: Of the search.
        taught: An agent of many budgets, whose answer goes first where there is one budget.
    """
    config = prepared.config
    if prepared.setup.ends is not None:
        return {KNAPSACK: best_knapsack(prepared, pool, tools).key}
    wanted: tuple[str, ...] = (config.agent,) if config.single else config.starts
    if config.agent == "random":
        wanted = ()
    solve = {"knapsack": lambda: best_knapsack(prepared, pool, tools), "uniform": prepared.setup.uniform}
    found = {name: solve[name]().key for name in wanted}
    if taught is None:
        return found
    known = found.get(KNAPSACK) or best_knapsack(prepared, pool, tools).key
    guide = guides_of(prepared, pool, tools, known).at(middle_of(prepared))
    return {ANSWER: taught.answer(prepared.setup, guide).key, **found}


def best_knapsack(prepared: Prepared, pool: Pool, tools: Tools, constraint: Constraint | None = None) -> Assignment:
    """The best knapsack solution, by audition if there are several.

    Args:
        prepared: Whose damage curves are used.
        pool: Where the work is done.
        tools: Of the search.
        constraint: A narrower one over the same sites, None for the setup's own.
    """
    constraint = constraint or prepared.setup.constraint
    setup = prepared.setup
    curves = damage_curves(prepared, pool, tools)
    distinct = list(dict.fromkeys(setup.assignment(values) for values in solutions(constraint, curves).values()))
    best = distinct[0]
    if len(distinct) > 1:
        judged = zip(audition(prepared, pool, tools, distinct), range(len(distinct)), strict=True)
        best = distinct[min(judged)[1]]
    for _ in range((prepared.config.knapsack.rounds or 1) - 1):
        again = _solved_again(prepared, pool, tools, constraint, next(iter(curves.values())), best)
        if again == best:
            break
        best = again
    return best


def _solved_again(
    prepared: Prepared, pool: Pool, tools: Tools, constraint: Constraint, curves: Sequence[Curve], best: Assignment
) -> Assignment:
    """The knapsack on curves corrected around a solution, or that one if the audition prefers it; charged."""
    setup = prepared.setup
    again, before = _measured_again(prepared, pool, tools, curves, best)
    found = setup.assignment(knapsack(constraint, again))
    if found == best or audition(prepared, pool, tools, [found])[0] >= before:
        return best
    return found


def _measured_again(
    prepared: Prepared, pool: Pool, tools: Tools, curves: Sequence[Curve], around: Assignment
) -> tuple[list[Curve], float]:
    """The curves corrected around a solution, and its own damage; charged."""
    steps = steps_around(prepared.setup.sites, around.values)
    tried = [around, *(prepared.setup.assignment(step) for step in steps)]
    before, *after = audition(prepared, pool, tools, tried)
    return corrected(curves, around.values, steps, before, after), before


def guides_of(prepared: Prepared, pool: Pool, tools: Tools, best: Key) -> Guides:
    """The knapsack for any budgets of a range, on curves that are corrected around its middle if there are rounds.

    Args:
        prepared: Whose damage curves are used.
        pool: Where the work is done.
        tools: Of the search.
        best: The best solution at the middle, whose kind of damage is taken.
    """
    setup = prepared.setup
    curves = damage_curves(prepared, pool, tools)
    guides = Guides(setup.constraint, curves, best)
    if (prepared.config.knapsack.rounds or 1) == 1:
        return guides
    around = setup.assignment(guides.at(middle_of(prepared)).solution)
    again, _ = _measured_again(prepared, pool, tools, curves[guides.kind], around)
    return Guides(setup.constraint, {guides.kind: again}, best)


def middle_of(prepared: Prepared) -> Limits:
    """The budgets of the setup's own constraint: of a range, its middle."""
    return tuple(prepared.setup.constraint.limits().values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditionImages:
    """The images on which starts are judged.

    Attributes:
        role: Split that they are from.
        indices: Which of them.
        damage: Name of the kind of damage.
        outputs: The dense network's outputs on them, one tensor per scoring chunk.
    """

    role: Role
    indices: Sequence[int]
    damage: str
    outputs: Sequence[Tensor]


class Judged(NamedTuple):
    """Mean damage of a whole network, and the image-forwards of its repair."""

    damage: float
    image_forwards: int


def audition(prepared: Prepared, pool: Pool, tools: Tools, candidates: Sequence[Assignment]) -> list[float]:
    """Damage of whole networks: the first kind of damage, on images that repair has not seen; charged."""
    role, indices = prepared.setup.draws.audition()
    outputs = [dense for _, dense in _outputs(tools, tools.compressor.network, role, indices)]
    damage = prepared.config.knapsack.damages[0]
    images = AuditionImages(role=role, indices=indices, damage=damage, outputs=outputs)
    judged = [answer.result() for answer in pool.map(judge, tools, images, candidates)]
    prepared.ledger.charge(len(indices) * (1 + len(candidates)) + sum(one.image_forwards for one in judged))
    return [one.damage for one in judged]


def judge(tools: Tools, images: AuditionImages, candidate: Assignment) -> Judged:
    """Repairs a candidate in full and measures how far its outputs are from the dense network's."""
    small, forwards = tools.compressor.compress(tools.compressor.policy_of(candidate))
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
