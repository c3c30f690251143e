"""Verification: a unit is kept only if removing channels equals silencing them, and its sizes are linear.

The same removals tell how every operator's channels depend on the unit, without a rule per operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs.graph import NORMS, Graph, Shape, copy_network, functional_copy, record, same_output
from envs.slicing import slice_network, zero_inputs
from envs.units import Fixed, Unit, weighted_outputs

DRAWS = 3
TOLERANCE = 1e-3
"""Largest accepted difference relative to the output's largest value; real mistakes are of order 1."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What the shapes of all operators were with `dropped` channels of one unit gone."""

    unit: str
    dropped: int
    shapes: tuple[tuple[Shape, Shape], ...]


def verify_units(
    network: nn.Module, example_input: Tensor, graph: Graph, units: list[Unit], seed: int = 0
) -> tuple[list[Unit], list[Fixed], list[Removal]]:
    """Keeps the units whose channels can be removed.

    For each unit and three random draws: zeroing the consumers' input weights and removing the channels must
    give the same output, on random inputs and with random (non-trivial) normalization statistics.

    Args:
        network: The network; it is not changed.
        example_input: [1, ...]; only its shape and dtype are used when it is floating point.
        graph: Its operator graph.
        units: Proposed units.
        seed: Seed of the draws.

    Returns:
        Verified units, layers that stay with the reason, and the recorded shapes per verified unit.
    """
    generator = torch.Generator().manual_seed(seed)
    twin = _shaken(network, generator)
    inputs = example_input
    if example_input.is_floating_point():
        inputs = torch.randn(example_input.shape, generator=generator).to(example_input)
    verified, fixed, removals = [], [], []
    for unit in units:
        found: list[Removal] = []
        try:
            for _ in range(DRAWS):
                found.append(_draw(twin, inputs, graph, unit, generator))
        except ValueError as error:
            fixed += [Fixed(name, str(error)) for name in weighted_outputs(unit, network)]
            continue
        verified.append(unit)
        removals += found
    return verified, fixed, removals


def _draw(network: nn.Module, inputs: Tensor, graph: Graph, unit: Unit, generator: torch.Generator) -> Removal:
    """One draw of random channels.

    Raises:
        ValueError: If removal is not the same as silence; the text is the reason.
    """
    count = len(unit.granules)
    order = torch.randperm(count, generator=generator).tolist()
    number = 1 + int(torch.randint(0, max(1, count // 2), (1,), generator=generator))
    dropped = sorted(channel for g in order[:number] for channel in unit.granules[g])
    stays = sorted(set(range(unit.channels)) - set(dropped))
    silent = copy_network(network)
    try:
        small = slice_network(network, [unit], {unit.name: stays})
        zero_inputs(silent, unit, dropped)
        got, shapes = record(graph, small, inputs)
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(f"the network does not run without its channels ({_first_line(error)})") from error
    if len(shapes) != len(graph.nodes):
        raise ValueError("which layers run depends on the data")
    with torch.no_grad():
        expected = silent(inputs)
    if not same_output(expected, got, TOLERANCE):
        raise ValueError("removing its channels is not the same as silencing them")
    return Removal(unit.name, len(dropped), tuple(shapes))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


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
