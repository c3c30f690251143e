"""Whether 2:4 pays, layer by layer: torch's sparse product beside the dense one, in float16, for shapes of real layers.

Linear layers read tokens [tokens, I]. A convolution is the matrix product [O, kernel positions x I] x [positions], as a
sparse kernel would see it; the dense convolution itself is timed too, for that is what a sparse product has to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from amc.export.semi_structured import compressed
from amc.profiling.runtimes.torch import TimedLoop

BLOCK_SECONDS, BLOCKS, PROFILED = 4e-3, 9, 20


class Product(NamedTuple):
    """One layer as a matrix product.

    Attributes:
        name: For the table.
        outputs: Rows of the weight.
        inputs: Columns of the weight: inputs, for a convolution times kernel positions.
        columns: What the weight is multiplied with: tokens, or positions of all images.
        images: Images of a convolution, 0 for a linear layer.
        side: Rows and columns of a convolution's map.
        kernel: Rows and columns of its kernel.
    """

    name: str
    outputs: int
    inputs: int
    columns: int
    images: int = 0
    side: int = 0
    kernel: int = 1


def linear(inputs: int, outputs: int, tokens: int) -> Product:
    """A linear layer."""
    return Product(f"linear {inputs} -> {outputs}, {tokens} tokens", outputs, inputs, tokens)


def convolution(channels: int, side: int, kernel: int, images: int) -> Product:
    """A convolution of as many outputs as inputs, without stride."""
    name = f"conv {kernel}x{kernel}, {channels} channels, {side}x{side}, {images} images"
    return Product(name, channels, channels * kernel**2, images * side**2, images, side, kernel)


PRODUCTS = (
    *(linear(width, width, tokens) for width in (768, 1024, 2048, 4096, 8192) for tokens in (64, 512, 4096)),
    *(linear(width, 4 * width, 2048) for width in (768, 1024, 2048)),
    *(linear(4 * width, width, 2048) for width in (768, 1024, 2048)),
    *(convolution(channels, side, 3, 32) for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(convolution(channels, side, 1, 32) for channels, side in ((256, 56), (512, 28), (1024, 14), (2048, 7))),
    convolution(64, 8, 3, 256),
)
"""Transformers' projections and feed-forward layers, ResNet-50's convolutions, the last stage of ResNet-56."""
SMALL = (linear(256, 128, 64), convolution(64, 8, 3, 2))
"""For a trial without a GPU."""


def weights_of(product: Product) -> Tensor:
    """[O, n] float16 with the first two of every four consecutive columns not zero (which ones does not matter)."""
    values = torch.randn(product.outputs, product.inputs, generator=torch.Generator().manual_seed(0), device="cpu")
    stays = torch.arange(product.inputs, device="cpu") % 4 < 2
    return (values * stays).half()


def milliseconds(*calls: Callable[[], Any]) -> list[float]:
    """Median over blocks of what each call takes, in turn, so that a drifting clock slows all alike."""
    loops = [TimedLoop(call) for call in calls]
    for loop in loops:
        loop.seconds(10)
    runs = [max(1, round(BLOCK_SECONDS / max(loop.seconds(3), 1e-7))) for loop in loops]
    rows = [[loop.seconds(count) for loop, count in zip(loops, runs, strict=True)] for _ in range(BLOCKS)]
    return [1e3 * float(median) for median in np.median(rows, axis=0)]


def kernel_milliseconds(call: Callable[[], Any]) -> float | None:
    """What a call's kernels take on the GPU, without the launching, which small layers wait for; None if unknown."""
    if not torch.cuda.is_available():
        return None
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CUDA]) as watched:
        for _ in range(PROFILED):
            call()
        torch.cuda.synchronize()
    total = sum(float(event.self_device_time_total) for event in watched.key_averages())
    return total / 1e3 / PROFILED if total else None


def timed(product: Product, device: str, compress: Callable[[Tensor], Tensor] = compressed) -> dict[str, Any]:
    """Milliseconds of one layer, dense and sparse, and how far their products differ.

    Args:
        product: The layer.
        device: "cuda" (or "cpu", for a trial with a `compress` that works there).
        compress: Gives a weight the format of the sparse product.
    """
    weight = weights_of(product).to(device)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(product.columns, product.inputs, generator=generator, device="cpu").half().to(device)
    patches = rows.T.contiguous()
    sparse = compress(weight)

    def multiply(matrix: Tensor) -> Tensor:
        return torch.mm(matrix, patches) if product.images else F.linear(rows, matrix)

    with torch.inference_mode():
        expected = multiply(weight)
        difference = (multiply(sparse) - expected).abs().max() / expected.abs().max()
    calls: list[Callable[[], Any]] = [partial(multiply, weight), partial(multiply, sparse)]
    calls += [_dense_convolution(product, device)] if product.images else []
    dense_ms, sparse_ms, *conv_ms = milliseconds(*calls)
    kernels = [kernel_milliseconds(call) for call in calls[:2]]
    return {
        "name": product.name,
        "outputs": product.outputs,
        "inputs": product.inputs,
        "columns": product.columns,
        "dense_ms": dense_ms,
        "sparse_ms": sparse_ms,
        "ratio": sparse_ms / dense_ms,
        "difference": float(difference),
        "format": type(sparse).__name__,
        "dense_kernels_ms": kernels[0],
        "sparse_kernels_ms": kernels[1],
        **({"conv_ms": conv_ms[0]} if conv_ms else {}),
    }


def _dense_convolution(product: Product, device: str) -> Callable[[], Tensor]:
    channels = product.inputs // product.kernel**2
    layout: dict[str, Any] = {"dtype": torch.float16, "device": device}
    images = torch.ones(product.images, channels, product.side, product.side, **layout)
    weight = torch.ones(product.outputs, channels, product.kernel, product.kernel, **layout)
    images, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (images, weight))
    return lambda: F.conv2d(images, weight, padding=product.kernel // 2)


def attempt(product: Product, device: str) -> dict[str, Any]:
    """`timed`, or the reason why torch does not take this shape."""
    try:
        return timed(product, device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return {"name": product.name, "failed": str(error).strip().partition("\n")[0][:200]}
