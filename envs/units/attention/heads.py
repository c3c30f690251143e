"""Units of attention: heads of networks with several, inner channels of a single head. Proposed here, verified as all.

One channel of a unit of heads is a head: its channels of queries, keys and values, and the columns of the layer that
reads what it gives. Where several query heads share keys and values they go together, as one group, or query heads
alone, as many of each group; where all share one pair of these, queries go alone. A single head has two units: channels
over which queries and keys are multiplied and summed, and channels of values. Of several heads these are the widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from envs.units.attention.decided import Decided
from envs.units.attention.found import Found
from envs.units.slicing import axis_size
from envs.units.units import Member, Positions, Role, Unit


def attention_units(network: nn.Module, found: Found, decided: Decided = "heads") -> list[list[Unit]]:
    """The unverified units of one attention, in each order in which its channels may lie; the likeliest first.

    Args:
        network: The network.
        found: The attention.
        decided: What is decided where it has several heads.
    """
    if found.heads == 1 or decided == "widths":
        return [_inner_units(network, found)] if found.separate else []
    if decided == "queries" and 1 < found.groups < found.heads:
        alone = found.q not in (found.k, found.v)
        return [[_queries(network, found, interleaved=interleaved)] for interleaved in (False, True) if alone]
    layers = (found.q, found.k, found.v) if found.groups > 1 else (found.q,)
    if found.groups == 1 and found.q in (found.k, found.v):
        return [[_queries(network, found, interleaved=False)]] if found.fused else []
    orders = (False,) if len(set(layers)) == len(layers) else (False, True)
    return [[_heads(network, found, layers, interleaved=interleaved)] for interleaved in orders]


def _inner_units(network: nn.Module, found: Found) -> list[Unit]:
    """Channels that queries and keys share, and channels that values and the output projection share.

    As many of them stay in every head. Where heads share keys, queries of several would go with one channel of keys;
    those stay.
    """
    summed, mixed = _size(network, found.q, "out"), _size(network, found.v, "out")
    each = mixed // found.groups
    read = [
        tuple(head * each + place for head in range(found.heads) if head * found.groups // found.heads == group)
        for group in range(found.groups)
        for place in range(each)
    ]
    units = [
        _unit(found.q, summed, found.heads, [(found.q, _each(summed)), (found.k, _each(summed))], ("factor", "factor")),
        _unit(
            found.v, mixed, found.groups, [(found.v, _each(mixed)), (found.out, tuple(read))], ("producer", "consumer")
        ),
    ]
    wanted = units if found.heads == found.groups else units[1:]
    return [unit for unit in wanted if unit.steps > 1]


def _queries(network: nn.Module, found: Found, *, interleaved: bool) -> Unit:
    """Query heads: as many go from each group that shares keys and values, neighbours or (interleaved) every n-th."""
    heads, groups = found.heads, found.groups
    width = _size(network, found.out, "in") // heads
    written = tuple(tuple(range(h * found.head_width, (h + 1) * found.head_width)) for h in range(heads))
    read = tuple(tuple(range(h * width, (h + 1) * width)) for h in range(heads))
    size = heads // groups
    return Unit(
        name=found.q,
        channels=heads,
        granules=_each(heads),
        members=(
            Member(module=found.q, role="producer", positions=written),
            *_carriers(network, found, {found.q: written}, read),
            *_gates(network, found, heads),
            Member(module=found.out, role="consumer", positions=read),
        ),
        kind="heads",
        shares=tuple(
            tuple(range(g, heads, groups)) if interleaved else tuple(range(g * size, (g + 1) * size))
            for g in range(groups)
        ),
    )


def undecided(found: Found, decided: Decided) -> dict[str, str]:
    """Layer -> why it stays, of those that write queries, keys or values and that no unit is proposed for."""
    if found.groups == found.heads:
        return {}
    if decided == "widths":
        return dict.fromkeys((found.q, found.k), "several query heads are multiplied with the same channels of keys")
    if decided == "queries" or found.groups == 1:
        return dict.fromkeys((found.k, found.v), "query heads share what it writes, and go without it")
    return {}


def _each(channels: int) -> Positions:
    """One place per channel."""
    return tuple((channel,) for channel in range(channels))


def _unit(
    name: str, channels: int, heads: int, members: Sequence[tuple[str, Positions]], roles: Sequence[Role]
) -> Unit:
    """A unit of the channels of some heads."""
    each = channels // heads
    return Unit(
        name=name,
        channels=channels,
        granules=_each(channels),
        members=tuple(
            Member(module=module, role=role, positions=positions)
            for (module, positions), role in zip(members, roles, strict=True)
        ),
        shares=tuple(tuple(range(h * each, (h + 1) * each)) for h in range(heads)) if heads > 1 else (),
    )


def _parts(network: nn.Module, found: Found, name: str, layers: tuple[str, ...]) -> list[int]:
    """Channels of one head or group in each part of a layer: queries, keys and values, or what of them it writes."""
    if found.fused and found.groups < found.heads:
        return [found.heads // found.groups * found.head_width, found.head_width, found.head_width]
    count = found.groups if found.groups > 1 else found.heads
    return [_size(network, name, "out") // layers.count(name) // count] * layers.count(name)


def _heads(network: nn.Module, found: Found, layers: tuple[str, ...], *, interleaved: bool) -> Unit:
    """One unit over all heads, or groups of heads that share keys and values."""
    count = found.groups if found.groups > 1 else found.heads
    places: dict[str, list[list[int]]] = {name: [[] for _ in range(count)] for name in layers}
    for index, name in enumerate(layers):
        each, part = _parts(network, found, name, layers), layers[:index].count(name)
        before, width = sum(each[:part]), each[part]
        for group, row in enumerate(places[name]):
            start = group * sum(each) + before if interleaved else count * before + group * width
            row += range(start, start + width)
    written = {name: _fixed(rows) for name, rows in places.items()}
    members = [Member(module=name, role="producer", positions=rows) for name, rows in written.items()]
    width = _size(network, found.out, "in") // count
    read = tuple(tuple(range(group * width, (group + 1) * width)) for group in range(count))
    members += _carriers(network, found, written, read)
    return Unit(
        name=found.q,
        channels=count,
        granules=tuple((group,) for group in range(count)),
        members=(*members, *_gates(network, found, count), Member(module=found.out, role="consumer", positions=read)),
        kind="heads" if count == found.heads else "head groups",
    )


def _carriers(network: nn.Module, found: Found, written: Mapping[str, Positions], read: Positions) -> list[Member]:
    """What carries channels on: of layers in the places where they write them, of the heads where they are read."""
    places = {name: written[layer] for name, layer in found.carriers if layer in written}
    width = sum(map(len, read))
    places |= {name: read for name in found.passed if _size(network, name, "out") == width}
    return [Member(module=name, role="carrier", positions=rows) for name, rows in places.items()]


def _gates(network: nn.Module, found: Found, count: int) -> list[Member]:
    """What layers that gate the heads write for each of some heads, or groups of heads."""
    widths = {name: _size(network, name, "out") // count for name in found.gates}
    return [
        Member(
            module=name,
            role="producer",
            positions=tuple(tuple(range(head * width, (head + 1) * width)) for head in range(count)),
        )
        for name, width in widths.items()
    ]


def _fixed(rows: Sequence[Sequence[int]]) -> Positions:
    return tuple(tuple(row) for row in rows)


def _size(network: nn.Module, name: str, axis: str) -> int:
    return axis_size(network.get_submodule(name), "consumer" if axis == "in" else "producer")
