"""Zeros of a sparsity pattern that stay zero while the rest is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from envs.space.patterns import mask_by_magnitude
from hw_profiles.patterns import parse_pattern

Masks: TypeAlias = Mapping[str, Tensor]
"""Layer name -> [weight's shape] bool, True where a weight may be other than 0."""


def masks_of(network: nn.Module, layers: Iterable[str]) -> dict[str, Tensor]:
    """Where the weights of these layers are not zero."""
    return {name: network.get_submodule(name).get_parameter("weight").detach() != 0 for name in layers}


def hold(network: nn.Module, masks: Masks) -> None:
    """Sets what is masked back to zero, in place; after every step."""
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_submodule(name).get_parameter("weight").mul_(mask)


def impose(network: nn.Module, patterns: Mapping[str, str]) -> None:
    """Brings layers to a pattern by magnitude, where they do not keep to it yet, in place."""
    for name, pattern in patterns.items():
        mask_by_magnitude(network.get_submodule(name), parse_pattern(pattern))
