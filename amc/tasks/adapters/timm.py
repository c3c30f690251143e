"""A task of a timm model and images (`pip install timm`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from amc.tasks.metric import Metric
from amc.tasks.metrics import accuracy
from amc.tasks.splits import ArraySplit, Split, SplitLike, as_split
from amc.tasks.task import Augment, Task


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixels as a model was trained on them: uint8 to [0, 1], then less the mean, over the deviation.

    Attributes:
        mean: Of each channel.
        std: Standard deviation of each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] float32 of [B, C, H, W] or [B, H, W, C] uint8, or of floats in [0, 1]."""
        channels = len(self.mean)
        if images.shape[1] != channels and images.shape[-1] == channels:
            images = images.permute(0, 3, 1, 2)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        mean, std = (torch.tensor(values).view(1, channels, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std


def from_timm(
    model: nn.Module,
    *,
    calibration: SplitLike,
    validation: SplitLike,
    test: SplitLike,
    training: SplitLike | None = None,
    augment: Augment | None = None,
    metric: Metric | Callable[[Tensor, Tensor], Tensor] = accuracy,
    name: str | None = None,
) -> Task:
    """A task of a model of `timm` and images, whose size need not be that of its `pretrained_cfg` if it runs on them.

    Args:
        model: Such as `timm.create_model("vit_small_patch14_dinov2", pretrained=True)`.
        calibration: Images and classes: a pair of arrays, whose uint8 (or floats in [0, 1]) [N, H, W, C] or
            [N, C, H, W] are normalized by the model's mean and deviation; or a dataset, whose transform has made of
            them what the model takes (`timm.data.create_transform(**timm.data.resolve_model_data_config(model))`).
        validation: The same, of what a search is rewarded on.
        test: The same, for the final report.
        training: The same, of what `amc finetune` trains on; nothing else needs them.
        augment: Changes inputs while training.
        metric: Top-1 accuracy, if nothing else is given.
        name: Shown in tables; left out: the architecture that the model names.

    Raises:
        ValueError: If the model does not say how images are normalized.
    """
    described = getattr(model, "pretrained_cfg", None)
    if not isinstance(described, Mapping) or not {"mean", "std"} <= described.keys():
        raise ValueError(
            f"from_timm needs a model with a pretrained_cfg of mean and std, but "
            f"{type(model).__name__} has none: make it with timm.create_model, or write an amc.Task"
        )
    pixels = Pixels(tuple(described["mean"]), tuple(described["std"]))
    parts = {"calibration": calibration, "validation": validation, "test": test}
    parts |= {} if training is None else {"training": training}
    splits: dict[str, Any] = {role: _normalized(as_split(data), pixels) for role, data in parts.items()}
    return Task(
        name=name or described.get("architecture") or type(model).__name__,
        network=model,
        example_input=_example(splits["calibration"], model),
        metric=metric,
        augment=augment,
        **splits,
    )


def _example(calibration: Split, model: nn.Module) -> Tensor:
    """An image of the calibration split's size, in the model's precision."""
    if not len(calibration):
        raise ValueError("calibration must have images, but has none: give at least 16")
    image: Tensor = calibration.batch([0])[0]
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    return torch.zeros(image.shape, dtype=dtype)


def _normalized(split: Split, pixels: Pixels) -> Split:
    """Arrays get the model's own transform; a dataset or a split has one of its own."""
    return replace(split, transform=pixels) if isinstance(split, ArraySplit) and split.transform is None else split
