"""Numbers and tables that an attention's module holds and that go with its heads: found by size, chosen by behaviour.

A class that splits channels into `self.heads` runs with fewer of them once that number is right; tables that hold a row
or a column for each head (biases of positions, slopes) are cut with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from envs.network.copies import copy_network, in_mode, same_output
from envs.network.inputs import Inputs
from envs.network.tracing.resized import Resized
from envs.units.attention.found import Found
from envs.units.attention.given import Given, given_to, scope
from envs.units.slicing import silence, slice_network
from envs.units.units import Attribute, Unit

TOLERANCE = 1e-3
"""Largest accepted difference of what the module gives; real mistakes are of order 1."""

MAX_CANDIDATES = 8
"""Numbers and tables of one module among which is chosen; those known hold four."""


def with_attributes(network: nn.Module, found: Found, unit: Unit, example_input: Inputs) -> Unit | None:
    """The unit with the fewest attributes that must change for the module to run, None where no choice makes it run.

    Args:
        network: The network; it is not changed.
        found: The attention.
        unit: A unit of it.
        example_input: Input of batch 1.
    """
    candidates = list(candidates_of(network, found, unit))
    around = scope(found.owner, found.out)
    given = given_to(network, around, example_input) if 0 < len(candidates) <= MAX_CANDIDATES else None
    if given is None:
        return None
    wanted = [(gone, silent_output(network, around, unit, gone, given)) for gone in drops(unit)]
    for count in range(1, len(candidates) + 1):
        for chosen in combinations(candidates, count):
            whole = replace(unit, attributes=tuple(chosen))
            if all(runs_without(network, around, whole, gone, given, expected) for gone, expected in wanted):
                return replace(whole, attributes=(*chosen, *_told(network, chosen)))
    return None


def _told(network: nn.Module, tables: Sequence[Attribute]) -> Iterator[Attribute]:
    """The numbers by which embeddings say how wide they are."""
    for table in tables:
        owner = table.name.rpartition(".")[0]
        if isinstance(network.get_submodule(owner), nn.Embedding):
            yield Attribute(name=f"{owner}.embedding_dim")


def candidates_of(network: nn.Module, found: Found, unit: Unit) -> Iterator[Attribute]:
    """Numbers that count heads or their channels, and tables with an axis of heads."""
    owner = network.get_submodule(found.owner)
    prefix = f"{found.owner}." if found.owner else ""
    counts = _counts(found)
    numbers = {} if isinstance(owner, Resized) else vars(owner)  # which follow by themselves there
    for name, value in numbers.items():
        if type(value) is int and value in counts and value % unit.steps == 0:
            yield Attribute(name=prefix + name)
    own = (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
    for name, tensor in own:
        axes = [axis for axis, size in enumerate(tensor.shape) if size == found.heads]
        yield from (Attribute(name=prefix + name, axis=axis) for axis in axes)
    for name, child in owner.named_children():
        if isinstance(child, nn.Embedding) and child.embedding_dim == found.heads:
            yield Attribute(name=f"{prefix}{name}.weight", axis=1)


def _counts(found: Found) -> set[int]:
    """Numbers of heads, and of channels of all heads, of a module of this shape."""
    heads, groups = found.heads, found.groups
    numbers = {heads, groups, heads // groups, heads + 2 * groups}
    return {*numbers, *(number * found.head_width for number in (heads, groups, heads + 2 * groups))} - {1}


def drops(unit: Unit) -> list[list[int]]:
    """One step, and all but one."""
    order = unit.in_steps(unit.granules)
    return [sorted(order[: unit.granule]), sorted(order[unit.granule :])]


def silent_output(network: nn.Module, name: str, unit: Unit, gone: Sequence[int], given: Given) -> Any:
    """What the module gives where some channels are silent."""
    silent = in_mode(copy_network(network))
    silence(silent, unit, gone)
    return given.call(silent.get_submodule(name))


def runs_without(network: nn.Module, name: str, unit: Unit, gone: Sequence[int], given: Given, expected: Any) -> bool:
    """Whether the module without some channels gives what is expected."""
    stays = {unit.name: sorted(set(range(unit.channels)) - set(gone))}
    small = in_mode(slice_network(network, [unit], stays))
    try:
        got = given.call(small.get_submodule(name))
    except Exception:  # whatever the module's own code raises
        return False
    return same_output(_tensors(expected), _tensors(got), TOLERANCE)


def _tensors(value: Any) -> Any:
    """The first tensor that a module gives: attention weights beside it have as many heads as there are."""
    if isinstance(value, (tuple, list)):
        return next((one for one in value if isinstance(one, Tensor)), ())
    return value
