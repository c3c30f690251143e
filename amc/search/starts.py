"""Where a search starts: solutions of the knapsack for several kinds of damage, judged as whole networks.

Damage per unit is measured one unit at a time, so every allocation made of it is a guess about how damages add
up. Different kinds of damage guess differently; their mean is one more guess. Each is made into a network with
the chosen repair, and the one whose outputs stay closest to the dense network's, on calibration images that
repair has not seen, goes first.
"""

from __future__ import annotations

import numpy as np

from amc.allocation.knapsack import knapsack
from amc.scoring.scorer import read
from amc.search.damage import damage_curves
from amc.search.setup import Problem
from envs.compression.damage import DAMAGES, forward, total_damage
from envs.network.inference import channels_last, inference_copy
from envs.parallel import map_chunks
from envs.space.constraint import Constraint
from hw_profiles.layers import IntArray


def starting_widths(problem: Problem) -> dict[str, tuple[int, ...]]:
    """The solutions that the configured agent starts from by label, best guess first; [S] kept channels each."""
    config = problem.config
    wanted: tuple[str, ...] = (config.agent,) if config.single else config.starts
    if config.agent == "random":
        wanted = ()
    solve = {"knapsack": lambda: best_knapsack(problem), "uniform": problem.constraint.uniform}
    return {name: tuple(solve[name]().tolist()) for name in wanted}


def best_knapsack(problem: Problem, constraint: Constraint | None = None) -> IntArray:
    """[S] kept channels of the best knapsack solution, by audition if there are several.

    Args:
        problem: Whose damage curves are used.
        constraint: A narrower one over the same sites, None for the problem's own.
    """
    constraint = constraint or problem.constraint
    solutions = [knapsack(constraint, curves) for curves in damage_curves(problem).values()]
    if len(solutions) > 1:
        solutions.append(constraint.scaled(np.mean([problem.actions(solution) for solution in solutions], axis=0)))
    distinct = list({tuple(solution.tolist()): solution for solution in solutions}.values())
    if len(distinct) == 1:
        return distinct[0]
    return min(zip(audition(problem, distinct), range(len(distinct)), distinct, strict=True))[2]


def audition(problem: Problem, candidates: list[IntArray]) -> list[float]:
    """Damage of whole networks: the first kind of damage, on images that repair has not seen.

    Args:
        problem: Task and settings; charged with the images and the repairs.
        candidates: [S] kept channels each.
    """
    damage = DAMAGES[problem.config.knapsack.damages[0]]
    (role, indices), graph = problem.draws.audition(), problem.anatomy.graph
    split = problem.task.calibration if role == "calibration" else problem.task.validation
    networks = [problem.compressor.network]
    for widths in candidates:
        small, forwards = problem.compressor.compress(problem.policy(widths))
        networks.append(small)
        problem.effort.image_forwards += forwards
    fast = [inference_copy(network, graph) for network in networks]

    def one(part: list[int]) -> list[float]:
        inputs, targets = (tensor.to(problem.config.device) for tensor in read(split, part))
        dense, *rest = [forward(network, channels_last(inputs)) for network in fast]
        return [total_damage(damage, outputs, dense, targets) for outputs in rest]

    size = problem.scorer.chunk
    parts = list(map_chunks(one, [indices[k : k + size] for k in range(0, len(indices), size)]))
    problem.effort.image_forwards += len(indices) * len(networks)
    return [sum(column) / len(indices) for column in zip(*parts, strict=True)]
