"""What a runtime has to do on this machine, so that its kernels and whole networks can be timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from amc.profiling.setting import Setting
from envs.network.inputs import Inputs
from hw_profiles.bench.measure import MeasureOptions
from hw_profiles.device import describe_device
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.profile import Device
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.layers import LayerShape
from hw_profiles.rounds import Timed, measure

COUNTED_RUNS = 60
"""Runs of a network over which a runtime's own profiler is averaged."""


class Runtime(Protocol):
    """One runtime under one setting, on this machine; a subclass inherits what it does not do otherwise.

    Attributes:
        setting: How networks are run.

    Example::

        class MyRuntime(Runtime):
            version, execution = my_runtime.__version__, MyExecution(Formats(fuses=False))

            def __init__(self, setting: Setting) -> None:
                self.setting = setting
                self.yardstick = self.micrograph(YARDSTICK, YARDSTICK_COPIES)

            def micrograph(self, probe: Probe, copies: int) -> Timed:
                return MyTimer([my_kernel(probe) for _ in range(copies)])

            def network(self, network: nn.Module, example: Inputs) -> Timed:
                return MyTimer([my_runtime.compile(network, example)])
    """

    setting: Setting

    @property
    def version(self) -> str:
        """Version of the runtime."""
        ...

    @property
    def execution(self) -> Execution:
        """Which kernels it executes here: what it fuses, and its tensor formats."""
        ...

    @property
    def yardstick(self) -> Timed:
        """The fixed graph that is timed beside everything."""
        ...

    def micrograph(self, probe: Probe, copies: int) -> Timed:
        """A kernel at some widths so many times over, each with weights of its own, ready to be timed."""
        ...

    def network(self, network: nn.Module, example: Inputs) -> Timed:
        """A whole network, ready to be timed at the setting's batch size.

        Args:
            network: The network; it is not changed.
            example: Input of batch 1.

        Raises:
            ValueError: If the runtime cannot run it under this setting.
        """
        ...

    def device(self) -> Device:
        """The device that it times on."""
        return Device(**describe_device(self.setting.threads))

    def layers_ms(self, network: nn.Module, example: Inputs, layers: Sequence[LayerShape]) -> list[float] | None:
        """Milliseconds of each layer inside the whole network by the runtime's own profiler; None if it cannot tell.

        Args:
            network: The network.
            example: Input of batch 1.
            layers: Its layers with weights, in execution order.
        """
        return None

    def time(self, probe: Probe, options: MeasureOptions) -> dict[str, Any]:
        """Times a kernel at some widths (`rounds.measure`)."""
        one, many = self.micrograph(probe, 1), self.micrograph(probe, probe.copies)
        return measure(one, many, probe.copies, self.yardstick, options.confidence, options.max_blocks)
