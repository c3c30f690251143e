"""Principal channels of attention: few of them hold most of what queries and keys, or values and outputs, multiply.

A head sums products over its channels, queries with keys and values with the output projection's columns, and any
invertible change T of them leaves its sums the same: (T'a).(T^-1 b) = a.b. Here T makes the second moments of both
sides diagonal, equal and descending (balanced truncation: Moore, Principal Component Analysis in Linear Systems, IEEE
Transactions on Automatic Control 26, 1981, section VI), so that the last channels of a head hold least of the products:
of them the first ones stay, whatever scores other channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.network.copies import copy_network
from envs.network.probe import has_stock_forward, is_plain
from envs.units.units import Member, Unit

FLOOR = 1e-6
"""Smallest second moment that counts, relative to the largest of its side: what calibration images do not show must not
become a large weight.
"""


class SecondMoments(NamedTuple):
    """[S, e, e] float64 E[a a'] and E[b b'] of both sides of a unit, as `sides` orders them, in each of its shares."""

    first: Tensor
    second: Tensor


class Turn(NamedTuple):
    """A change of a unit's channels in each of its shares.

    Attributes:
        forward: [S, e, e] float64 T: the first side becomes T'a.
        inverse: [S, e, e] float64 T^-1: the second side becomes T^-1 b.
    """

    forward: Tensor
    inverse: Tensor


def can_turn(network: nn.Module, unit: Unit) -> bool:
    """Whether two linear layers hold a unit's channels; that nothing stands between them is told by the outputs."""
    layers = [network.get_submodule(member.module) for member in unit.members]
    roles = sorted(member.role for member in unit.members)
    plain = all(isinstance(layer, nn.Linear) and is_plain(layer) and has_stock_forward(layer) for layer in layers)
    return unit.kind == "channels" and roles in (["factor"] * 2, ["consumer", "producer"]) and plain


def sides(unit: Unit) -> tuple[Member, Member]:
    """Its first and second side: queries and keys, or the layer that reads values and the one that writes them."""
    if readers := unit.role("consumer"):
        return readers[0], unit.role("producer")[0]
    first, second = unit.role("factor")
    return first, second


def places(unit: Unit, member: Member) -> list[list[list[int]]]:
    """[S, t, e] positions of the channels of each share on a member's axis, for each of t times that it holds them.

    Several heads of a group read the same values.
    """
    shares = unit.shares or (tuple(range(unit.channels)),)
    return [
        [list(column) for column in zip(*(member.positions[channel] for channel in share), strict=True)]
        for share in shares
    ]


def blocks(unit: Unit, member: Member, products: Tensor) -> Tensor:
    """[S, e, e] of products [n, n] of all positions of a member's axis, summed over the times that it holds a channel.

    Args:
        unit: The unit.
        member: One of its members.
        products: Second moments of what the member's axis holds.
    """
    return torch.stack([torch.stack([products[at][:, at] for at in times]).sum(0) for times in places(unit, member)])


def flagged(units: Sequence[Unit], names: Iterable[str]) -> tuple[Unit, ...]:
    """Units of which those with some names, and no others, are principal."""
    chosen = set(names)
    return tuple(replace(unit, principal=unit.name in chosen) for unit in units)


def principal_order(unit: Unit) -> list[int]:
    """Channels of a principal unit: the first of each share, then the second of each, and so on."""
    return unit.in_steps((channel,) for share in unit.shares or (range(unit.channels),) for channel in share)


def turns_of(
    network: nn.Module,
    units: Iterable[Unit],
    moments: Callable[[Unit], SecondMoments | None] = lambda unit: None,
) -> dict[str, Turn]:
    """How the channels of principal units change, by unit.

    Args:
        network: The network.
        units: Its units; those that are not principal are left out.
        moments: Second moments of a unit on data; where they are not known, those of the weights stand for them.
    """
    return {
        unit.name: _turn(moments(unit) or SecondMoments(*(of_weights(network, unit, side) for side in sides(unit))))
        for unit in units
        if unit.principal
    }


