"""The network of the embedded task `cluttered-digits`, for 32 x 32 grey images: inverted bottlenecks (MobileNetV2,
Sandler et al., CVPR 2018), and fused ones (EfficientNetV2, Tan and Le, ICML 2021) at 16 x 16, where plain convolutions
run well. Trained by `experiments/demo/train.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("cluttered.safetensors")
"""The trained weights that ship with the package."""


class Stage(NamedTuple):
    """Blocks of one shape.

    Attributes:
        fused: Whether a block has one 3 x 3 convolution in place of a 1 x 1 and a depthwise one.
        hidden: Channels inside a block.
        channels: Channels between blocks.
        blocks: How many.
        stride: Of the first block.
    """

    fused: bool
    hidden: int
    channels: int
    blocks: int
    stride: int


STEM, HEAD = 32, 96
STAGES = (
    Stage(fused=False, hidden=96, channels=32, blocks=2, stride=1),
    Stage(fused=True, hidden=96, channels=32, blocks=2, stride=2),
    Stage(fused=False, hidden=96, channels=48, blocks=2, stride=2),
    Stage(fused=False, hidden=144, channels=48, blocks=2, stride=2),
)
"""At 32 x 32, 16 x 16, 8 x 8 and 4 x 4. All widths are multiples of 16, the block of channels of common kernels."""


class Bottleneck(nn.Module):
    """A wide inside between narrow ends, with an addition around it where the shape stays."""

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        hidden, channels = stage.hidden, stage.channels
        if stage.fused:
            inside = [_conv(in_channels, hidden, 3, stride)]
        else:
            inside = [_conv(in_channels, hidden, 1), _conv(hidden, hidden, 3, stride, groups=hidden)]
        self.inside = nn.Sequential(*inside)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.same_shape = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        out: Tensor = self.project(self.inside(x))
        return x + out if self.same_shape else out


class ClutteredDigitsNet(nn.Module):
    """A stem, four stages of bottlenecks, a 1 x 1 convolution, and a linear classifier of ten classes."""

    def __init__(self, stages: tuple[Stage, ...] = STAGES) -> None:
        super().__init__()
        self.stem = _conv(1, STEM, 3)
        blocks, channels = [], STEM
        for stage in stages:
            for index in range(stage.blocks):
                blocks.append(Bottleneck(channels, stage, stage.stride if index == 0 else 1))
                channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, HEAD, 1)
        self.classifier = nn.Linear(HEAD, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[B, 1, 32, 32]` float32 in [0, 1] to class scores `[B, 10]`."""
        out = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))  # type: ignore[no-any-return]


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
