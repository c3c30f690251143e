"""What times micro-graphs (`Bench`), and under which setting: by onnxruntime here, or by torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hw_profiles.bench.bundle import (
    FORMAT_CHANNELS,
    format_probe,
    yardstick_graph,
)
from hw_profiles.bench.device_script import Graph, describe_device, detect_formats, measure
from hw_profiles.bench.measure import Effort
from hw_profiles.latency.graphs import Probe, micrograph
from hw_profiles.latency.kernels import Formats
from hw_profiles.latency.profile import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How networks are run.

    Attributes:
        runtime: onnxruntime or torch.
        threads: Threads within an operator.
        batch: Batch size.
        dtype: fp32 or fp16.
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.runtime not in ("onnxruntime", "torch"):
            raise ValueError(f"--runtime must be onnxruntime or torch, but got {self.runtime!r}")
        if self.dtype not in ("fp32", "fp16"):
            raise ValueError(
                f"--dtype must be fp32 or fp16, but got {self.dtype!r}: int8 needs a quantized network, which a "
                "pruned one is not"
            )
        if self.threads < 1 or self.batch < 1:
            raise ValueError(
                f"--threads and --batch must be at least 1, but got threads={self.threads}, batch={self.batch}"
            )


class Bench:
    """Times probes in onnxruntime on this CPU."""

    def __init__(self, setting: Setting) -> None:
        """Asks the runtime for its formats and loads the yardstick."""
        import onnxruntime

        self.setting, self.version = setting, str(onnxruntime.__version__)
        found = detect_formats({channels: format_probe(channels) for channels in FORMAT_CHANNELS})
        self.formats = Formats(**found) if setting.dtype == "fp32" else Formats()
        self.yardstick: Any = Graph(yardstick_graph(), setting.threads)

    def device(self) -> Device:
        """The device that it times on."""
        return Device(**describe_device(self.setting.threads))

    def graph(self, probe: Probe, copies: int) -> Any:
        """The micro-graph, ready to be timed."""
        s = self.setting
        return Graph(micrograph(probe, self.formats, copies=copies, batch=s.batch, dtype=s.dtype), s.threads)

    def time(self, probe: Probe, effort: Effort) -> dict[str, Any]:
        """Times one probe."""
        one, many = self.graph(probe, 1), self.graph(probe, probe.copies)
        return measure(one, many, probe.copies, self.yardstick, effort.confidence, effort.blocks)
