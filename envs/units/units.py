"""Units: channels that are kept or dropped together, found by Torch-Pruning and verified by us.

Torch-Pruning's dependency graph proposes groups; a group becomes a `Unit` only if zeroing its consumers'
input weights and removing its channels give the same output (`envs/units/verification/verify.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.network.kinds import CONVOLUTIONS, NORMS, TRANSPOSED, WEIGHTED
from envs.units.dependencies import Item, channel_groups
from envs.units.fates import fate, lost_track

Role = Literal["producer", "carrier", "consumer", "factor"]
Kind = Literal["channels", "heads", "head groups"]
Positions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One module's share in a unit.

    Attributes:
        module: Module name.
        role: "producer" writes the channels, "consumer" reads them, "carrier" maps each one to itself
            (normalization, depthwise convolution, PReLU); two "factors" write channels that are multiplied with
            each other and summed up (queries and keys).
        positions: For each channel of the unit, the positions on the module's output axis (producer,
            carrier, factor) or input axis (consumer) that belong to it; several after a flatten, or in a head.
    """

    module: str
    role: Role
    positions: Positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """What a module holds beside the weights of its layers and what changes with a unit's channels.

    Attributes:
        name: Its place in the network ("blocks.0.attention.heads").
        axis: Of a tensor, the axis on which every channel has an equal share of the places, in order; None for a whole
            number, which changes in proportion to the channels.
    """

    name: str
    axis: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Channels that are kept or dropped together.

    Attributes:
        name: Name of the first producer in execution order.
        channels: Number of channels.
        granules: Sets of channels that only go together (size 1 unless a grouped convolution is a member).
        members: The modules that hold them.
        kind: What one channel is: "channels" of layers, attention "heads", or "head groups" that share keys and values.
        shares: Sets of equal size of which equally many channels stay (query heads of each group), () without that law.
        attributes: Numbers and tables of modules that change with the channels.
        principal: Whether its weights are changed so that its channels are principal ones (`envs.units.principal`).
    """

    name: str
    channels: int
    granules: Positions
    members: tuple[Member, ...]
    kind: Kind = "channels"
    shares: Positions = ()
    attributes: tuple[Attribute, ...] = ()
    principal: bool = False

    @property
    def granule(self) -> int:
        """Channels by which the width changes: those of a granule, in each share."""
        return len(self.granules[0]) * max(len(self.shares), 1)

    @property
    def steps(self) -> int:
        """How many widths there are."""
        return self.channels // self.granule

    def in_steps(self, granules: Iterable[Sequence[int]]) -> list[int]:
        """Channels in the order of their granules, share by share in turns: every `granule` of them are one step.

        Args:
            granules: All granules of the unit in any order, or some with equally many in every share.
        """
        ranked = [list(granule) for granule in granules]
        if self.shares:
            share = {channel: place for place, channels in enumerate(self.shares) for channel in channels}
            turns = Counter[int]()
            placed = []
            for granule in ranked:
                place = share[granule[0]]
                placed.append((turns[place], place, granule))
                turns[place] += 1
            ranked = [granule for _, _, granule in sorted(placed)]
        return [channel for granule in ranked for channel in granule]

    def role(self, role: Role) -> tuple[Member, ...]:
        """The members with that role."""
        return tuple(member for member in self.members if member.role == role)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A layer whose output channels stay, and why."""

    name: str
    reason: str


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel reads exactly one input channel and the counts agree."""
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels > 1


def propose_units(
    network: nn.Module, example_input: Inputs, graph: Graph, taken: Collection[str] = ()
) -> tuple[list[Unit], list[Fixed]]:
    """Turns Torch-Pruning's groups into unverified units, in execution order.

    Args:
        network: The network; it is not changed.
        example_input: Input of batch 1.
        graph: Its operator graph, for the order and for modules that are called more than once.
        taken: Layers whose output channels are in units already; groups of theirs are left out.

    Returns:
        Units, and the layers left out with the reason.
    """
    order, calls = graph.order(), graph.calls()
    units: list[Unit] = []
    fixed: list[Fixed] = []
    groups, lost = channel_groups(network, example_input, graph, taken)
    fixed += [Fixed(name, reason) for name, reason in lost.items() if name not in taken]
    for items in groups:
        shared = [name for name in _producers(items, network) if name in taken]
        reason = "attention ties its channels to those of heads" if shared else _unsupported(items, network, calls)
        if reason:
            fixed += [Fixed(name, reason) for name in _producers(items, network) if name not in shared]
            continue
        for members in _parts(_members(items, network)):
            part = _unit(members, network, graph)
            if isinstance(part, Unit):
                units.append(part)
            else:
                fixed += [Fixed(member.module, part) for member in members if _writes(member, network)]
    names = Counter(unit.name for unit in units)
    for unit in (unit for unit in units if names[unit.name] > 1):
        fixed += [
            Fixed(name, f"parts of the channels of {unit.name!r} go different ways")
            for name in weighted_outputs(unit, network)
        ]
    units = sorted((u for u in units if names[u.name] == 1), key=lambda u: order.get(u.name, len(order)))
    return units, fixed


def _unit(members: tuple[Member, ...], network: nn.Module, graph: Graph) -> Unit | str:
    """The unverified unit of some members, or why they cannot be one."""
    order = graph.order()
    if not any(member.role == "consumer" for member in members):
        return fate(graph, [member.module for member in members])
    producers = [member.module for member in members if member.role == "producer"]
    if not producers:
        return "no layer of the network writes its channels"
    channels = len(members[0].positions)
    if any(_beyond(member, network) for member in members):
        return lost_track(graph, producers)
    granules = _granules(channels, members, network)
    if channels < 2:
        return _single(producers, network)
    if len(granules) < 2 or len({len(granule) for granule in granules}) > 1:
        grouped = next((m.module for m in members if getattr(network.get_submodule(m.module), "groups", 1) > 1), "")
        return f"a grouped convolution ties its channels together ({grouped!r})"
    first = min(producers, key=lambda name: order.get(name, len(order)))
    return Unit(name=first, channels=channels, granules=granules, members=members)


def _single(producers: Sequence[str], network: nn.Module) -> str:
    """Why a group of one channel stays; as many channels may be the length along which another layer slides."""
    widths = {name: _out_channels(network.get_submodule(name)) for name in producers}
    single = next((name for name, width in widths.items() if width == 1), producers[0])
    if max(widths.values()) == 1:
        return "it has one channel"
    return f"its channels are tied to the one channel of {single!r}"


def _parts(members: tuple[Member, ...]) -> list[tuple[Member, ...]]:
    """Splits channels that not all members hold, as behind a concatenation, into parts that all members hold."""
    parts: dict[tuple[int, ...], list[int]] = {}
    for channel in range(len(members[0].positions)):
        parts.setdefault(tuple(len(member.positions[channel]) for member in members), []).append(channel)
    return [
        tuple(
            replace(member, positions=tuple(member.positions[channel] for channel in channels))
            for member, held in zip(members, signature, strict=True)
            if held
        )
        for signature, channels in parts.items()
    ]


def _unsupported(items: Sequence[Item], network: nn.Module, calls: dict[str, int]) -> str:
    """Why a group cannot become a unit, or ''."""
    modules = network.modules()  # each once, whatever its names
    owners = Counter(id(parameter) for module in modules for parameter in module.parameters(recurse=False))
    for name, axis, _, _ in _embeddings_first(items, network):
        if axis == "parameter":
            return f"the parameter {name!r}, which belongs to no layer that can be sliced, depends on its channels"
        module = network.get_submodule(name)
        parameters = dict(module.named_parameters())
        if not parameters:
            continue
        if not isinstance(module, (*WEIGHTED, *NORMS, nn.PReLU)):
            return _foreign(name, module, owners)
        if not parameters.keys() <= {"weight", "bias"}:
            return _further(name, parameters)
        if any(owners[id(parameter)] > 1 for parameter in parameters.values()):
            return f"{name!r} shares a parameter with another layer"
        if isinstance(module, TRANSPOSED) and module.groups != 1:
            return f"{name!r} is a grouped transposed convolution"
        if calls.get(name, 0) > 1:
            return f"{name!r} is called more than once in a forward pass"
        if name not in calls:
            return f"{name!r} is a part of another layer, or is used without being called"
    return ""


def _embeddings_first(items: Sequence[Item], network: nn.Module) -> list[Item]:
    """An embedding is the first of all reasons: it is why the width of a language model stays."""
    modules = dict(network.named_modules())
    return sorted(items, key=lambda item: not isinstance(modules.get(item.name), nn.Embedding))


def _foreign(name: str, module: nn.Module, owners: Counter[int]) -> str:
    """Why a layer that is never sliced keeps the channels of others."""
    if not isinstance(module, nn.Embedding):
        return f"{name!r} ({type(module).__name__}) depends on its channels and is not supported"
    tied = " (its weight is another layer's, too)" if owners[id(module.weight)] > 1 else ""
    return f"its channels are those of the embedding {name!r}, which stays{tied}"


def _further(name: str, parameters: Collection[str]) -> str:
    if "weight" in parameters:
        more = next(other for other in parameters if other not in ("weight", "bias"))
        return f"{name!r} has a further parameter {more!r}, which may depend on its channels"
    return f"{name!r} computes its weight from other parameters (a weight or spectral normalization)"


def _members(items: Sequence[Item], network: nn.Module) -> tuple[Member, ...]:
    channels = _out_channels(network.get_submodule(items[0][0]))
    roles: dict[tuple[str, Role], list[list[int]]] = {}
    for name, axis, positions, roots in items:
        module = network.get_submodule(name)
        if not isinstance(module, NORMS) and not any(True for _ in (*module.parameters(), *module.buffers())):
            continue  # activations and pooling hold nothing to slice
        role: Role = "consumer" if axis == "in" else "producer"
        if isinstance(module, (*NORMS, nn.PReLU)) or is_depthwise(module):
            if isinstance(module, nn.PReLU) and module.num_parameters == 1:
                continue
            role = "carrier"
        table = roles.setdefault((name, role), [[] for _ in range(channels)])
        for position, root in zip(positions, roots, strict=True):
            if position not in table[root]:
                table[root].append(position)
    return tuple(
        Member(module=name, role=role, positions=tuple(tuple(sorted(row)) for row in table))
        for (name, role), table in roles.items()
    )


def _beyond(member: Member, network: nn.Module) -> bool:
    """Whether a member holds places that its module does not have."""
    module = network.get_submodule(member.module)
    if not isinstance(module, WEIGHTED):
        return False
    size = _in_channels(module) if member.role == "consumer" else _out_channels(module)
    return any(position >= size for row in member.positions for position in row)


def weighted_outputs(unit: Unit, network: nn.Module) -> list[str]:
    """Names of the layers with a weight whose output channels the unit holds (depthwise ones are carriers)."""
    return list(dict.fromkeys(member.module for member in unit.members if _writes(member, network)))


def _writes(member: Member, network: nn.Module) -> bool:
    return member.role != "consumer" and isinstance(network.get_submodule(member.module), WEIGHTED)


def _producers(items: Sequence[Item], network: nn.Module) -> list[str]:
    """Names of the layers whose output channels a group holds."""
    outputs = [name for name, axis, _, _ in items if axis == "out"]
    return [name for name in dict.fromkeys(outputs) if isinstance(network.get_submodule(name), WEIGHTED)]


def _granules(channels: int, members: tuple[Member, ...], network: nn.Module) -> Positions:
    """Merges channels that sit at the same place of different groups of a grouped convolution (union-find)."""
    parent = list(range(channels))

    def find(channel: int) -> int:
        while parent[channel] != channel:
            channel = parent[channel]
        return channel

    for member in members:
        module = network.get_submodule(member.module)
        groups = getattr(module, "groups", 1)
        if member.role == "carrier" or groups == 1:
            continue
        width = (_in_channels(module) if member.role == "consumer" else _out_channels(module)) // groups
        owner: dict[int, int] = {}
        for channel, positions in enumerate(member.positions):
            for position in positions:
                first = owner.setdefault(position % width, channel)
                parent[find(channel)] = find(first)
    merged: dict[int, list[int]] = {}
    for channel in range(channels):
        merged.setdefault(find(channel), []).append(channel)
    return tuple(tuple(granule) for granule in merged.values())


def _out_channels(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def _in_channels(module: nn.Module) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)  # type: ignore[arg-type]
