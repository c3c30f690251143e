"""Verification: a unit is kept only if removing channels equals silencing them, in the network's own forward.

The same removals tell how every operator's channels and products depend on the unit, without a rule per operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from envs.network.calls import Call
from envs.network.copies import same_output
from envs.network.graph import DataDependent, Graph, record
from envs.network.inputs import Inputs, call
from envs.parallel import map_chunks
from envs.units.slicing import slice_network
from envs.units.units import Fixed, Unit, weighted_outputs
from envs.units.verification.culprit import failing_module, find_culprit, first_line
from envs.units.verification.nearby import Nearby
from envs.units.verification.trial import TOLERANCE, Removal, Trial, silenced

DRAWS = 3


def verify_units(
    network: nn.Module,
    example_input: Inputs,
    graph: Graph,
    units: list[Unit],
    seed: int = 0,
    samples: Inputs | None = None,
) -> tuple[list[Unit], list[Fixed], list[Removal]]:
    """Keeps the units whose channels can be removed.

    For each unit and three random draws: zeroing the consumers' input weights and removing the channels must
    give the same output of the network's own forward, with random (non-trivial) normalization statistics; the first
    draw is tried on all samples, the others on one. Where the network could be traced, each unit is tried on the part
    of it that it touches, and the own forward is asked for the units all at once.

    Args:
        network: The network; it is not changed.
        example_input: Input of batch 1; without samples only its shape and dtype are used where it is floating point.
        graph: Its operator graph.
        units: Proposed units.
        seed: Seed of the draws.
        samples: Real inputs, None for random ones.

    Returns:
        Verified units, layers that stay with the reason, and the recorded removals per verified unit.
    """
    trial = Trial.create(network, example_input, graph, seed, samples)
    if reason := trial.dependence():
        return [], [Fixed(name, reason) for unit in units for name in weighted_outputs(unit, network)], []
    draws = {unit.name: [trial.draw(unit) for _ in range(DRAWS)] for unit in units}
    nearby = _tried_nearby(trial, units, draws)
    verified, fixed, removals = [], [], []
    for unit in units:
        try:
            found = nearby.get(unit.name) or _tried(trial, unit, draws[unit.name])
        except ValueError as error:
            fixed += [Fixed(name, str(error)) for name in weighted_outputs(unit, network)]
            continue
        verified.append(unit)
        removals += found
    return verified, fixed, removals


def _tried(trial: Trial, unit: Unit, draws: Sequence[list[int]]) -> list[Removal]:
    """Several removals in the network's own forward.

    Raises:
        ValueError: If one of them is not the same as silence; the text is the reason.
    """
    found: list[Removal] = []
    for part, dropped in zip((trial, *[trial.shorter()] * (len(draws) - 1)), draws, strict=True):
        calls, parameters = remove(part, {unit.name: dropped}, [unit])
        found.append(Removal(unit.name, len(dropped), calls, parameters, len(unit.shares)))
    return found


def _tried_nearby(
    trial: Trial, units: Sequence[Unit], draws: Mapping[str, Sequence[list[int]]]
) -> dict[str, list[Removal]]:
    """The removals of those units that the traced program shows to be right, each where it is felt.

    All of them at once must be right in the network's own forward, too; otherwise none is taken.
    """
    if trial.graph.program is None or not units:
        return {}
    nearby = Nearby(trial)
    found: dict[str, list[Removal]] = {}
    for unit in units:
        tried = [nearby.removal(unit, dropped, all_samples=k == 0) for k, dropped in enumerate(draws[unit.name])]
        if None not in tried:
            found[unit.name] = [removal for removal in tried if removal is not None]
    shown = [unit for unit in units if unit.name in found]
    try:
        if shown:
            remove(trial, {unit.name: draws[unit.name][0] for unit in shown}, shown)
    except ValueError:
        return {}
    return found


def remove(trial: Trial, dropped: Mapping[str, list[int]], units: Sequence[Unit]) -> tuple[tuple[Call, ...], int]:
    """What all operators do without some channels, and the parameters left.

    Raises:
        ValueError: If removal is not the same as silence; the text is the reason.
    """
    stays = {unit.name: sorted(set(range(unit.channels)).difference(dropped[unit.name])) for unit in units}
    try:
        small = slice_network(trial.network, units, stays)
    except Exception as error:  # modules that hold their channels in another way
        raise ValueError(f"its channels cannot be sliced ({first_line(error)})") from error
    with silenced(trial.network, units, dropped), torch.no_grad():
        expected, got = map_chunks(partial(_attempt, trial.samples), (trial.network, small))
        try:
            if isinstance(got, Exception):
                raise got
            calls = record(trial.graph, small, trial.example)[1]
        except DataDependent:
            raise
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(_failure(trial, small, stays, error)) from error
        if isinstance(expected, Exception):
            raise expected
        if not same_output(expected, got, TOLERANCE):
            raise ValueError(_difference(trial, small, stays))
    return tuple(calls), sum(parameter.numel() for parameter in small.parameters())


def _attempt(samples: Inputs, network: nn.Module) -> Any:
    """What a network gives for some samples, or what its forward raises."""
    try:
        with torch.no_grad():
            return call(network, samples)
    except Exception as error:  # the network's own code
        return error


def _failure(trial: Trial, small: nn.Module, stays: Mapping[str, list[int]], error: Exception) -> str:
    where = _culprit(trial, small, stays) or failing_module(small, trial.samples)
    return f"the network does not run without its channels: {where or first_line(error)}"


def _difference(trial: Trial, small: nn.Module, stays: Mapping[str, list[int]]) -> str:
    where = _culprit(trial, small, stays)
    return "removing its channels is not the same as silencing them" + (f": {where}" if where else "")


def _culprit(trial: Trial, small: nn.Module, stays: Mapping[str, list[int]]) -> str:
    kept = next(iter(stays.values())) if len(stays) == 1 else []
    samples = (part.samples for part in (trial.shorter(), trial))  # most are found on one sample
    culprits = (find_culprit(trial.graph, trial.network, small, some, kept, TOLERANCE) for some in samples)
    return next(filter(None, culprits), "")
