"""MobileNets as tasks of one's own, for what costs time: random weights.

`mobilenet_v2` (Sandler et al., CVPR 2018) for 32 x 32 images: `amc profile measure --task
experiments.vision.mobilenet:mobilenet_v2 --out FILE`. With `--data DIR` the images are CIFAR-10's (and `--checkpoint`
takes trained weights), otherwise noise: costs do not depend on them. The strides of the stem and of the second stage
are 1, as usual for small images. `mobilenet_v1` (Howard et al., 2017) for 224 x 224, on noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from amc.tasks.cifar10 import cifar10_splits
from amc.tasks.models.resnet_cifar import NormalizePixels
from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride: table 2 of the paper."""


def conv_norm_act(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, normalization, ReLU6."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


V1_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride: table 1 of the paper."""


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; an addition where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = conv_norm_act(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = conv_norm_act(inner, inner, 3, stride, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """The whole network, 94 M MACs at 32 x 32."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks, channels = [], 32
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.stem = conv_norm_act(3, 32, 3)
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_norm_act(channels, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[B, 3, H, W]` to class scores `[B, classes]`."""
        out: Tensor = self.classifier(torch.flatten(self.pool(self.last(self.blocks(self.stem(x)))), 1))
        return out


def mobilenet_v2(data: Path | None = None) -> Task:
    """The task; without `data`, 256 images of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MobileNetV2()
        noise = torch.randn(256, 3, 32, 32), torch.arange(256) % 10
    if data is None:
        calibration = validation = test = ArraySplit(*noise)
    else:
        calibration, validation, test = cifar10_splits(data, NormalizePixels())
    return Task(
        name="mobilenet-v2",
        network=network,
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=calibration,
        validation=validation,
        test=test,
    )


class MobileNetV1(nn.Module):
    """The whole network, 569 M MACs at 224 x 224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks = [conv_norm_act(3, 32, 3, 2)]
        channels = 32
        for outputs, stride in V1_STAGES:
            blocks += [
                conv_norm_act(channels, channels, 3, stride, groups=channels),
                conv_norm_act(channels, outputs, 1),
            ]
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[B, 3, H, W]` to class scores `[B, classes]`."""
        out: Tensor = self.classifier(torch.flatten(self.pool(self.blocks(x)), 1))
        return out


def mobilenet_v1() -> Task:
    """The task, on 256 images of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MobileNetV1()
        split = ArraySplit(torch.randn(256, 3, 224, 224), torch.arange(256) % 1000)
    return Task(
        name="mobilenet-v1",
        network=network,
        example_input=torch.zeros(1, 3, 224, 224),
        calibration=split,
        validation=split,
        test=split,
    )
