"""Runtimes: what times micro-graphs and whole networks on this machine. One file and one line per runtime.

Which kernels a runtime executes stands in `hw_profiles.latency.runtimes`, on a lower floor, where profiles are read; so
a new runtime is one file and one line here, and one file and one line there.
"""

from collections.abc import Callable, Mapping

from amc.profiling.runtimes.onnxruntime import OnnxRuntime
from amc.profiling.runtimes.runtime import Runtime
from amc.profiling.runtimes.torch import TorchRuntime
from amc.profiling.setting import Setting

RUNTIMES: Mapping[str, Callable[[Setting], Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "torch": TorchRuntime,
}
"""Name of a runtime -> it under a setting."""


def make_runtime(setting: Setting) -> Runtime:
    """The runtime of a setting."""
    return RUNTIMES[setting.runtime](setting)
