"""Physical removal of channels: our own slicing, used for every candidate of a search.

Torch-Pruning is the oracle in tests. Parameters that no removed channel touches are shared, not copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from envs.network.copies import copy_network
from envs.network.kinds import TRANSPOSED
from envs.units.units import Attribute, Member, Unit, is_depthwise

Kept = Mapping[str, Sequence[int]]
"""Unit name -> kept channel indices, ascending."""


@dataclass(frozen=True, slots=True)
class Axes:
    """What stays of one module.

    Attributes:
        inputs: Kept positions on the input axis, None for all of them.
        outputs: The same on the output axis.
        mix: [O, o] what dense outputs are multiplied by in the place of taking some of them, None: they are taken.
        numbers: What whole numbers that the module holds become, by name.
        tables: The axis and the kept positions on it of tables that it holds, by name.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    mix: Tensor | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)


def kept_axes(network: nn.Module, units: Iterable[Unit], kept: Kept) -> dict[str, Axes]:
    """For each touched module the positions that stay on its input and output axis.

    Args:
        network: The dense network.
        units: Its units.
        kept: Kept channels; units that are not named keep all.
    """
    masks: dict[tuple[str, str], Tensor] = {}
    units = list(units)
    for unit in units:
        dropped = sorted(set(range(unit.channels)).difference(kept.get(unit.name, range(unit.channels))))
        if not dropped:
            continue
        for member in unit.members:
            axis = "in" if member.role == "consumer" else "out"
            mask = masks.get((member.module, axis))
            if mask is None:
                size = _axis_size(network.get_submodule(member.module), axis)
                mask = torch.ones(size, dtype=torch.bool, device="cpu")  # written to channel by channel
                masks[member.module, axis] = mask
            mask[[position for channel in dropped for position in member.positions[channel]]] = False
    device = next((parameter.device for parameter in network.parameters()), "cpu")
    positions = {key: mask.nonzero().flatten().to(device) for key, mask in masks.items()}
    found = {
        name: Axes(positions.get((name, "in")), positions.get((name, "out")))
        for name in dict.fromkeys(name for name, _ in positions)
    }
    for unit in units:
        if len(stays := kept.get(unit.name, range(unit.channels))) < unit.channels:
            _keep_attributes(network, unit, stays, found)
    return found


