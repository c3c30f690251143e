"""How many calibration images fit into memory: for a network as large as people have."""

from __future__ import annotations

from functools import cache
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from envs.compression.calibration import plan_calibration
from envs.compression.settings import CompressionSettings
from envs.network.graph import trace
from envs.units.layout import LayoutFamily, measure_family
from hw_profiles.cost import Macs, cost_of, live_values

STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels, blocks, first stride and kernel of EfficientNet-Lite0's stages (github.com/tensorflow/tpu)."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class Block(nn.Module):
    """Expand, depthwise, project, add."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner, self.adds = expansion * inputs, stride == 1 and inputs == outputs
        self.expand = conv(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise, self.project = conv(inner, inner, kernel, stride, inner), conv(inner, outputs, 1)[:2]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


@cache
def lite0() -> LayoutFamily:
    """EfficientNet-Lite0 at 224, with nothing that may change."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    channels = 32
    for expansion, outputs, count, stride, kernel in STAGES:
        for index in range(count):
            layers.append(Block(channels, outputs, expansion, kernel, stride if index == 0 else 1))
            channels = outputs
    head = nn.Sequential(conv(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    network, example = nn.Sequential(*layers, head).eval(), torch.zeros(1, 3, 224, 224)
    return measure_family(network, trace(network, example), example, [], [])[0]


def test_it_is_the_size_of_efficientnet_lite0() -> None:
    assert cost_of(Macs(), lite0().dense) == 385_187_552


@pytest.mark.parametrize("memory_gb", [1.0, 0.5])
@pytest.mark.parametrize("available", [32, 250, 2000])
def test_what_repair_of_a_network_at_224_holds_fits_the_memory_setting(available: int, memory_gb: float) -> None:
    settings, layout = CompressionSettings(images=2000, memory_gb=memory_gb), lite0().dense
    plan = plan_calibration(lite0(), settings, available)
    held = 4 * live_values(layout, layout.widths())[0]
    outputs = sum(
        a.out_channels * min(plan.positions, prod(a.out_map)) * (1 if a.has_weight else 2)
        for a in layout.layers
        if a.has_weight or a.kind == "add"
    )
    columns = max(a.in_channels // a.groups * prod(a.kernel) * a.groups for a in layout.layers if a.has_weight)
    targets = plan.images * outputs * (2 if plan.narrow_targets else 4)
    chunk = plan.chunk * max(float(held.max()), 4.0 * plan.positions * columns)
    assert targets + chunk + plan.images * float(np.percentile(held, 75)) <= 1e9 * memory_gb
    assert plan.images >= min(available, round(200 * memory_gb))


def test_where_dense_outputs_would_leave_few_images_the_dense_network_walks_beside() -> None:
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(16, 256, 1), nn.ReLU(), nn.Conv2d(256, 16, 1))]
    network, example = nn.Sequential(*layers).eval(), torch.zeros(1, 16, 4, 4)
    family = measure_family(network, trace(network, example), example, [], [])[0]
    tight, roomy = (
        plan_calibration(family, CompressionSettings(images=500, memory_gb=memory), 500) for memory in (0.02, 2.0)
    )
    assert not tight.keep_targets
    assert tight.images > 1.5 * 0.3 * 0.02e9 / (8 * 4 * 8 * (256 + 16))  # what half-kept targets at 8 positions allow
    assert roomy.keep_targets
    assert roomy.images == 500
