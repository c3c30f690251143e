"""The pruning policy: which channels of each unit stay, which branches go; enough to rebuild the small network."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.space.patterns import mask_by_magnitude
from envs.space.policy_file import SCHEMA_VERSION, digest_of, read_policy_file, unit_entry
from envs.units.attention.explicit import Form, made_explicit
from envs.units.branches.branch import Branch, without_branches
from envs.units.principal import can_turn, turned, turns_of
from envs.units.slicing import axis_size, fits_attribute, slice_network
from envs.units.units import Unit
from hw_profiles.patterns import parse_pattern


class PolicyMismatch(ValueError):
    """A policy does not belong to the network it is applied to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPolicy:
    """What stays of one unit.

    Attributes:
        unit: The unit.
        indices: Kept channels, ascending, at least one.
    """

    unit: Unit
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses indices that are no ascending subset of the channels, that split a granule, or that keep more of one
        share than of another.
        """
        kept = set(self.indices)
        if not kept or list(self.indices) != sorted(kept) or self.indices[0] < 0:
            raise ValueError(f"kept indices must be ascending and not empty, but {self.unit.name!r} has {self.indices}")
        if self.indices[-1] >= self.unit.channels:
            raise ValueError(
                f"kept indices must be below {self.unit.channels}, but {self.unit.name!r} keeps {self.indices[-1]}"
            )
        if any(0 < len(kept.intersection(granule)) < len(granule) for granule in self.unit.granules):
            raise ValueError(f"channels of a grouped convolution must stay together in {self.unit.name!r}")
        if len({len(kept.intersection(share)) for share in self.unit.shares}) > 1:
            raise ValueError(f"equally many channels must stay of every share of {self.unit.name!r}, but not all do")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPolicy:
    """The sparsity pattern of one layer: dense, N:M or unstructured:DENSITY."""

    name: str
    pattern: str = "dense"

    def __post_init__(self) -> None:
        """Refuses a pattern that is none."""
        parse_pattern(self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A pruning policy.

    Attributes:
        structure: Fingerprint of the dense network's modules and shapes (another one is refused).
        weights: Fingerprint of its weights (others are warned about).
        units: What stays of each unit.
        layers: Pattern of each layer with a weight.
        forms: Attention that is made explicit before channels go; fingerprints are those of the network with it.
        branches: Residual branches that are removed after channels went.
        provenance: Where it comes from (task, budgets, seed, ...), free JSON.
    """

    structure: str
    weights: str
    units: tuple[UnitPolicy, ...]
    layers: tuple[LayerPolicy, ...] = ()
    forms: tuple[Form, ...] = ()
    branches: tuple[Branch, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Unit name -> kept channel indices."""
        return {entry.unit.name: entry.indices for entry in self.units}

    def widths(self) -> dict[str, int]:
        """Unit name -> number of kept channels."""
        return {entry.unit.name: len(entry.indices) for entry in self.units}

    def patterns(self) -> dict[str, str]:
        """Layer name -> pattern of the layers that are not dense."""
        return {layer.name: layer.pattern for layer in self.layers if layer.pattern != "dense"}

    def apply(self, network: nn.Module, *, check_weights: bool = True) -> nn.Module:
        """A smaller, plain, trainable copy of the original network; patterns by magnitude.

        Args:
            network: The network this policy was made for, dense; it is not changed.
            check_weights: Warn when its weights are not those the policy was made for.

        Raises:
            PolicyMismatch: If modules or shapes differ.
        """
        self.check_structure(network)
        network = made_explicit(network, self.forms)
        if check_weights and weights_fingerprint(network) != self.weights:
            warnings.warn(
                "the policy was made for other weights of this network: its channels may not be the best ones here",
                stacklevel=2,
            )
        units = [entry.unit for entry in self.units]
        small = slice_network(self.turned(network), units, self.kept())
        small = without_branches(small, self.branches)
        small = copy.deepcopy(small)  # nothing may stay shared with the dense network
        for name, pattern in self.patterns().items():
            mask_by_magnitude(small.get_submodule(name), parse_pattern(pattern))
        return small

    def turned(self, network: nn.Module) -> nn.Module:
        """The dense network with principal channels where the policy counts in them, by its weights alone.

        Args:
            network: With attention made explicit; it is not changed.
        """
        units = [entry.unit for entry in self.units]
        return turned(network, units, turns_of(network, units))

    def check_structure(self, network: nn.Module) -> None:
        """Refuses a network of another structure.

        Raises:
            PolicyMismatch: If modules or shapes differ.
        """
        try:
            network = made_explicit(network, self.forms)
        except ValueError as error:
            raise PolicyMismatch(str(error)) from error
        found = structure_fingerprint(network)
        if found != self.structure:
            raise PolicyMismatch(
                f"a policy only fits the network it was made for (structure {self.structure[7:19]}), but this one "
                f"has structure {found[7:19]}: build the same architecture, dense, or search again"
            )
        modules = dict(network.named_modules())
        for branch in self.branches:
            if missing := next((name for name in branch.named() if name not in modules), None):
                raise PolicyMismatch(
                    f"a policy must name modules of the network, but {missing!r} of branch {branch.name!r} is none: "
                    "take the file as it was written"
                )
        for member in (member for entry in self.units for member in entry.unit.members):
            size = axis_size(modules[member.module], member.role) if member.module in modules else 0
            if any(not 0 <= position < size for row in member.positions for position in row):
                raise PolicyMismatch(
                    f"a policy must name modules and positions of the network, but member {member.module!r} does not "
                    "fit: take the file as it was written"
                )
        for entry in self.units:
            _check_held(network, entry.unit)

    def save(self, path: Path | str) -> None:
        """Writes `policy.json`, atomically.

        Raises:
            OSError: If the file cannot be written; an old one is still there then.
        """
        target = Path(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, target)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary, the schema of `policy.json`."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "network": {"structure": self.structure, "weights": self.weights},
            "units": [unit_entry(entry.unit, entry.indices) for entry in self.units],
            "layers": [{"name": layer.name, "pattern": layer.pattern} for layer in self.layers],
            **({"attention": [form.to_json() for form in self.forms]} if self.forms else {}),
            **({"branches": [branch.to_json() for branch in self.branches]} if self.branches else {}),
            "provenance": dict(self.provenance),
        }
        return content | {"digest": digest_of(content)}

    @classmethod
    def from_json(cls, data: Any) -> Policy:
        """Reads `to_json` back.

        Raises:
            ValueError: If the schema is another one, a field is missing or of the wrong kind, or the content is not
                what was written.
        """
        file = read_policy_file(data)
        return cls(
            structure=file.network.structure,
            weights=file.network.weights,
            units=tuple(UnitPolicy(unit=entry.unit(), indices=tuple(entry.indices)) for entry in file.units),
            layers=tuple(LayerPolicy(name=layer.name, pattern=layer.pattern) for layer in file.layers),
            forms=tuple(entry.form() for entry in file.attention),
            branches=tuple(entry.branch() for entry in file.branches),
            provenance=file.provenance,
        )


def _check_held(network: nn.Module, unit: Unit) -> None:
    """Refuses a unit whose numbers, tables or principal channels a network cannot have."""
    for attribute in unit.attributes:
        if not fits_attribute(network, attribute, unit.channels):
            raise PolicyMismatch(
                f"a policy must name numbers and tables of the network, but {attribute.name!r} does not fit: "
                "use the network that it was made for"
            )
    if unit.principal and not can_turn(network, unit):
        raise PolicyMismatch(
            f"principal channels must be those of two linear layers, but {unit.name!r} has others: use the network "
            "that it was made for"
        )


def structure_fingerprint(network: nn.Module) -> str:
    """SHA-256 over module names, types, options (`extra_repr`) and parameter shapes."""
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        digest.update(f"{name}|{type(module).__name__}|{module.extra_repr()}\n".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}\n".encode())
    return "sha256:" + digest.hexdigest()


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 over all parameters and buffers."""
    return tensors_fingerprint(tensor for _, tensor in sorted(network.state_dict().items()))


def tensors_fingerprint(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()
