"""Where a network's time goes: each layer's predicted and really measured milliseconds, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from amc.profiling.runtimes import make_runtime
from amc.profiling.setting import Setting
from envs.network.graph import trace
from envs.network.inputs import Inputs
from envs.units.layout import read_layout
from hw_profiles.latency.table import LatencyTable


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
    networks: Mapping[str, nn.Module], example: Inputs, table: LatencyTable, *, here: bool
) -> dict[str, tuple[LayerTime, ...]]:
    """Predicted and measured times of every layer with a weight.

    Args:
        networks: Name -> network.
        example: Input of batch 1.
        table: The profile's latencies.
        here: Whether the profile is of this device, so that measuring tells something about it.
    """
    runtime = make_runtime(Setting.of(table.profile)) if here else None
    found: dict[str, tuple[LayerTime, ...]] = {}
    for name, network in networks.items():
        layout = read_layout(network, trace(network, example), example)
        weighted = [index for index, layer in enumerate(layout.layers) if layer.has_weight]
        predicted = table.layers(layout)
        layers = [layout.layers[index] for index in weighted]
        measured = runtime.layers_ms(network, example, layers) if runtime is not None else None
        found[name] = tuple(
            LayerTime(
                layer=layer.name,
                predicted_ms=float(predicted[index]),
                measured_ms=None if measured is None else measured[k],
            )
            for k, (index, layer) in enumerate(zip(weighted, layers, strict=True))
        )
    return found
