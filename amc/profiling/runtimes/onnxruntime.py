"""onnxruntime on this CPU: networks and micro-graphs as ONNX models, timed by the script that also runs on devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from torch import nn

from amc.export.onnx import onnx_bytes, onnx_feed
from amc.profiling.runtimes.runtime import COUNTED_RUNS, Runtime
from amc.profiling.setting import Setting
from envs.network.inputs import Inputs, mapped, repeated
from hw_profiles.bench.bundle import FORMAT_CHANNELS, format_probe, yardstick_graph
from hw_profiles.bench.device_script import TimedSession, detect_formats, recorded
from hw_profiles.latency.graphs import Probe, micrograph
from hw_profiles.latency.kernels import Formats
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.runtimes.onnxruntime import OnnxRuntimeExecution
from hw_profiles.layers import LayerShape
from hw_profiles.rounds import Timed

RECORDED_RUNS = 80
"""Runs recorded by the runtime's profiler; those before the counted ones warm up."""

WEIGHTED_OPS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


class OnnxRuntime(Runtime):
    """Times models in onnxruntime's CPU provider."""

    def __init__(self, setting: Setting) -> None:
        """Loads nothing before it is needed."""
        self.setting = setting

    @cached_property
    def version(self) -> str:
        """Version of onnxruntime."""
        return str(onnxruntime.__version__)

    @cached_property
    def execution(self) -> Execution:
        """Its rules, with the tensor formats that it is asked for."""
        if self.setting.dtype != "fp32":
            return OnnxRuntimeExecution(Formats())
        found = detect_formats({channels: format_probe(channels) for channels in FORMAT_CHANNELS})
        return OnnxRuntimeExecution(Formats(**found))

    @cached_property
    def yardstick(self) -> Timed:
        """The same model for every profile."""
        return TimedSession(yardstick_graph(), self.setting.threads)

    def micrograph(self, probe: Probe, copies: int) -> Timed:
        """An ONNX model of the copies."""
        s = self.setting
        model = micrograph(probe, self.execution.formats, copies=copies, batch=s.batch, dtype=s.dtype)
        return TimedSession(model, s.threads)

    def network(self, network: nn.Module, example: Inputs) -> Timed:
        """The exported network.

        Raises:
            ValueError: If the setting is not fp32, or the network cannot be exported.
        """
        if self.setting.dtype != "fp32":
            raise ValueError(
                f"whole networks run in onnxruntime in fp32 only, but got {self.setting.dtype}: check other dtypes "
                "through torch"
            )
        return TimedSession(onnx_bytes(network, example), self.setting.threads, self._feed(network, example))

    def layers_ms(self, network: nn.Module, example: Inputs, layers: Sequence[LayerShape]) -> list[float] | None:
        """As recorded by onnxruntime on one thread; None if it executes other layers than these."""
        runs = recorded(onnx_bytes(network, example), RECORDED_RUNS, self._feed(network, example))
        rows = [row for row in runs[0] if row["op"] in WEIGHTED_OPS]
        if len(rows) != len(layers) or not all(_same_map(r, layer) for r, layer in zip(rows, layers, strict=True)):
            return None
        times = [[row["us"] for row in run if row["op"] in WEIGHTED_OPS] for run in runs[-COUNTED_RUNS:]]
        low, high = np.quantile(times, (0.1, 0.9), axis=0)  # whole microseconds: a mean says more than a median
        return [float(value) for value in np.clip(times, low, high).mean(axis=0) / 1e3]

    def _feed(self, network: nn.Module, example: Inputs) -> dict[str, Any]:
        """The example, as often as the batch size says."""
        here = mapped(lambda tensor: tensor.detach().cpu(), example)
        return onnx_feed(network, repeated(here, self.setting.batch))


def _same_map(row: Mapping[str, Any], layer: LayerShape) -> bool:
    """Whether a recorded operator writes a map of the layer's size (its channels may be padded)."""
    shape = next(iter(row["shapes"][0].values())) if row["shapes"] else []
    return layer.kind == "linear" or tuple(shape[2:]) == layer.out_map
