"""Regression rows: what a convolution or linear layer reads and writes at sampled output positions.

Unfolded feature maps never exist: patches are gathered only where they were sampled.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.network.probe import Multiplication, has_stock_forward, is_plain, multiplication


class Positions(NamedTuple):
    """Sampled output positions of one chunk: [m] image index and [m] flat position in the output map."""

    image: Tensor
    place: Tensor


def can_gather(module: nn.Module) -> bool:
    """Whether rows can be gathered for this module: it multiplies by its own weight, and by nothing else."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and is_plain(module)


def draw_positions(
    images: int,
    places: int,
    per_image: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    counted: Tensor | None = None,
) -> Positions:
    """`per_image` distinct positions in each image (all of them if there are fewer), in random order.

    The first positions of each image are those that a draw of fewer would have given.

    Args:
        images: Images in the chunk.
        places: Positions of the output map.
        per_image: Positions wanted per image.
        generator: Source of randomness on the CPU, so that the draw is the same for every device.
        device: Where the positions go.
        counted: [images, places] bool, among which is drawn; None: among all.
    """
    count = min(per_image, places)
    keys = torch.rand(images, places, generator=generator, device="cpu")
    image = torch.arange(images, device=device).repeat_interleave(count)
    if counted is None:
        return Positions(image, keys.topk(count, dim=1).indices.to(device).flatten())
    drawn = keys.masked_fill(~counted.cpu(), -1.0).topk(count, dim=1)
    kept = (drawn.values >= 0).flatten().to(device)
    return Positions(image[kept], drawn.indices.to(device).flatten()[kept])


def output_places(module: nn.Module, output_shape: tuple[int, ...]) -> int:
    """Number of positions in one image's output map."""
    return prod(output_shape[1:-1]) if isinstance(module, nn.Linear) else prod(output_shape[2:])


def take_outputs(module: nn.Module, outputs: Tensor, at: Positions) -> Tensor:
    """[m, O] outputs (or anything of their shape) at the sampled positions."""
    if isinstance(module, nn.Linear):
        rows = outputs.flatten(1, -2)[at.image, at.place] if outputs.ndim > 2 else outputs[at.image]
    else:
        rows = outputs.flatten(2)[at.image, :, at.place]
    return _full_precision(rows)


def gather_inputs(module: nn.Module, inputs: Tensor, at: Positions) -> Tensor:
    """[G, m, n] rows that the module multiplies at the sampled positions.

    `n` is inputs per group x kernel, channel-major, as in `weight.flatten(1)`.
    """
    return _full_precision(gather_patches(module, inputs, at).transpose(2, 3).flatten(2))


def gather_patches(module: nn.Module, inputs: Tensor, at: Positions) -> Tensor:
    """[G, m, k, C/G] what the module multiplies at the sampled positions, in the inputs' precision.

    With the kernel before the channels, patches of channels-last maps are whole runs of memory.
    """
    call = None if has_stock_forward(module) else multiplication(module, inputs)
    inputs = inputs if call is None else call.inputs
    if isinstance(module, nn.Linear):
        rows = inputs.flatten(1, -2)[at.image, at.place] if inputs.ndim > 2 else inputs[at.image]
        return rows[None, :, None]
    if isinstance(module, nn.Conv1d):
        inputs = inputs.unsqueeze(2)
    kernel, stride, dilation, pads = _geometry(module, module if call is None else call)
    if call is None and module.padding_mode != "zeros" and any(pads):
        inputs = F.pad(inputs, pads, mode=str(module.padding_mode))
        pads = [0, 0, 0, 0]
    height, width = inputs.shape[2:]
    reach = dilation[1] * (kernel[1] - 1) + 1
    across = (width + pads[0] + pads[1] - reach) // stride[1] + 1
    down, along = (torch.arange(k, device=at.place.device) * d for k, d in zip(kernel, dilation, strict=True))
    down = (at.place // across * stride[0] - pads[2])[:, None] + down
    along = (at.place % across * stride[1] - pads[0])[:, None] + along
    places = (at.image[:, None] * height + down.clamp(0, height - 1))[:, :, None] * width
    places = (places + along.clamp(0, width - 1)[:, None]).flatten()
    patches = inputs.permute(0, 2, 3, 1).reshape(-1, inputs.shape[1]).index_select(0, places)
    if any(pads):
        outside = ((down < 0) | (down >= height))[:, :, None] | ((along < 0) | (along >= width))[:, None]
        patches.index_fill_(0, outside.flatten().nonzero().flatten(), 0)
    groups = int(module.groups) if call is None else call.groups  # type: ignore[arg-type]
    return patches.view(len(at.image), kernel[0] * kernel[1], groups, -1).permute(2, 0, 1, 3)


def kernel_size(module: nn.Module) -> int:
    """Positions of the module's kernel, 1 for a linear layer."""
    return 1 if isinstance(module, nn.Linear) else prod(module.kernel_size)  # type: ignore[arg-type]


def regrouped(rows: Tensor, first: int) -> Tensor:
    """[G, first x rest, o] as [G, rest x first, o]: from channel-major to kernel-major, and back."""
    return rows.reshape(len(rows), first, -1, rows.shape[2]).transpose(1, 2).flatten(1, 2)


def weight_rows(module: nn.Module) -> Tensor:
    """[G, n, O/G] weights, so that rows @ weights (+ bias) are the module's outputs per group."""
    weight = _full_precision(weight_of(module))
    groups = int(getattr(module, "groups", 1))
    return weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2)


def _full_precision(values: Tensor) -> Tensor:
    """Half precision is for running networks, not for sums over thousands of rows."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def weight_of(module: nn.Module) -> Tensor:
    """The module's weight, detached.

    Raises:
        TypeError: If it has none.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"a layer with a weight is needed, but {type(module).__name__} has none")
    return weight.detach()


def as_weight(module: nn.Module, rows: Tensor) -> Tensor:
    """Inverse of `weight_rows`, in the shape and dtype of the module's weight."""
    weight = weight_of(module)
    return rows.transpose(1, 2).reshape(weight.shape).to(weight.dtype)


def _geometry(
    module: nn.Module, called: nn.Module | Multiplication
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], list[int]]:
    """Kernel, stride, dilation and F.pad amounts in two dimensions.

    Args:
        module: The convolution.
        called: What says its stride, padding and dilation: itself, or the call within its own forward.
    """
    kernel: tuple[int, ...] = tuple(module.kernel_size)  # type: ignore[arg-type]
    stride, dilation = _sizes(called.stride, len(kernel)), _sizes(called.dilation, len(kernel))
    pads = [0, 0, 0, 0]
    if called.padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pads = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    elif not isinstance(called.padding, str):
        pads = [side for pad in reversed(_sizes(called.padding, len(kernel))) for side in (pad, pad)]
    if len(kernel) == 1:
        return (1, kernel[0]), (1, stride[0]), (1, dilation[0]), [*pads[:2], 0, 0]
    return kernel, stride, dilation, pads


def _sizes(value: Any, count: int) -> tuple[int, ...]:
    """One size per dimension."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * count if len(sizes) == 1 else sizes


def column_indices(places: list[int], kernel: int, device: torch.device) -> Tensor:
    """Columns of a channel-major unfolding that belong to input channels `places`."""
    return (torch.tensor(places, device=device)[:, None] * kernel + torch.arange(kernel, device=device)).flatten()
