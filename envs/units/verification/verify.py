"""Verification: a unit is kept only if removing channels equals silencing them, in the network's own forward.

The same removals tell how every operator's channels and products depend on the unit, without a rule per operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from envs.network.calls import Call
from envs.network.copies import functional_copy, same_output
from envs.network.graph import DataDependent, Graph, record
from envs.network.inputs import Inputs, call, divided, mapped, rows, tensors
from envs.network.kinds import NORMS
from envs.parallel import map_chunks
from envs.units.slicing import silence, silenced_tensors, slice_network
from envs.units.units import Fixed, Unit, weighted_outputs
from envs.units.verification.culprit import failing_module, find_culprit, first_line

DRAWS = 3
TOLERANCE = 1e-3
"""Largest accepted difference relative to the output's largest value; real mistakes are of order 1."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What all operators did with `dropped` channels of one unit gone, as many of each of its `shares`, and the
    parameters left.
    """

    unit: str
    dropped: int
    calls: tuple[Call, ...]
    params: int
    shares: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """A network prepared for removals.

    Attributes:
        network: A copy with random normalization statistics.
        graph: Its operator graph.
        example: Input of batch 1, of which operators are recorded.
        samples: Inputs on which outputs are compared; they may be longer or shorter than the example.
        generator: Source of the draws.
    """

    network: nn.Module
    graph: Graph
    example: Inputs
    samples: Inputs
    generator: torch.Generator

    @classmethod
    def create(
        cls, network: nn.Module, example_input: Inputs, graph: Graph, seed: int, samples: Inputs | None
    ) -> Trial:
        """A trial; without samples on random inputs, or on the example where those are not taken."""
        generator = torch.Generator().manual_seed(seed)
        twin = _shaken(network, generator)
        if samples is None:
            samples = example_input
            if any(tensor.is_floating_point() for tensor in tensors(example_input)):
                drawn = mapped(lambda tensor: _drawn(tensor, generator), example_input)
                samples = drawn if not failing_module(twin, drawn) else example_input
        return cls(twin, graph, example_input, samples, generator)

    def shorter(self) -> Trial:
        """The same on the first sample only."""
        return replace(self, samples=rows(self.samples, 0, 1))

    def dependence(self) -> str:
        """Why the recorded operators are not those of every sample, or ''."""
        try:
            for sample in divided(self.samples, 1):
                if self.graph.program is None:
                    record(self.graph, self.network, sample)
        except DataDependent as error:
            return str(error)
        return ""

    def draw(self, unit: Unit) -> list[int]:
        """Random channels of a unit, at least one step and at most half of them."""
        order = torch.randperm(len(unit.granules), generator=self.generator).tolist()
        number = 1 + int(torch.randint(0, max(1, unit.steps // 2), (1,), generator=self.generator))
        return sorted(unit.in_steps(unit.granules[g] for g in order)[: number * unit.granule])


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
    draw is tried on all samples, the others on one.

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
    verified, fixed, removals = [], [], []
    if reason := trial.dependence():
        return [], [Fixed(name, reason) for unit in units for name in weighted_outputs(unit, network)], []
    for unit in units:
        found: list[Removal] = []
        try:
            for part in (trial, *[trial.shorter()] * (DRAWS - 1)):
                dropped = trial.draw(unit)
                calls, parameters = remove(part, {unit.name: dropped}, [unit])
                found.append(Removal(unit.name, len(dropped), calls, parameters, len(unit.shares)))
        except ValueError as error:
            fixed += [Fixed(name, str(error)) for name in weighted_outputs(unit, network)]
            continue
        verified.append(unit)
        removals += found
    return verified, fixed, removals


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
    with _silenced(trial.network, units, dropped), torch.no_grad():
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


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values in the place of floats; indices and truth values stay."""
    return (
        torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
        if tensor.is_floating_point()
        else tensor
    )


def _failure(trial: Trial, small: nn.Module, stays: Mapping[str, list[int]], error: Exception) -> str:
    where = _culprit(trial, small, stays) or failing_module(small, trial.samples)
    return f"the network does not run without its channels: {where or first_line(error)}"


def _difference(trial: Trial, small: nn.Module, stays: Mapping[str, list[int]]) -> str:
    where = _culprit(trial, small, stays)
    return "removing its channels is not the same as silencing them" + (f": {where}" if where else "")


def _culprit(trial: Trial, small: nn.Module, stays: Mapping[str, list[int]]) -> str:
    kept = next(iter(stays.values())) if len(stays) == 1 else []
    return find_culprit(trial.graph, trial.network, small, trial.samples, kept, TOLERANCE)


@contextmanager
def _silenced(network: nn.Module, units: Sequence[Unit], dropped: Mapping[str, list[int]]) -> Iterator[None]:
    """Silences the dropped channels, and puts the weights back."""
    before = {key: tensor for unit in units for key, tensor in silenced_tensors(network, unit).items()}
    try:
        for unit in units:
            silence(network, unit, dropped[unit.name])
        yield
    finally:
        for (module, name), tensor in before.items():
            setattr(network.get_submodule(module), name, tensor)


def _shaken(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in eval mode with random normalization statistics and affine parameters."""
    twin = functional_copy(network)
    for module in twin.modules():
        if not isinstance(module, NORMS):
            continue
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator).to(tensor)
            if name in ("weight", "running_var"):  # a zero-initialized scale would hide its branch
                fresh = tensor.detach() * (noise + 0.5) + 0.1 * noise
            else:
                fresh = tensor.detach() + 0.5 * (noise - 0.3)
            holder = nn.Parameter(fresh, requires_grad=False) if isinstance(tensor, nn.Parameter) else fresh
            setattr(module, name, holder)
    return twin
