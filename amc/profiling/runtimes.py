"""Runtimes by name: what times networks and micro-graphs under a setting."""

from __future__ import annotations

from amc.profiling.bench import Bench, Setting


def make_bench(setting: Setting) -> Bench:
    """The bench of a runtime."""
    if setting.runtime == "torch":
        from amc.profiling.torch_bench import TorchBench

        return TorchBench(setting)
    return Bench(setting)
