"""The CIFAR-10 residual networks of He et al. 2015 (arXiv 1512.03385, section 4.2) with parameter-free
shortcuts (option A), and the pixel normalization that their public weights were trained with.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.tasks.models.digits import random_crop


@dataclass(frozen=True, slots=True)
class NormalizePixels:
    """Turns raw RGB pixels into a network's input: scale to [0, 1], subtract the mean, divide by the spread.

    Attributes:
        mean: one value per channel, in units of x / 255.
        std: one value per channel, in units of x / 255.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Maps pixels `[B, H, W, C]` uint8 to inputs `[B, C, H, W]` float32."""
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((scaled - mean) / std).contiguous()


class SubsampleAndPad(nn.Module):
    """Option A: every second row and column, and zero channels on both sides up to the new width."""

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        self.padding = (planes - in_planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C + 2 * padding, ceil(H / 2), ceil(W / 2)]`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around an addition; the shortcut has no parameters."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        same = stride == 1 and in_planes == planes
        self.shortcut = nn.Identity() if same else SubsampleAndPad(in_planes, planes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_planes, H, W]` to `[B, planes, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNetCifar(nn.Module):
    """A residual network of 6 * blocks + 2 weight layers: three stages of 16, 32 and 64 channels.

    Args:
        blocks: residual blocks per stage (3 for ResNet-20, 9 for ResNet-56).
        classes: outputs of the last layer.
        width: channels of the first stage (the usual 16).
    """

    def __init__(self, blocks: int, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalized images `[B, 3, 32, 32]` float32 to class scores `[B, classes]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))  # type: ignore[no-any-return]


def resnet20() -> ResNetCifar:
    """ResNet-20 for CIFAR-10: 40.55 M MACs."""
    return ResNetCifar(blocks=3)


def resnet56() -> ResNetCifar:
    """ResNet-56 for CIFAR-10: 125.49 M MACs."""
    return ResNetCifar(blocks=9)


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def cropped_and_flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """The usual augmentation of CIFAR (He et al., CVPR 2016, section 4.2): 4 pixels of padding, crops, mirror images.

    Args:
        images: `[B, 3, 32, 32]`, normalized.
        generator: on the CPU.
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return random_crop(images, 4, generator)
