"""How many calibration images fit into memory: for a network as large as people have."""

from __future__ import annotations

from functools import cache
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from envs.compression.calibration import MOST_WALKED, TYPICAL, live_bytes, plan_calibration
from envs.compression.preparation import HELD_SHARE
from envs.compression.settings import CompressionSettings
from envs.network.graph import trace
from envs.network.interpreter import Checkpoints, Interpreter
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


def build_lite0() -> nn.Module:
    """EfficientNet-Lite0."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    channels = 32
    for expansion, outputs, count, stride, kernel in STAGES:
        for index in range(count):
            layers.append(Block(channels, outputs, expansion, kernel, stride if index == 0 else 1))
            channels = outputs
    head = nn.Sequential(conv(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    return nn.Sequential(*layers, head).eval()


@cache
def lite0() -> LayoutFamily:
    """Its layout at 224, with nothing that may change."""
    network, example = build_lite0(), torch.zeros(1, 3, 224, 224)
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
    walks = 1 if plan.keep_targets else 2
    kept = min(plan.images * float(np.percentile(held, 75)), HELD_SHARE * 1e9 * memory_gb)
    assert targets * plan.keep_targets + chunk + walks * kept <= 1e9 * memory_gb
    assert plan.images >= min(available, round(200 * memory_gb))


class Inner(nn.Module):
    """Widens, narrows, adds."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.narrow(torch.relu(self.wide(x)))
        return y


def test_more_images_fit_where_only_the_small_cuts_between_blocks_are_kept() -> None:
    network, image, memory = nn.Sequential(*(Inner() for _ in range(8))).eval(), torch.zeros(1, 64, 32), 0.01
    family = measure_family(network, trace(network, image), image, [], [])[0]
    plan = plan_calibration(family, CompressionSettings(images=5000, memory_gb=memory), 5000)
    held = HELD_SHARE * 1e9 * memory
    assert plan.images > 2 * held / np.percentile(live_bytes(family.dense), TYPICAL)
    assert walked_macs(network, image, held / plan.images) <= MOST_WALKED * cost_of(Macs(), family.dense)


def test_a_network_that_may_be_walked_from_its_inputs_every_time_takes_all_images() -> None:
    network, image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8)
    family = measure_family(network, trace(network, image), image, [], [])[0]
    assert plan_calibration(family, CompressionSettings(images=2000), 2000).images == 2000


@pytest.mark.parametrize("memory_gb", [1.0, 0.5])
def test_walks_that_are_repeated_take_no_more_than_twice_the_work(memory_gb: float) -> None:
    plan = plan_calibration(lite0(), CompressionSettings(images=2000, memory_gb=memory_gb), 2000)
    walked = walked_macs(build_lite0(), torch.zeros(1, 3, 224, 224), HELD_SHARE * 1e9 * memory_gb / plan.images)
    assert walked <= MOST_WALKED * cost_of(Macs(), lite0().dense)


def walked_macs(network: nn.Module, image: Tensor, held_bytes: float) -> float:
    """Multiply-accumulates of a walk that stops in front of every layer."""
    executed = 0.0

    def count(layer: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal executed
        executed += output.numel() * layer.get_parameter("weight")[0].numel()

    interpreter = Interpreter(trace(network, image).require_program().nodes)
    checkpoints = Checkpoints(interpreter, [image], held_bytes)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    for place, node in enumerate(interpreter.order):
        if node.op == "call_module" and network.get_submodule(str(node.target)) in layers:
            checkpoints.advance(network, 0, place)
    return executed


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
