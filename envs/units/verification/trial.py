"""A network prepared for trials of removing channels, and what one removal showed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from envs.network.calls import Call
from envs.network.copies import functional_copy
from envs.network.graph import DataDependent, Graph, record
from envs.network.inputs import Inputs, divided, mapped, rows, tensors
from envs.network.kinds import NORMS
from envs.units.slicing import silence, silenced_tensors
from envs.units.units import Unit
from envs.units.verification.culprit import failing_module

TOLERANCE = 1e-3
"""Largest accepted difference relative to the largest value; real mistakes are of order 1."""


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


@contextmanager
def silenced(network: nn.Module, units: Sequence[Unit], dropped: Mapping[str, list[int]]) -> Iterator[None]:
    """Silences the dropped channels, and puts the weights back."""
    before = {key: tensor for unit in units for key, tensor in silenced_tensors(network, unit).items()}
    try:
        for unit in units:
            silence(network, unit, dropped[unit.name])
        yield
    finally:
        for (module, name), tensor in before.items():
            setattr(network.get_submodule(module), name, tensor)


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values in the place of floats; indices and truth values stay."""
    return (
        torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
        if tensor.is_floating_point()
        else tensor
    )


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
