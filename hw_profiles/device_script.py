#!/usr/bin/env python3
"""Times micro-graphs on this device: needs only Python, numpy and onnxruntime; writes one JSON file.

Run by itself it measures the bundle that it lies in (`python device_script.py --help`); on the machine that made the
bundle the same functions measure directly, so that there is one way of timing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

FATAL = 4  # onnxruntime's quietest level
BLOCK_SECONDS = 1.5e-3  # one block of runs of one graph
RESULTS, MANIFEST = "results.json", "manifest.json"


class Graph:
    """A loaded ONNX graph that can be timed."""

    def __init__(self, model, threads: int) -> None:
        """Loads a model (bytes or a path) and runs it once."""
        self._session = make_session(str(model) if isinstance(model, Path) else model, threads)
        generator = np.random.default_rng(0)
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._feed = {i.name: generator.random(i.shape).astype(types[i.type]) for i in self._session.get_inputs()}
        self._session.run(None, self._feed)

    def seconds(self, runs: int) -> float:
        """Seconds per run, over a block of runs."""
        run, feed = self._session.run, self._feed
        began = time.perf_counter()
        for _ in range(runs):
            run(None, feed)
        return (time.perf_counter() - began) / runs

    def block(self) -> int:
        """Warms up; how many runs make a block."""
        self.seconds(3)
        return max(1, round(BLOCK_SECONDS / max(self.seconds(3), 1e-7)))


def make_session(model, threads: int, profile: str = ""):
    """A session on the CPU; `profile` is the prefix of a file in which it records what it executes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def executed_ops(model) -> list:
    """Names of the operators that the runtime really executes, in order, as its own profiler records them."""
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(str(model) if isinstance(model, Path) else model, 1, os.path.join(folder, "profile"))
        feed = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def detect_formats(probes: dict) -> dict:
    """Block and alignment of the runtime's tensor format, from which convolutions it converts the input for.

    Args:
        probes: Input channels -> a graph of one convolution of that many channels.
    """
    converted = sorted(c for c, model in probes.items() if "ReorderInput" in executed_ops(model))
    if not converted:
        return {"block": 0, "align": 1}
    block = converted[0]
    return {"block": block, "align": min((c - block for c in converted if c > block), default=block)}


def measure(graphs: tuple, copies: int, yardstick: Graph, confidence: float, most_blocks: int) -> dict:
    """Times one entry: blocks of the small graph, the large graph and the yardstick in turn.

    Stops when the standard error of the median slope is below `confidence` of it (or 0.05 microseconds).

    Args:
        graphs: The graph with one copy and the graph with `copies` copies.
        copies: Copies in the larger graph.
        yardstick: The fixed graph timed alternately.
        confidence: Relative standard error to reach.
        most_blocks: Blocks at most.

    Returns:
        n; median, mean, variance and p95 of the slope per copy, of the rest ("overhead_ms") and of the yardstick, ms.
    """
    three = (*graphs, yardstick)
    runs = [graph.block() for graph in three]
    rows: list = []
    while len(rows) < most_blocks:
        order = (0, 1, 2) if len(rows) % 2 else (2, 1, 0)
        row = {index: 1e3 * three[index].seconds(runs[index]) for index in order}
        rows.append([row[index] for index in range(3)])
        if len(rows) >= 7 and len(rows) % 2:
            slopes = _slopes(rows, copies)
            middle, error = float(np.median(slopes)), standard_error(slopes)
            if error <= max(confidence * middle, 5e-5):
                break
    slopes, table = _slopes(rows, copies), np.asarray(rows)
    return {
        "n": len(rows), "median_ms": float(np.median(slopes)), "mean_ms": float(slopes.mean()),
        "variance": float(slopes.var(ddof=1)), "p95_ms": float(np.quantile(slopes, 0.95)),
        "overhead_ms": float(np.median(table[:, 0] - slopes)), "yardstick_ms": float(np.median(table[:, 2])),
    }


def _slopes(rows: list, copies: int):
    table = np.asarray(rows)
    return (table[:, 1] - table[:, 0]) / (copies - 1)


def standard_error(values) -> float:
    """Standard error of a median, from the quartiles (a busy machine has outliers)."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(1.2533 * (high - low) / 1.349 / np.sqrt(len(values)))


def describe_device(threads: int) -> dict:
    """What can be read of this device."""
    return {
        "name": platform.node(), "cpu": _processor(), "machine": platform.machine(), "system": platform.system(),
        "cores": os.cpu_count() or 1, "cores_used": threads, "governor": _read("cpufreq/scaling_governor"),
        "mhz": _megahertz(),
    }  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(name: str):
    try:
        return Path("/sys/devices/system/cpu/cpu0", name).read_text().strip()
    except OSError:
        return None


def _megahertz():
    kilohertz = _read("cpufreq/scaling_cur_freq")
    return int(kilohertz) / 1000 if kilohertz else None
