"""Eager torch, on the CPU or, where there is one, the GPU: every operator of the folded network by itself.

It fuses nothing but normalization into convolutions (which we fold), so the micro-graphs are plain loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.profiling.runtimes.runtime import Runtime
from amc.profiling.setting import Setting
from envs.network.graph import trace
from envs.network.inference import converted, inference_copy
from envs.network.inputs import Inputs, call, mapped
from hw_profiles.latency.graphs import YARDSTICK, YARDSTICK_COPIES, Probe
from hw_profiles.latency.profile import Device
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.runtimes.torch import TorchExecution
from hw_profiles.rounds import Timed

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "clip": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leakyrelu": F.leaky_relu,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelutanh": partial(F.gelu, approximate="tanh"),
    "softmax": partial(F.softmax, dim=-1),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class TimedLoop:
    """Something that runs in torch and can be timed; waits for the GPU before and after."""

    def __init__(self, run: Callable[[], Any]) -> None:
        """Runs it once."""
        self._run = run
        self.seconds(1)

    def seconds(self, runs: int) -> float:
        """Seconds per run, over a block of runs."""
        with torch.inference_mode():
            _wait()
            began = time.perf_counter()
            for _ in range(runs):
                self._run()
            _wait()
        return (time.perf_counter() - began) / runs


class TorchRuntime(Runtime):
    """Times networks and loops of single operators in eager torch."""

    def __init__(self, setting: Setting) -> None:
        """Sets torch's threads for this process."""
        torch.set_num_threads(setting.threads)
        self.setting = setting

    @property
    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    @property
    def execution(self) -> Execution:
        """Nothing is fused."""
        return TorchExecution()

    @cached_property
    def yardstick(self) -> Timed:
        """In fp32 at batch size 1, whatever the setting."""
        fixed = Setting(runtime=self.setting.runtime, threads=self.setting.threads)
        return TimedLoop(_copies(YARDSTICK, YARDSTICK_COPIES, fixed))

    def device(self) -> Device:
        """The GPU, if there is one, and the machine around it."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return super().device().model_copy(update={"gpu": gpu})

    def micrograph(self, probe: Probe, copies: int) -> Timed:
        """The copies as a loop."""
        return TimedLoop(_copies(probe, copies, self.setting))

    def network(self, network: nn.Module, example: Inputs) -> Timed:
        """A copy of the network with folded normalization, on the device and in the number type of the setting."""
        fast = inference_copy(network, trace(network, example))
        folded = converted(fast, _device(), DTYPES[self.setting.dtype])
        inputs = mapped(self._drawn, example)
        return TimedLoop(lambda: call(folded, inputs))

    def _drawn(self, tensor: Tensor) -> Tensor:
        """Random floats of the example's size; indices and truth values as they are."""
        if tensor.is_floating_point():
            return _random(self.setting, self.setting.batch, *tensor.shape[1:])
        return torch.cat([tensor.detach()] * self.setting.batch).to(_device())


def _copies(probe: Probe, copies: int, setting: Setting) -> Callable[[], None]:
    """Runs a kernel several times, each with weights of its own."""
    kernel, inputs = probe.kernel, probe.inputs
    channels_last = kernel.op == "linear" or kernel.over_positions
    sizes = (*kernel.in_map, inputs) if channels_last else (inputs, *kernel.in_map)
    x = _random(setting, setting.batch, *sizes)
    cells = [_cell(probe, x, setting) for _ in range(copies)]

    def run() -> None:
        for cell in cells:
            cell()

    return run


def _cell(probe: Probe, x: Tensor, setting: Setting) -> Callable[[], Tensor]:
    kernel, inputs, outputs = probe
    if kernel.op in ("conv", "depthwise", "transposed"):
        return _convolution(probe, x, setting)
    if kernel.op == "linear":
        weight, bias = _random(setting, outputs, inputs), _random(setting, outputs)
        return lambda: F.linear(x, weight, bias)
    if kernel.attends:
        return _attention(probe, setting)
    if kernel.op == "layernorm":
        scale, shift = _random(setting, outputs), _random(setting, outputs)
        return lambda: F.layer_norm(x, (outputs,), scale, shift)
    if kernel.op in ("add", "mul"):
        other = _random(setting, *x.shape)
        return (lambda: x + other) if kernel.op == "add" else (lambda: x * other)
    if kernel.op == "activation":
        function = ACTIVATIONS[kernel.activation]
        return lambda: function(x)
    if kernel.op == "norm":
        mean, variance = torch.zeros_like(_random(setting, outputs)), torch.ones_like(_random(setting, outputs))
        return lambda: F.batch_norm(x, mean, variance)
    if kernel.op == "pool":
        pools: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
        return lambda: pools[len(kernel.in_map)](x, kernel.out_map)
    return lambda: x.clone()


def _attention(probe: Probe, setting: Setting) -> Callable[[], Tensor]:
    """Scores of queries and keys, or values mixed by them; heads are views."""
    kernel, width, heads = probe
    queries, keys = (
        _random(setting, setting.batch, size[0], heads, width).transpose(1, 2)
        for size in (kernel.out_map, kernel.in_map)
    )
    if kernel.op == "mix":
        weights = _random(setting, setting.batch, heads, kernel.out_map[0], kernel.in_map[0])
        return lambda: (weights @ keys).transpose(1, 2).flatten(2)
    mask = _random(setting, setting.batch, 1, 1, kernel.in_map[0])

    def scores() -> Tensor:
        y = (queries * width**-0.5) @ keys.transpose(-1, -2)
        y = y + mask if kernel.add else y
        return F.softmax(y, dim=-1) if kernel.activation == "softmax" else y

    return scores


def _convolution(probe: Probe, x: Tensor, setting: Setting) -> Callable[[], Tensor]:
    kernel, inputs, outputs = probe
    groups = outputs if kernel.op == "depthwise" else kernel.groups
    transposed = kernel.op == "transposed"
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weight, bias = _random(setting, *shape, *kernel.kernel), _random(setting, outputs)
    before, after = (kernel.out_map, kernel.in_map) if transposed else (kernel.in_map, kernel.out_map)
    sizes = zip(before, after, kernel.stride, kernel.kernel, strict=True)
    padding = tuple(max(0, ceil(((o - 1) * s + k - i) / 2)) for i, o, s, k in sizes)
    rank = len(kernel.in_map)
    kind = "conv_transpose" if transposed else "conv"
    function: Callable[..., Tensor] = getattr(F, f"{kind}{rank}d")
    return lambda: function(x, weight, bias, stride=kernel.stride, padding=padding, groups=groups)


def _random(setting: Setting, *shape: int) -> Tensor:
    values = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    return values.to(_device(), DTYPES[setting.dtype])


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
