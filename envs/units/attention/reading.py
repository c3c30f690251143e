"""Attention of a network: its verified units, in the network's own classes where they run, else made explicit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from types import MappingProxyType

import torch
from torch import nn

from envs.network.copies import same_output
from envs.network.graph import Graph, trace
from envs.network.inputs import Inputs, call
from envs.units.attention.attributes import with_attributes
from envs.units.attention.decided import Decided, Decision
from envs.units.attention.explicit import Form, made_explicit
from envs.units.attention.found import Found, find_attention
from envs.units.attention.heads import attention_units, undecided
from envs.units.attention.linear import transposed_layers
from envs.units.attention.resizing import resized_form
from envs.units.attention.trial import form_of, multihead_forms
from envs.units.principal import can_turn, flagged, random_turns, turned
from envs.units.units import Attribute, Fixed, Unit
from envs.units.verification.trial import Removal
from envs.units.verification.verify import verify_units

TOLERANCE = 1e-4
"""Largest accepted difference of a network's outputs with its attention made explicit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAttention:
    """What of a network's attention can be pruned.

    Attributes:
        network: The network, with attention made explicit where its own classes would not run.
        graph: Its operator graph.
        forms: What was made explicit.
        units: Verified units.
        fixed: Layers that stay, and why.
        removals: What was recorded while units were verified.
        layers: Layers that write queries, keys, values or gates, and what carries these on.
        found: Where it attends.
    """

    network: nn.Module
    graph: Graph
    forms: tuple[Form, ...] = ()
    units: tuple[Unit, ...] = ()
    fixed: tuple[Fixed, ...] = ()
    removals: tuple[Removal, ...] = ()
    layers: frozenset[str] = frozenset()
    found: tuple[Found, ...] = ()


def read_attention(
    network: nn.Module, example_input: Inputs, samples: Inputs | None = None, decided: Decision = "heads"
) -> ReadAttention:
    """Traces a network and finds the units of its attention.

    Args:
        network: The network; it is not changed.
        example_input: Input of batch 1.
        samples: Real inputs on which units are verified, None for random ones.
        decided: What is decided where there are several heads.
    """
    layers = [Form(module=name) for name in transposed_layers(network)]
    network = made_explicit(network, layers)
    own = replace(_traced(network, example_input, samples), forms=tuple(layers))
    if decided != "auto":
        return _read_as(own, example_input, samples, decided)
    if _may_turn(own, example_input if samples is None else samples):
        inner = _read_as(own, example_input, samples, "widths")
        several = {name for one in inner.found if one.heads > 1 for name in (one.q, one.v)}
        if several and several <= {unit.name for unit in inner.units if unit.principal}:
            return inner
    return _read_as(own, example_input, samples, "heads")


def _may_turn(read: ReadAttention, inputs: Inputs) -> bool:
    """Whether there are several heads, and none is known to have no principal channels before units are verified."""
    several = [one for one in read.found if one.heads > 1]
    if not several and not multihead_forms(read.network, read.graph, fixed=True):
        return False
    proposed = [unit for one in several for some in attention_units(read.network, one, "widths") for unit in some]
    turning = [unit.name for unit in proposed if can_turn(read.network, unit)]
    apart = all(one.groups == one.heads for one in several)
    return apart and (not turning or _alike(read.network, proposed, turning, inputs))


def _read_as(own: ReadAttention, example_input: Inputs, samples: Inputs | None, decided: Decided) -> ReadAttention:
    """The units of a network that was traced."""
    network, layers = own.network, own.forms
    own = _read(own, example_input, samples, decided)
    known = {unit.name for unit in own.units}
    fixed = decided == "widths"
    forms = multihead_forms(network, own.graph, fixed=fixed)
    for found in own.found:
        proposed = {unit.name for some in attention_units(network, found, decided) for unit in some}
        runs = proposed and proposed <= known
        form = None if runs else form_of(network, found, example_input, fixed=fixed)
        forms += [form] if form is not None else []
    best, explicit = own, made_explicit(network, forms)
    if forms and _same(network, explicit, example_input if samples is None else samples):
        again = _read(_traced(explicit, example_input, samples), example_input, samples, decided)
        best = replace(again, forms=(*layers, *forms)) if len(again.units) > len(own.units) else own
    best = _resized(_with_attributes(best, example_input, samples, decided), example_input, samples, decided)
    return _principal(best, example_input if samples is None else samples)


def _principal(read: ReadAttention, inputs: Inputs) -> ReadAttention:
    """The same with units principal whose channels can be changed without a change of the network's outputs."""
    names = [unit.name for unit in read.units if can_turn(read.network, unit)]
    if not names:
        return read
    whole = _alike(read.network, read.units, names, inputs)
    chosen = names if whole else [name for name in names if _alike(read.network, read.units, [name], inputs)]
    return replace(read, units=flagged(read.units, chosen))


