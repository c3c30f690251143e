"""The floor of an episode: nothing but forward passes of the pruned network, in plain torch.

Command: python -m experiments.bench.floor amc.tasks.models.resnet_cifar:resnet56 [IMAGES] [bf16|fp32|eager];
nothing of ours but that function, which makes the network, is called here.
"""

from __future__ import annotations

import importlib
import sys
import time

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "eager": torch.float32}


def ready(network: nn.Module, inputs: Tensor, backend: str) -> tuple[nn.Module, Tensor]:
    """Network and images as that backend wants them: folded, channels-last, narrowed."""
    if backend == "eager":
        return network.eval(), inputs
    from torch.fx.experimental.optimization import fuse  # draws in parts of torch that warn of their own age

    fused = fuse(network.eval()).to(DTYPES[backend])
    fused = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
    return fused, inputs.to(DTYPES[backend], memory_format=layout)


def forward_seconds(network: nn.Module, inputs: Tensor, batch: int) -> float:
    """CPU seconds of this process for one pass over the images."""
    with torch.no_grad():
        began = time.process_time()
        for part in torch.split(inputs, batch):
            network(part)
        return time.process_time() - began


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, count, arithmetic = sys.argv[1:] + ["", "1000", "bf16"][len(sys.argv) - 1 :]
    images = torch.randn(int(count), 3, 32, 32)
    module, _, function = path.partition(":")
    network = getattr(importlib.import_module(module), function)()
    made = ready(network, images, arithmetic)
    times = [1000 * forward_seconds(*made, batch=int(size)) for size in (32, 64, 125, 250)]
    print("CPU ms at batches of 32, 64, 125, 250:", *(f"{ms:.0f}" for ms in times))
