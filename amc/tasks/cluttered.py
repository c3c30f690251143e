"""Cluttered digits: scikit-learn's digits at random places among fragments of others, as in the cluttered MNIST of
Mnih et al., "Recurrent models of visual attention" (NeurIPS 2014). Harder than bare digits, and as small to ship.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amc.tasks.splits import ArraySplit, load_digits

SIZE, DIGIT, FRAGMENT = 32, 16, 8
"""Pixels along the edges of an image, of a digit in it and of a fragment."""
FRAGMENTS = 6
"""Fragments in an image."""
COUNTS = (600, 4000, 10000)
"""Images for calibration, validation and test; each set is drawn from digits of its own, most of them several times."""


def cluttered_digits(seed: int = 0) -> tuple[ArraySplit, ArraySplit, ArraySplit]:
    """Calibration, validation and test images `[N, 1, 32, 32]` with the classes of their digits `[N]`.

    Args:
        seed: Of the images; which digits they are made of does not depend on it.
    """
    splits = []
    for stream, ((digits, classes), count) in enumerate(zip(load_digits(), COUNTS, strict=True)):
        generator = torch.Generator().manual_seed(1000 * seed + stream)
        chosen = np.arange(count) % len(digits)
        images = clutter(enlarged(torch.from_numpy(digits)), torch.from_numpy(chosen), generator)
        splits.append(ArraySplit((255 * images).round().to(torch.uint8), classes[chosen], transform=scaled))
    first, second, third = splits
    return first, second, third


def training_digits() -> ArraySplit:
    """The digits that calibration images are made of, without clutter: [600, 1, 16, 16]; see `cluttered_anew`."""
    (digits, classes), _, _ = load_digits()
    return ArraySplit(digits, classes, transform=enlarged)


def cluttered_anew(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 1, 32, 32] of digits [B, 1, 16, 16], each at another place and among other fragments, for training."""
    return clutter(digits, torch.arange(len(digits)), generator)


def scaled(images: Tensor) -> Tensor:
    """Pixels 0..255 as float32 in [0, 1]."""
    return images.to(torch.float32) / 255.0


def enlarged(digits: Tensor) -> Tensor:
    """Raw digits `[N, 1, 8, 8]` with values 0..16 as `[N, 1, 16, 16]` float32 in [0, 1]."""
    return F.interpolate(digits.to(torch.float32) / 16.0, size=DIGIT, mode="bilinear", align_corners=False)


def clutter(digits: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Puts digits and fragments of others at random places; where they overlap, the brighter pixel counts.

    Args:
        digits: `[N, 1, 16, 16]` in [0, 1].
        chosen: `[B]` which of them the images show.
        generator: Of places and fragments.

    Returns:
        `[B, 1, 32, 32]` float32 in [0, 1].
    """
    images = torch.zeros(len(chosen), 1, SIZE, SIZE)
    _put(images, digits[chosen], generator)
    for _ in range(FRAGMENTS):
        others = torch.randint(len(digits), (len(chosen),), generator=generator)
        corners = torch.randint(DIGIT - FRAGMENT + 1, (len(chosen), 2), generator=generator)
        _put(images, digits[_places(others, corners, FRAGMENT)][:, None], generator)
    return images


def _put(images: Tensor, patches: Tensor, generator: torch.Generator) -> None:
    """Lays each patch `[B, 1, P, P]` into its image `[B, 1, 32, 32]` at a random place."""
    edge = patches.shape[-1]
    corners = torch.randint(SIZE - edge + 1, (len(images), 2), generator=generator)
    windows = _places(torch.arange(len(images)), corners, edge)
    images[windows] = torch.maximum(images[windows], patches[:, 0])


def _places(images: Tensor, corners: Tensor, edge: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """An index of the windows `[B, edge, edge]` with upper left `corners` `[B, 2]` in `images` `[B]` of one channel."""
    steps = torch.arange(edge)
    rows, columns = corners[:, 0, None] + steps, corners[:, 1, None] + steps
    return images[:, None, None], 0, rows[:, :, None], columns[:, None, :]