def _keep_attributes(network: nn.Module, unit: Unit, stays: Sequence[int], found: dict[str, Axes]) -> None:
    """Adds what numbers and tables that modules hold become with some channels of a unit."""
    for attribute in unit.attributes:
        owner, _, name = attribute.name.rpartition(".")
        before, axes = getattr(network.get_submodule(owner), name), found.get(owner, Axes())
        if attribute.axis is None:
            found[owner] = replace(axes, numbers={**axes.numbers, name: int(before) * len(stays) // unit.channels})
            continue
        size = before.shape[attribute.axis] // unit.channels
        places = [channel * size + place for channel in stays for place in range(size)]
        table = (attribute.axis, torch.tensor(places, device=before.device))
        found[owner] = replace(axes, tables={**axes.tables, name: table})


def slice_network(network: nn.Module, units: Iterable[Unit], kept: Kept) -> nn.Module:
    """A smaller copy of `network`; untouched parameters are shared with it.

    Args:
        network: The dense network; it is not changed.
        units: Its units.
        kept: Kept channels per unit, at least one each.
    """
    return slice_axes(network, kept_axes(network, units, kept))


def slice_axes(network: nn.Module, axes: Mapping[str, Axes]) -> nn.Module:
    """`slice_network` for axes that are known."""
    small = copy_network(network)
    for name, touched in axes.items():
        slice_module(small.get_submodule(name), touched)
    return small


def slice_module(module: nn.Module, axes: Axes) -> None:
    """Cuts one module (of a copied network) to its kept positions, in place."""
    for name, number in axes.numbers.items():
        setattr(module, name, number)
    for name, (axis, places) in axes.tables.items():
        _assign(module, name, _take(getattr(module, name), axis, places))
    if axes.inputs is None and axes.outputs is None:
        return
    if isinstance(module, nn.Linear):
        _assign(module, "weight", _take(_outputs(module.weight, axes), 1, axes.inputs))
        if isinstance(module.bias, Tensor):
            _assign(module, "bias", _outputs(module.bias, axes))
        module.out_features, module.in_features = module.weight.shape
    elif hasattr(module, "in_channels") and hasattr(module, "kernel_size"):
        _slice_convolution(module, axes)
    else:
        _slice_carrier(module, axes.outputs)


def silence(network: nn.Module, unit: Unit, dropped: Sequence[int]) -> None:
    """Makes the dropped channels unheard, in place (the oracle of verification).

    The consumers' weights on them are zeroed; channels that only meet those of another factor are zeroed in one.
    """
    for member in unit.role("consumer"):
        _zero_inputs(network.get_submodule(member.module), _places(member, dropped))
    for member in unit.role("factor")[:1]:
        module = network.get_submodule(member.module)
        for name in _written(module):
            silent = module.get_parameter(name).detach().clone()
            silent[_places(member, dropped)] = 0
            _assign(module, name, silent)


def silenced_tensors(network: nn.Module, unit: Unit) -> dict[tuple[str, str], nn.Parameter]:
    """(module, parameter) -> what `silence` puts something else for."""
    named = [(member.module, "weight") for member in unit.role("consumer")]
    for member in unit.role("factor")[:1]:
        layer = network.get_submodule(member.module)
        named += [(member.module, name) for name in _written(layer)]
    return {(module, name): network.get_submodule(module).get_parameter(name) for module, name in named}


def _written(layer: nn.Module) -> list[str]:
    """Parameters of a layer with a place for each output."""
    return [name for name in ("weight", "bias") if isinstance(getattr(layer, name, None), nn.Parameter)]


def _places(member: Member, channels: Sequence[int]) -> list[int]:
    return [place for channel in channels for place in member.positions[channel]]


def _zero_inputs(module: nn.Module, places: Sequence[int]) -> None:
    weight = module.get_parameter("weight").detach().clone()
    if isinstance(module, TRANSPOSED):
        weight[torch.tensor(places, dtype=torch.long, device=weight.device)] = 0
    else:
        per_group = weight.shape[1]
        rows = torch.arange(weight.shape[0], device=weight.device)
        group_of_row = rows // (weight.shape[0] // getattr(module, "groups", 1))
        for position in places:
            weight[group_of_row == position // per_group, position % per_group] = 0
    _assign(module, "weight", weight)


def fits_attribute(network: nn.Module, attribute: Attribute, channels: int) -> bool:
    """Whether a network holds such a number or table, of a size that so many channels can share."""
    owner, _, name = attribute.name.rpartition(".")
    module = dict(network.named_modules()).get(owner)
    value = getattr(module, name, None)
    if attribute.axis is None:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, Tensor) and attribute.axis < value.ndim and value.shape[attribute.axis] % channels == 0


def axis_size(module: nn.Module, role: str) -> int:
    """Channels on the axis where a member of this role holds its positions (0: it has no such axis)."""
    if not any(hasattr(module, name) for name in ("in_features", "in_channels", *_WIDTHS, "normalized_shape")):
        return 0
    return _axis_size(module, "in" if role == "consumer" else "out")


_WIDTHS = ("num_features", "num_channels", "num_parameters")


def _axis_size(module: nn.Module, axis: str) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features if axis == "in" else module.out_features
    if hasattr(module, "in_channels"):
        return int(module.in_channels if axis == "in" else module.out_channels)  # type: ignore[arg-type]
    for name in _WIDTHS:
        if hasattr(module, name):
            return int(getattr(module, name))
    return int(module.normalized_shape[-1])  # type: ignore[index]


def _slice_convolution(module: nn.Module, axes: Axes) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if is_depthwise(module):
        weight = _take(weight, 0, axes.outputs)
        module.in_channels = module.out_channels = module.groups = weight.shape[0]  # type: ignore[assignment]
    else:
        transposed = isinstance(module, TRANSPOSED)
        weight = _take(weight, int(transposed), axes.outputs)
        columns = axes.inputs
        if columns is not None and int(module.groups) > 1:  # type: ignore[arg-type]
            columns = columns[columns < weight.shape[1]]  # granules: every group keeps the same places
        weight = _take(weight, int(not transposed), columns)
        module.out_channels = weight.shape[int(transposed)]  # type: ignore[assignment]
        module.in_channels = weight.shape[int(not transposed)] * int(module.groups)  # type: ignore[assignment, arg-type]
    _assign(module, "weight", weight)
    _slice_bias(module, axes.outputs)


def _slice_carrier(module: nn.Module, outputs: Tensor | None) -> None:
    if outputs is None:
        return
    full = _axis_size(module, "out")
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.ndim >= 1 and tensor.shape[-1] == full:
            _assign(module, name, _take(tensor, tensor.ndim - 1, outputs))
    for name in _WIDTHS:
        if hasattr(module, name):
            setattr(module, name, len(outputs))
    if hasattr(module, "normalized_shape"):
        module.normalized_shape = (*module.normalized_shape[:-1], len(outputs))  # type: ignore[assignment, index]


def _slice_bias(module: nn.Module, outputs: Tensor | None) -> None:
    if isinstance(module.bias, Tensor):
        _assign(module, "bias", _take(module.bias, 0, outputs))


def _outputs(tensor: Tensor, axes: Axes) -> Tensor:
    """A linear layer's weight or bias on the outputs that stay."""
    if axes.mix is None:
        return _take(tensor, 0, axes.outputs)
    return (axes.mix.T.double() @ tensor.detach().double()).to(tensor.dtype)


def _take(tensor: Tensor, axis: int, positions: Tensor | None) -> Tensor:
    return tensor if positions is None else tensor.detach().index_select(axis, positions.to(tensor.device))


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a new tensor where `name` stands, as a parameter if it was one."""
    old = getattr(module, name)
    if tensor is old:
        return
    fresh = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    setattr(module, name, fresh)
