"""Units of attention: heads of networks with several, inner channels of a single head. Proposed here, verified as all.

One channel of a unit of heads is a head: its channels of queries, keys and values, and the columns of the layer that
reads what it gives. Where several query heads share keys and values they go together, as one group; where all share
one pair of these, queries go alone. A single head has two units: channels over which queries and keys are multiplied
and summed, and channels of values.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from envs.units.attention.found import Found
from envs.units.units import Kind, Member, Positions, Role, Unit


def attention_units(network: nn.Module, found: Found) -> list[list[Unit]]:
    """The unverified units of one attention, in each order in which its channels may lie; the likeliest first.

    Args:
        network: The network.
        found: The attention.
    """
    if found.heads == 1:
        return [_inner_units(network, found)] if found.separate else []
    layers = (found.q, found.k, found.v) if found.groups > 1 else (found.q,)
    if found.groups == 1 and found.q in (found.k, found.v):
        return []
    orders = (False,) if len(set(layers)) == len(layers) else (False, True)
    return [[_heads(network, found, layers, interleaved=interleaved)] for interleaved in orders]


def _inner_units(network: nn.Module, found: Found) -> list[Unit]:
    """Channels that queries and keys share, and channels that values and the output projection share."""
    summed, mixed = _size(network, found.q, "out"), _size(network, found.v, "out")
    units = [
        _unit(found.q, summed, "channels", [(found.q, "factor"), (found.k, "factor")]),
        _unit(found.v, mixed, "channels", [(found.v, "producer"), (found.out, "consumer")]),
    ]
    return [unit for unit in units if unit.channels > 1]


def _unit(name: str, channels: int, kind: Kind, members: Sequence[tuple[str, Role]]) -> Unit:
    """A unit each of whose channels has one place in every member."""
    places: Positions = tuple((channel,) for channel in range(channels))
    return Unit(
        name=name,
        channels=channels,
        granules=places,
        members=tuple(Member(module=module, role=role, positions=places) for module, role in members),
        kind=kind,
    )


def _heads(network: nn.Module, found: Found, layers: tuple[str, ...], *, interleaved: bool) -> Unit:
    """One unit over all heads, or groups of heads that share keys and values."""
    count = found.groups if found.groups > 1 else found.heads
    places: dict[str, list[list[int]]] = {name: [[] for _ in range(count)] for name in layers}
    for index, name in enumerate(layers):
        parts, part = layers.count(name), layers[:index].count(name)
        width = _size(network, name, "out") // parts // count
        for group, row in enumerate(places[name]):
            start = (group * parts + part if interleaved else part * count + group) * width
            row += range(start, start + width)
    members = [Member(module=name, role="producer", positions=_fixed(rows)) for name, rows in places.items()]
    width = _size(network, found.out, "in") // count
    read = tuple(tuple(range(group * width, (group + 1) * width)) for group in range(count))
    return Unit(
        name=found.q,
        channels=count,
        granules=tuple((group,) for group in range(count)),
        members=(*members, Member(module=found.out, role="consumer", positions=read)),
        kind="heads" if count == found.heads else "head groups",
    )


def _fixed(rows: Sequence[Sequence[int]]) -> Positions:
    return tuple(tuple(row) for row in rows)


def _size(network: nn.Module, name: str, axis: str) -> int:
    layer = network.get_submodule(name)
    return int(layer.in_features if axis == "in" else layer.out_features)  # type: ignore[arg-type]
