"""Where a network's time goes: each layer's predicted and really measured milliseconds, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from amc.export.onnx import onnx_bytes
from envs.network.graph import trace
from envs.units.layout import read_layout
from hw_profiles.bench.device_script import recorded
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import LayerShape

RUNS, COUNTED = 80, 60
"""Runs recorded by the runtime's profiler, the first quarter of them to warm up; those that count."""

WEIGHTED_OPS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer with a weight, with what is fused into it.

    Attributes:
        layer: Its name.
        predicted_ms: By the profile, uncorrected.
        measured_ms: Inside the whole network, by the runtime's own profiler; None where it cannot be told.
    """

    layer: str
    predicted_ms: float
    measured_ms: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)


def layer_times(
    networks: Mapping[str, nn.Module], example: Tensor, table: LatencyTable, *, here: bool
) -> dict[str, tuple[LayerTime, ...]]:
    """Predicted and measured times of every layer with a weight.

    Args:
        networks: Name -> network.
        example: [1, ...] input.
        table: The profile's latencies.
        here: Whether the profile is of this device, so that measuring tells something about it.
    """
    found: dict[str, tuple[LayerTime, ...]] = {}
    for name, network in networks.items():
        layout = read_layout(network, trace(network, example), example)
        weighted = [index for index, layer in enumerate(layout.layers) if layer.has_weight]
        predicted = table.layers(layout)
        layers = [layout.layers[index] for index in weighted]
        measured = measured_layers(network, example, layers, table.profile.batch) if here else None
        found[name] = tuple(
            LayerTime(
                layer=layer.name,
                predicted_ms=float(predicted[index]),
                measured_ms=None if measured is None else measured[k],
            )
            for k, (index, layer) in enumerate(zip(weighted, layers, strict=True))
        )
    return found


def measured_layers(
    network: nn.Module, example: Tensor, layers: Sequence[LayerShape], batch: int
) -> list[float] | None:
    """Milliseconds of each layer inside the whole network; None if the runtime executes other layers than these.

    Args:
        network: The network.
        example: [1, ...] input.
        layers: Its layers with weights, in execution order.
        batch: Batch size.
    """
    feed = {"input": example.detach().cpu().repeat(batch, *[1] * (example.ndim - 1)).numpy()}
    runs = recorded(onnx_bytes(network, example), RUNS, feed)
    rows = [row for row in runs[0] if row["op"] in WEIGHTED_OPS]
    if len(rows) != len(layers) or not all(_same_map(r, layer) for r, layer in zip(rows, layers, strict=True)):
        return None
    times = [[row["us"] for row in run if row["op"] in WEIGHTED_OPS] for run in runs[-COUNTED:]]
    low, high = np.quantile(times, (0.1, 0.9), axis=0)  # whole microseconds: a mean says more than a median
    return [float(value) for value in np.clip(times, low, high).mean(axis=0) / 1e3]


def _same_map(row: Mapping[str, Any], layer: LayerShape) -> bool:
    """Whether a recorded operator writes a map of the layer's size (its channels may be padded)."""
    shape = next(iter(row["shapes"][0].values())) if row["shapes"] else []
    return layer.kind == "linear" or tuple(shape[2:]) == layer.out_map
