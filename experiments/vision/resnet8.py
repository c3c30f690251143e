"""ResNet-8 of MLPerf Tiny on CIFAR-10, as a task.

Command: amc search --task experiments.vision.resnet8:resnet8 --data DIR --constraint macs=0.5
DIR holds CIFAR-10 (as for `cifar10-resnet20`) and resnet8-cifar10/model.safetensors (Banbury et al., MLPerf Tiny
Benchmark, NeurIPS 2021; weights of its reference training). It reads raw pixels 0..255; its strided
convolutions pad as TensorFlow does.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.cifar10 import cifar10_splits
from amc.tasks.models.resnet_cifar import cropped_and_flipped
from amc.tasks.task import Task

EPSILON = 1e-3
"""Of normalization, Keras' default."""


class Block(nn.Module):
    """Two 3 x 3 convolutions beside the identity, or beside a strided projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1 if stride == 1 else 0)
        self.bn1 = nn.BatchNorm2d(outputs, EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs, EPSILON)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, H / stride, W / stride] from [B, inputs, H, W]."""
        padded = F.pad(x, (0, 1, 0, 1)) if self.stride > 1 else x
        y = F.relu(self.bn1(self.conv1(padded)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResNet8(nn.Module):
    """A stem, three blocks of 16, 32 and 64 channels, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, 16, 3, padding=1), "bn": nn.BatchNorm2d(16, EPSILON)})
        self.b1, self.b2, self.b3 = Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, 10] of pixels [B, 3, 32, 32] in 0..255."""
        x = F.relu(self.stem["bn"](self.stem["conv"](x)))
        x = self.b3(self.b2(self.b1(x)))
        scores: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def raw_pixels(pixels: Tensor) -> Tensor:
    """[B, 3, 32, 32] float32 in 0..255 of pixels [B, 32, 32, 3] uint8."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).contiguous()


def resnet8(data: Path, checkpoint: Path | None = None) -> Task:
    """The task; the weights have seen all training images, so the test images are validation and test."""
    network = ResNet8()
    load_checkpoint(network, checkpoint or data / "resnet8-cifar10" / "model.safetensors")
    training, validation, test = cifar10_splits(data, raw_pixels)
    return Task(
        name="resnet8",
        network=network,
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=training,
        validation=validation,
        test=test,
        training=training,
        augment=cropped_and_flipped,
    )