def _alike(network: nn.Module, units: Sequence[Unit], names: Sequence[str], inputs: Inputs) -> bool:
    """Whether random changes of the channels of some units leave the network's outputs what they are."""
    some = flagged(units, names)
    return _same(network, turned(network, some, random_turns(network, some)), inputs)


def _resized(read: ReadAttention, example_input: Inputs, samples: Inputs | None, decided: Decided) -> ReadAttention:
    """The same with attention whose forward runs once numbers written in it follow the heads, too."""
    held = {member.module for unit in read.units for member in unit.members}
    forms: list[Form] = []
    in_vain: set[tuple[type[nn.Module], int, int, int]] = set()
    for found in read.found:
        units = [unit for some in attention_units(read.network, found, decided) for unit in some]
        kind = (type(read.network.get_submodule(found.owner)), found.heads, found.groups, found.head_width)
        if not units or found.q in held or kind in in_vain:
            continue
        form = resized_form(read.network, found, units, example_input)
        if form is None:
            in_vain.add(kind)
        else:
            forms.append(form)
    network = made_explicit(read.network, forms)
    if not forms or not _same(read.network, network, example_input if samples is None else samples):
        return read
    again = _read(_traced(network, example_input, samples), example_input, samples, decided)
    again = _with_attributes(replace(again, forms=(*read.forms, *forms)), example_input, samples, decided)
    return again if len(again.units) > len(read.units) else read


def _with_attributes(
    read: ReadAttention, example_input: Inputs, samples: Inputs | None, decided: Decided
) -> ReadAttention:
    """The same with attention whose class runs once numbers and tables that it holds are changed, too; not with other
    widths of heads, as one number is that of queries and of values.
    """
    if decided == "widths":
        return read
    held = {member.module for unit in read.units for member in unit.members}
    needed: dict[str, tuple[Attribute, ...]] = {}
    for found in read.found:
        alternatives = attention_units(read.network, found, decided) if found.q not in held else []
        proposed = (unit for some in alternatives for unit in some)
        whole = (with_attributes(read.network, found, unit, example_input) for unit in proposed)
        needed |= {unit.name: unit.attributes for unit in [next(filter(None, whole), None)] if unit is not None}
    if not needed:
        return read
    names = [one.name for attributes in needed.values() for one in attributes]
    parameters = dict(read.network.named_parameters())  # a program reads them off in any case
    traced = _traced(read.network, example_input, samples, [name for name in names if name not in parameters])
    if not traced.graph.traced:
        return read
    again = _read(traced, example_input, samples, decided, needed)
    return replace(again, forms=read.forms) if len(again.units) > len(read.units) else read


def _traced(
    network: nn.Module, example_input: Inputs, samples: Inputs | None, attributes: Collection[str] = ()
) -> ReadAttention:
    """A network with its graph and where it attends, without units."""
    graph = trace(network, example_input, samples, attributes)
    return ReadAttention(network=network, graph=graph, found=tuple(find_attention(network, graph, example_input)))


def _read(
    traced: ReadAttention,
    example_input: Inputs,
    samples: Inputs | None,
    decided: Decided,
    attributes: Mapping[str, tuple[Attribute, ...]] = MappingProxyType({}),
) -> ReadAttention:
    network, graph, found = traced.network, traced.graph, traced.found
    tried = [
        [[replace(unit, attributes=attributes.get(unit.name, ())) for unit in some] for some in alternatives]
        for alternatives in (attention_units(network, one, decided) for one in found)
    ]
    units: list[Unit] = []
    fixed: dict[str, Fixed] = {}
    removals: list[Removal] = []
    for alternatives in zip_longest(*tried, fillvalue=[]):
        held = {member.module for unit in units for member in unit.members}
        proposed = [unit for some in alternatives for unit in some if unit.name not in held]
        verified, rejected, recorded = verify_units(network, example_input, graph, proposed, samples=samples)
        units += verified
        removals += recorded
        fixed |= {entry.name: entry for entry in rejected}
    fixed = {name: Fixed(name, reason) for one in found for name, reason in undecided(one, decided).items()} | fixed
    held = {member.module for unit in units for member in unit.members if member.role != "consumer"}
    return replace(
        traced,
        units=tuple(units),
        fixed=tuple(entry for name, entry in fixed.items() if name not in held),
        removals=tuple(removals),
        layers=frozenset(
            name for one in found for name in (one.q, one.k, one.v, *one.gates, *dict(one.carriers), *one.passed)
        ),
    )


def _same(network: nn.Module, explicit: nn.Module, inputs: Inputs) -> bool:
    with torch.no_grad():
        try:
            got = call(explicit, inputs)
        except Exception:  # such as a mask that the example had not, or an attribute that others read
            return False
        return same_output(call(network, inputs), got, TOLERANCE)
