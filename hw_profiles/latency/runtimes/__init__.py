"""How each runtime executes a network: what it fuses, which tensors are in blocks. One file and one line per runtime.

No runtime is imported here. How one times things stands in `amc.profiling.runtimes`, on a higher floor because it needs
networks and their export; so a new runtime is one file and one line here, and one file and one line there.
"""

from collections.abc import Callable, Mapping

from hw_profiles.latency.kernels import Formats
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.runtimes.onnxruntime import OnnxRuntimeExecution
from hw_profiles.latency.runtimes.torch import TorchExecution

EXECUTIONS: Mapping[str, Callable[[Formats], Execution]] = {
    "onnxruntime": OnnxRuntimeExecution,
    "torch": TorchExecution,
}
"""Name of a runtime, as in a profile -> its execution with the tensor formats of a device."""
