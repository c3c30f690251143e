"""The network of the embedded default task: a small residual network for 16 x 16 grey images of digits,
with identity and projection shortcuts. Trained by `experiments/demo/train_digits.py`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digits.safetensors")
"""The trained weights that ship with the package."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around an addition; a 1 x 1 projection where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class DigitsNet(nn.Module):
    """A stem, three stages of two residual blocks at 16 x 16, 8 x 8 and 4 x 4, and a linear classifier.

    Args:
        widths: channels of the three stages. The default has little to spare early and much to spare late,
            so that pruning every layer alike costs accuracy that a choice per layer keeps.
        classes: outputs of the last layer.
    """

    def __init__(self, widths: tuple[int, int, int] = (4, 8, 32), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stage1 = _stage(widths[0], widths[0], stride=1)
        self.stage2 = _stage(widths[0], widths[1], stride=2)
        self.stage3 = _stage(widths[1], widths[2], stride=2)
        self.classifier = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[B, 1, 16, 16]` float32 in [0, 1] to class scores `[B, classes]`."""
        out = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))  # type: ignore[no-any-return]


def upsample(digits: Tensor) -> Tensor:
    """Turns raw digits `[B, 1, 8, 8]` with values 0..16 into inputs `[B, 1, 16, 16]` float32 in [0, 1]."""
    scaled = digits.to(torch.float32) / 16.0
    return F.interpolate(scaled, scale_factor=2, mode="bilinear", align_corners=False)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image `[B, 1, H, W]` by up to one pixel in both directions, for training; what comes in is 0."""
    return random_crop(images, 1, generator)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pads images `[B, C, H, W]` with zeros and cuts each at a place of its own to its size."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    places = torch.randint(2 * padding + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)])


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(in_channels, channels, stride), ResidualBlock(channels, channels, 1))
