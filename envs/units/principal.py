"""Principal channels of attention: few of them hold most of what queries and keys, or values and outputs, multiply.

A head sums products over its channels, queries with keys and values with the output projection's columns, and any
invertible change T of them leaves its sums the same: (T'a).(T^-1 b) = a.b. Here T makes the second moments of both
sides diagonal and equal (balanced truncation: Moore, Principal Component Analysis in Linear Systems, IEEE Transactions
on Automatic Control 26, 1981, section VI), so that where channels go, those go which hold least of the products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.network.copies import copy_network
from envs.units.units import Member, Unit

FLOOR = 1e-6
"""Smallest second moment that counts, relative to the largest of its side: what calibration images do not show must not
become a large weight.
"""


class SecondMoments(NamedTuple):
    """[C, C] float64 E[a a'] and E[b b'] of both sides of a unit, as `sides` orders them."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of a unit's channels, share by share.

    Attributes:
        forward: [C, C] float64 T: the first side becomes T'a.
        inverse: [C, C] float64 T^-1: the second side becomes T^-1 b.
    """

    forward: Tensor
    inverse: Tensor


def can_turn(network: nn.Module, unit: Unit) -> bool:
    """Whether two linear layers hold a unit's channels; that nothing stands between them is told by the outputs."""
    layers = [network.get_submodule(member.module) for member in unit.members]
    return len(layers) == 2 and all(isinstance(layer, nn.Linear) for layer in layers)


def turns_of(network: nn.Module, units: Iterable[Unit], moments: Mapping[str, SecondMoments]) -> dict[str, Turn]:
    """How the channels of principal units change, by unit.

    Args:
        network: The network.
        units: Its units; those that are not principal are left out.
        moments: Second moments of units on data; where there are none, those of the weights stand for them.
    """
    return {
        unit.name: _turn(unit, moments.get(unit.name) or _of_weights(network, unit)) for unit in units if unit.principal
    }


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
        _multiply(twin.get_submodule(first.module), first, turn.forward.T)
        _multiply(twin.get_submodule(second.module), second, turn.inverse)
    return twin


def sides(unit: Unit) -> tuple[Member, Member]:
    """Its first and second side: queries and keys, or the layer that reads values and the one that writes them."""
    if readers := unit.role("consumer"):
        return readers[0], unit.role("producer")[0]
    first, second = unit.role("factor")
    return first, second


def places(member: Member) -> list[list[int]]:
    """Positions of all channels on a member's axis, once for every time that it holds them (heads of one group)."""
    return [list(column) for column in zip(*member.positions, strict=True)]


def inputs_change(member: Member, turn: Turn, size: int) -> Tensor:
    """[n, n] float64 M: rows x that the layer reads on its n inputs become x M.

    Args:
        member: The layer that reads values.
        turn: The change of its unit.
        size: n.
    """
    matrix = torch.eye(size, dtype=turn.inverse.dtype, device=turn.inverse.device)
    for at in places(member):
        own = torch.tensor(at, device=matrix.device)
        matrix[own[:, None], own] = turn.inverse.T
    return matrix


def flagged(units: Sequence[Unit], names: Iterable[str]) -> tuple[Unit, ...]:
    """Units of which those with some names, and no others, are principal."""
    chosen = set(names)
    return tuple(replace(unit, principal=unit.name in chosen) for unit in units)


def _of_weights(network: nn.Module, unit: Unit) -> SecondMoments:
    """What both sides are for inputs without correlation."""
    return SecondMoments(*(_products(network.get_submodule(member.module), member) for member in sides(unit)))


def reading_moments(network: nn.Module, unit: Unit) -> Tensor:
    """[C, C] float64 second moments of the side that reads values: of its columns, over outputs."""
    member = sides(unit)[0]
    return _products(network.get_submodule(member.module), member)


def _products(layer: nn.Module, member: Member) -> Tensor:
    """[C, C] products of the weights of channels, summed over what else the layer has."""
    weight = layer.get_parameter("weight").detach().double()
    rows = weight.T if member.role == "consumer" else weight
    return torch.stack([rows[at] @ rows[at].T for at in places(member)]).sum(dim=0)


def _turn(unit: Unit, moments: SecondMoments) -> Turn:
    forward, inverse = torch.zeros_like(moments.first), torch.zeros_like(moments.first)
    for share in unit.shares or (tuple(range(unit.channels)),):
        own = torch.tensor(share, device=forward.device)
        square = own[:, None], own
        forward[square], inverse[square] = _balanced(moments.first[square], moments.second[square])
    return Turn(forward, inverse)


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


def _multiply(layer: nn.Module, member: Member, matrix: Tensor) -> None:
    """Gives a layer of a copied network what a side's channels become: matrix [C, C] times those that they are."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        values = parameter.detach().double().clone()
        if member.role == "consumer":
            if name != "weight":
                continue
            values = values.T
        for at in places(member):
            values[at] = matrix.to(values.device) @ values[at]
        if member.role == "consumer":
            values = values.T.contiguous()
        setattr(layer, name, nn.Parameter(values.to(parameter.dtype), requires_grad=parameter.requires_grad))
