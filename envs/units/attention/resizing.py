"""Which numbers in the forward of an attention's module follow its heads: read off a run with some heads gone.

Where a tensor arrives that is narrower than in the dense network, the operator that splits or merges its channels was
told a number of the dense network. Of the axes that it makes of them the one of heads changes in proportion, or that of
their widths where these are decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from envs.network.copies import copy_network, in_mode
from envs.network.inputs import Inputs
from envs.network.interpreter import execute, run
from envs.network.kinds import plain_name
from envs.network.tracing.numbers import Resizing, Size, read_by, tell, told
from envs.network.tracing.resized import Resized
from envs.network.tracing.sizes import matched
from envs.units.attention.attributes import candidates_of, drops, runs_without, silent_output
from envs.units.attention.explicit import Form
from envs.units.attention.found import Found
from envs.units.attention.given import Given, given_to, scope
from envs.units.attention.recording import records_all
from envs.units.slicing import slice_network
from envs.units.units import Attribute, Unit

MAX_TABLES = 4
"""Tables among which several are chosen together."""

CHOICES = 3
"""How many axes of a reshape are tried for that of heads, all reshapes alike: (3, heads, width), (heads, 3, width)."""


def resized_form(network: nn.Module, found: Found, units: Sequence[Unit], example_input: Inputs) -> Form | None:
    """How the module around an attention runs with fewer heads, None where no numbers in its forward make it run.

    Args:
        network: The network; it is not changed.
        found: The attention.
        units: Its unverified units: of heads, of which one is to be verified, or of their widths.
        example_input: Input of batch 1.
    """
    name = scope(found.owner, found.out)
    given = given_to(network, found.owner, example_input) if found.owner else None
    around = given if name == found.owner else given_to(network, name, example_input)
    if given is None or around is None or not records_all(network.get_submodule(found.owner), given):
        return None
    whole = in_mode(copy_network(network))
    whole.set_submodule(found.owner, Resized(whole.get_submodule(found.owner), ()))
    try:
        if _told(whole, found, given, training=False) != _told(whole, found, given, training=True):
            return None
    except Exception:  # whatever torch.fx raises in a mode that the example does not run in
        return None
    if all(unit.kind == "channels" for unit in units):  # widths of heads: all of them
        sizes = [_sizes(whole, found, unit, given, around) for unit in units]
        chosen = tuple(dict.fromkeys(size for some in sizes for size in some))
    else:
        tried = ((unit, tables) for unit in units for tables in _tables(whole, found, unit))
        each = (_sizes(whole, found, replace(unit, attributes=tables), given, around) for unit, tables in tried)
        chosen = next(filter(None, each), ())
    return Form(module=found.owner, sizes=chosen) if chosen else None


def _told(network: nn.Module, found: Found, given: Given, *, training: bool) -> list[tuple[str, int]]:
    """The operators that are told sizes of what layers give, and of how many numbers, in a mode."""
    module: Any = in_mode(copy_network(network), training=training).get_submodule(found.owner)
    resizing = Resizing()
    module.recorded(*tree_flatten(given.arguments()), resizing)
    return [(plain_name(node.target), len(told(node))) for node in resizing.places]


def _tables(network: nn.Module, found: Found, unit: Unit) -> Iterator[tuple[Attribute, ...]]:
    """Choices of tables with a place per head that are cut, too: none, single ones, and more where there are few."""
    tables = [one for one in candidates_of(network, found, unit) if one.axis is not None]
    most = len(tables) if len(tables) <= MAX_TABLES else 1
    for count in range(most + 1):
        yield from combinations(tables, count)


def _sizes(whole: nn.Module, found: Found, unit: Unit, given: Given, around: Given) -> tuple[Size, ...]:
    """Numbers with which the module gives what it gives with silent heads, () where there are none."""
    dropped, name = drops(unit), scope(found.owner, found.out)
    wanted = [silent_output(whole, name, unit, gone, around) for gone in dropped]
    stays = {unit.name: sorted(set(range(unit.channels)) - set(dropped[0]))}
    small = in_mode(slice_network(whole, [unit], stays)).get_submodule(found.owner)
    likely = (found.heads, found.groups) if unit.kind != "channels" else (unit.channels // max(len(unit.shares), 1),)
    for choice in range(CHOICES):
        try:
            sizes = _followed(whole.get_submodule(found.owner), small, likely, given, choice)
        except Exception:  # whatever operators raise on sizes that do not fit
            continue
        twin = in_mode(copy_network(whole))
        twin.set_submodule(found.owner, Resized(twin.get_submodule(found.owner), sizes))
        cases = zip(dropped, wanted, strict=True)
        if all(runs_without(twin, name, unit, gone, around, expected) for gone, expected in cases):
            return sizes
    return ()


@torch.no_grad()
def _followed(dense: Any, small: Any, likely: Sequence[int], given: Given, choice: int) -> tuple[Size, ...]:
    """The numbers that must change where some heads are gone, met one after the other in a run of the program.

    Args:
        dense: The module as it is.
        small: The module without some heads.
        likely: Sizes of the axis that changes.
        given: What the module is called with.
        choice: Which axis of a reshape is that of heads, among those that could be.
    """
    leaves, spec = tree_flatten(given.arguments())
    inputs = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    resizing = Resizing()
    program = dense.recorded(leaves, spec, resizing)
    before = dict(run(program, dense, inputs))
    places = {node: place for place, node in enumerate(resizing.places)}
    sizes: list[Size] = []
    now: dict[fx.Node, Any] = {}
    for node in program.nodes:
        if node.op == "placeholder":
            now[node] = before[node]
            continue
        if node in places and isinstance(now[read_by(node)], Tensor):
            numbers = list(fx.node.map_arg(told(node), now.__getitem__))
            for want, size in _wanted(node, places[node], before, now[read_by(node)].shape, likely, choice):
                if numbers[size.entry] not in (None, -1, want):
                    numbers[size.entry] = want
                    sizes.append(size)
            tell(node, numbers)
        now[node] = execute(node, small, now)
    return tuple(sizes)


def _wanted(
    node: fx.Node, place: int, before: Mapping[fx.Node, Any], now: Sequence[int], likely: Sequence[int], choice: int
) -> Iterator[tuple[int, Size]]:
    """What numbers of an operator must be, and how they come to be so.

    Args:
        node: The operator.
        place: Its place among those that are told sizes.
        before: All values of the dense module.
        now: [a] sizes of what the operator reads.
        likely: As in `_followed`.
        choice: As in `_followed`.
    """
    source = before[read_by(node)].shape
    for axis, (whole, left) in enumerate(zip(source, now, strict=True)):
        sizes = _sizes_of(node, axis, before) if left != whole else {}
        able = [entry for entry, size in sizes.items() if size * left % whole == 0]
        if plain_name(node.target) in ("reshape", "unflatten"):  # one of the axes that it makes
            able = [entry for entry in able if sizes[entry] in likely] or able
            able = able[choice : choice + 1] or able[-1:]
        for entry, size in sizes.items():
            follows = entry in able
            want = size * left // whole if follows else size
            yield want, Size(place, entry, axis, whole) if follows else Size(place, entry, -1, size)


def _sizes_of(node: fx.Node, axis: int, before: Mapping[fx.Node, Any]) -> dict[int, int]:
    """Numbers of an operator that say something of an axis of what it reads: entry -> what it is in the dense module.

    Args:
        node: The operator.
        axis: The axis.
        before: All values of the dense module.
    """
    name, source, after = plain_name(node.target), before[read_by(node)].shape, before[node]
    numbers = fx.node.map_arg(told(node), before.__getitem__)
    if name == "reshape":
        return {new: after.shape[new] for old, made in matched(source, after.shape) if axis in old for new in made}
    if name == "expand":
        entry = len(numbers) - len(source) + axis
        return {entry: after.shape[entry]}
    if name == "getitem":
        return {entry: numbers[entry] for entry in _bounds(node, axis, len(source)) if (numbers[entry] or -1) >= 0}
    given: Any = node.args[1 if name == "unflatten" else 2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if given % len(source) != axis:
        return {}
    return dict(enumerate(after.shape[axis : axis + len(numbers)] if name == "unflatten" else numbers))


def _bounds(node: fx.Node, axis: int, axes: int) -> list[int]:
    """Entries of the start and the stop of the slice of an axis."""
    index: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    taken = [one for one in index if one is not None]
    left = taken.index(Ellipsis) if Ellipsis in taken else len(taken)
    slices = [place for place, one in enumerate(taken) if isinstance(one, slice)]
    right = axes - len(taken)
    for count, place in enumerate(slices):
        if place + (right if place > left else 0) == axis:
            return [2 * count, 2 * count + 1]
    return []
