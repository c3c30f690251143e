"""Which channels are there in which epoch: at once, in steps, on a cubic curve, or softly.

Every stage keeps the channels that the policy keeps and, of the others, those with the largest weights; so a stage's
channels are a part of those of the stage before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from amc.runs.finetuning.settings import FinetuneConfig
from envs.space.policy import Policy
from envs.units.branches.branch import is_gone
from envs.units.units import Unit
from hw_profiles.patterns import parse_pattern

PRUNING_SHARE = 0.5
"""Share of the epochs in which the gradual and the soft schedule prune; the rest trains what is left."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Epochs with the same channels.

    Attributes:
        epochs: How many.
        kept: Unit name -> channels of the dense network that are there.
        patterns: Layer name -> pattern that its weights keep to.
        last: Whether the policy is reached.
        soft: Whether the weakest channels are zeroed after every epoch.
    """

    epochs: int
    kept: Mapping[str, tuple[int, ...]]
    patterns: Mapping[str, str]
    last: bool
    soft: bool = False


def stages(config: FinetuneConfig, policy: Policy, dense: nn.Module) -> tuple[Stage, ...]:
    """The stages of a schedule.

    Args:
        config: Schedule and epochs.
        policy: Where it ends.
        dense: The trained dense network, by whose weights channels are ordered.
    """
    shares = _shares(config)
    order = {entry.unit.name: _order(dense, entry.unit) for entry in policy.units}
    found = []
    for number, (epochs, share) in enumerate(shares, start=1):
        kept = {
            entry.unit.name: _kept(entry.indices, order[entry.unit.name], entry.unit, share) for entry in policy.units
        }
        patterns = {name: _eased(pattern, share) for name, pattern in policy.patterns().items()}
        last = number == len(shares)
        found.append(Stage(epochs, kept, patterns, last=last, soft=config.schedule == "soft" and not last))
    return tuple(found)


def softly_kept(network: nn.Module, policy: Policy) -> dict[str, tuple[int, ...]]:
    """As many channels of each unit as the policy keeps, those with the largest weights.

    He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018, algorithm 1. Theirs
    cuts at the very end; normalization brings a zeroed channel back to full size within an epoch, so that at tight
    budgets the network cut there is at chance, and ours trains what is left for the second half of the epochs.

    Args:
        network: The network as it is being trained, of dense widths.
        policy: Whose widths count.
    """
    kept = {}
    for entry in policy.units:
        order = entry.unit.in_steps(_order(network, entry.unit))
        kept[entry.unit.name] = tuple(sorted(order[: len(entry.indices)]))
    return kept


def zero_softly(network: nn.Module, policy: Policy) -> None:
    """Silences all channels but those of `softly_kept`, in place; they are trained on, and may come back."""
    kept = softly_kept(network, policy)
    for entry in policy.units:
        gone = sorted(set(range(entry.unit.channels)) - set(kept[entry.unit.name]))
        for member in entry.unit.members:
            if member.role != "consumer" and not is_gone(network, member.module):
                places = [place for channel in gone for place in member.positions[channel]]
                _silence(network.get_submodule(member.module), places, scale=member.role == "producer")


def _silence(module: nn.Module, places: list[int], *, scale: bool) -> None:
    """Zeroes what a module adds in these channels and, with `scale`, what it multiplies by, too."""
    transposed = bool(getattr(module, "transposed", False))
    with torch.no_grad():
        if scale:
            weight = module.get_parameter("weight")
            (weight.transpose(0, 1) if transposed else weight)[places] = 0
        for name in ("bias", "running_mean"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor):
                tensor[places] = 0


def _shares(config: FinetuneConfig) -> list[tuple[int, float]]:
    """(epochs, share of what the policy removes that is gone) of every stage."""
    if config.schedule == "iterative":  # Han et al., Learning both Weights and Connections, NIPS 2015, figure 3
        parts = [config.epochs // config.steps + (k < config.epochs % config.steps) for k in range(config.steps)]
        return [(epochs, (k + 1) / config.steps) for k, epochs in enumerate(parts)]
    if config.schedule == "gradual":  # Zhu and Gupta, To prune, or not to prune, 2017, equation 1, from sparsity 0
        pruning = max(1, int(PRUNING_SHARE * config.epochs))
        curve = [(1, 1 - (1 - (k + 1) / (pruning + 1)) ** 3) for k in range(pruning)]
        return [*curve, (config.epochs - pruning, 1.0)]
    if config.schedule == "soft":
        pruning = max(1, int(PRUNING_SHARE * config.epochs))
        return [(pruning, 0.0), (config.epochs - pruning, 1.0)]
    return [(config.epochs, 1.0)]


def _order(network: nn.Module, unit: Unit) -> list[tuple[int, ...]]:
    """The unit's granules, that with the largest weights (sum of squares of what makes them) first."""
    energy = torch.zeros(unit.channels, dtype=torch.float64, device="cpu")
    for member in (one for one in unit.role("producer") if not is_gone(network, one.module)):
        weight = network.get_submodule(member.module).get_parameter("weight").detach().double().cpu()
        axis = 1 if getattr(network.get_submodule(member.module), "transposed", False) else 0
        rows = weight.transpose(0, axis).flatten(1).square().sum(dim=1)
        for channel, places in enumerate(member.positions):
            energy[channel] += rows[list(places)].sum()
    return sorted(unit.granules, key=lambda granule: -float(energy[list(granule)].sum()))


def _kept(target: tuple[int, ...], order: list[tuple[int, ...]], unit: Unit, share: float) -> tuple[int, ...]:
    """The policy's channels and the best of the others."""
    wanted = set(target)
    others = unit.in_steps(granule for granule in order if not wanted.issuperset(granule))
    steps = len(others) // unit.granule
    stay = (steps - round(share * steps)) * unit.granule
    return tuple(sorted([*target, *others[:stay]]))


def _eased(pattern: str, share: float) -> str:
    """A density on its way from 1; N:M is there from the first stage."""
    parsed = parse_pattern(pattern)
    if parsed.structured or share == 1.0:
        return pattern
    return f"unstructured:{1 - share * (1 - parsed.density):.4f}"
