"""Small networks that the suites check on: a chain with a flattened map, a residual network, a grouped one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.space.constraint import Costing
from envs.space.policy import Policy
from envs.space.rules import Rules
from envs.units.anatomy import Anatomy, dissect
from hw_profiles.layers import IntArray


class Sum(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        """Takes the body."""
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        result: Tensor = x + self.body(x)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Specimen:
    """A network with what is known of it.

    Attributes:
        network: In eval mode.
        example: [1, 3, 8, 8] an input.
        anatomy: Graph, units and layouts.
    """

    network: nn.Module
    example: Tensor
    anatomy: Anatomy

    def inputs(self, count: int) -> Tensor:
        """[count, 3, 8, 8] random inputs."""
        return torch.randn(count, *self.example.shape[1:], generator=torch.Generator().manual_seed(0))

    def costing(self) -> Costing:
        """Costs over the widths of all units."""
        return Costing(self.anatomy.family, tuple(Rules().sites(self.anatomy.units)[0]))

    def channels(self, kept: IntArray) -> dict[str, list[int]]:
        """Unit -> channels, of [S] widths: the first ones."""
        widths = {site.name: int(width) for site, width in zip(self.costing().sites, kept, strict=True)}
        return {unit.name: sorted(unit.in_steps(unit.granules)[: widths[unit.name]]) for unit in self.anatomy.units}

    def compressor(self, **settings: object) -> Compressor:
        """Makes smaller networks."""
        anatomy, chunks = self.anatomy, torch.split(self.inputs(48), 16)
        options = CompressionSettings(**{"importance": "l1", "positions": 16, "quick_images": 32, **settings})
        return Compressor(self.network, anatomy.graph, anatomy.family, anatomy.units, chunks, options)


def halved(compressor: Compressor) -> Policy:
    """Half of every unit's channels."""
    return compressor.policy({unit.name: unit.granule * (unit.steps // 2 or 1) for unit in compressor.units})


def _norm(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def _chain() -> nn.Module:
    first = [*_norm(3, 6), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(80, 12), nn.ReLU(), nn.Linear(12, 5))


def _residual() -> nn.Module:
    return nn.Sequential(*_norm(3, 6), Sum(*_norm(6, 8), *_norm(8, 6)), nn.ReLU(), *_norm(6, 7), *_head(7))


def _grouped() -> nn.Module:
    return nn.Sequential(*_norm(3, 6), *_norm(6, 12, 1), *_norm(12, 12, groups=3), *_norm(12, 6, 1), *_head(6))


BUILDERS: tuple[Callable[[], nn.Module], ...] = (_chain, _residual, _grouped)


@cache
def specimens() -> tuple[Specimen, ...]:
    """All of them, with seeded weights and statistics."""
    example = torch.zeros(1, 3, 8, 8)
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for build in BUILDERS:
            network = build().train()
            with torch.no_grad():
                network(torch.randn(64, 3, 8, 8))  # statistics that are not trivial
            network.eval()
            found.append(Specimen(network, example, dissect(network, example)))
    return tuple(found)