def random_turns(network: nn.Module, units: Iterable[Unit]) -> dict[str, Turn]:
    """Changes of principal units that are far from those of any moments: only what takes all of them takes a change."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for unit in (unit for unit in units if unit.principal):
        size = unit.channels // max(len(unit.shares), 1)
        drawn = torch.randn(
            max(len(unit.shares), 1), size, size, generator=generator, dtype=torch.float64, device="cpu"
        )
        forward = torch.eye(size, dtype=drawn.dtype, device="cpu") * 2 + drawn / size**0.5
        device = network.get_submodule(unit.members[0].module).get_parameter("weight").device
        found[unit.name] = Turn(forward.to(device), torch.linalg.inv(forward).to(device))
    return found


def turned(network: nn.Module, units: Iterable[Unit], turns: Mapping[str, Turn]) -> nn.Module:
    """A copy that computes the same with changed channels; the network itself without turns.

    Args:
        network: The network; it is not changed.
        units: Its units.
        turns: Changes by unit.
    """
    if not turns:
        return network
    twin = copy_network(network)
    for unit in (unit for unit in units if unit.name in turns):
        turn, (first, second) = turns[unit.name], sides(unit)
        _multiply(twin.get_submodule(first.module), unit, first, turn.forward.transpose(1, 2))
        _multiply(twin.get_submodule(second.module), unit, second, turn.inverse)
    return twin


def inputs_change(unit: Unit, turn: Turn, size: int) -> Tensor:
    """[n, n] float64 M: rows x that the layer that reads a unit's values has on its n inputs become x M."""
    matrix = torch.eye(size, dtype=turn.inverse.dtype, device=turn.inverse.device)
    for inverse, times in zip(turn.inverse, places(unit, sides(unit)[0]), strict=True):
        for at in times:
            own = torch.tensor(at, device=matrix.device)
            matrix[own[:, None], own] = inverse.T
    return matrix


def of_weights(network: nn.Module, unit: Unit, member: Member) -> Tensor:
    """[S, e, e] float64 second moments of a side by its weights, as for inputs (or outputs) without correlation."""
    weight = network.get_submodule(member.module).get_parameter("weight").detach().double()
    rows = weight.T if member.role == "consumer" else weight
    shares = places(unit, member)
    return torch.stack([torch.stack([rows[at] @ rows[at].T for at in times]).sum(dim=0) for times in shares])


def _turn(moments: SecondMoments) -> Turn:
    both = [_balanced(first, second) for first, second in zip(*moments, strict=True)]
    return Turn(torch.stack([forward for forward, _ in both]), torch.stack([inverse for _, inverse in both]))


def _balanced(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """T and T^-1 with T' A T = T^-1 B T'^-1 diagonal, descending; the identity where a side is zero."""
    eye = torch.eye(len(first), dtype=first.dtype, device=first.device)
    if not (first.diagonal().sum() > 0 and second.diagonal().sum() > 0):
        return eye, eye
    a, b = _root(first), _root(second)
    left, values, right = torch.linalg.svd(a.T @ b)
    scale = values.rsqrt()
    sign = torch.where(left.gather(0, left.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)  # of any LAPACK the same
    return (b @ right.T) * scale * sign, (a @ left * scale * sign).T


def _root(moments: Tensor) -> Tensor:
    """L with L L' = A, small eigenvalues raised."""
    values, vectors = torch.linalg.eigh((moments + moments.T) / 2)
    scaled: Tensor = vectors * values.clamp_min(FLOOR * float(values[-1])).sqrt()
    return scaled


def _multiply(layer: nn.Module, unit: Unit, member: Member, matrices: Tensor) -> None:
    """Gives a layer of a copied network what a side's channels become: matrices [S, e, e] times those that they are."""
    reads = member.role == "consumer"
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if reads and name != "weight":
            continue
        values = parameter.detach().double()
        values = values.T.clone() if reads else values.clone()
        for matrix, times in zip(matrices.to(values.device), places(unit, member), strict=True):
            for at in times:
                values[at] = matrix @ values[at]
        values = (values.T if reads else values).to(parameter.dtype).contiguous()
        setattr(layer, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
