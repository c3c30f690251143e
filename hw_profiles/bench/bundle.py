"""A bundle: micro-graphs and the script that times them, for a device with only Python, numpy and onnxruntime."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hw_profiles import device, passes, rounds
from hw_profiles.bench import device_script
from hw_profiles.bench.measure import TableBuilder
from hw_profiles.bench.plan import Reach, first_knots, probes, with_parts
from hw_profiles.documents import Strict
from hw_profiles.latency.graphs import YARDSTICK, YARDSTICK_COPIES, Probe, micrograph
from hw_profiles.latency.kernels import Formats, Kernel
from hw_profiles.latency.profile import (
    Device,
    Difference,
    Disturbance,
    Dtype,
    FormatsKey,
    KernelKey,
    Milliseconds,
    Positive,
    Profile,
    RuntimeName,
    Session,
    Size,
    Variance,
    kernel_times,
)
from hw_profiles.latency.runtimes import EXECUTIONS
from hw_profiles.latency.runtimes.execution import Execution

BUNDLED_RUNTIME = "onnxruntime"
"""The runtime that the device script times."""

KNOWN_FORMATS = (Formats(0, 1), Formats(8, 4), Formats(16, 4))
"""Tensor formats of onnxruntime: none (ARM, others), AVX2, AVX-512. The device tells which one it has."""

FORMAT_CHANNELS = range(1, 41)
MAX_ENTRIES = 2000
TRAVELLING = {"device": device.__file__, "passes": passes.__file__, "rounds": rounds.__file__}
"""Modules that the device script imports, and their files."""

README = (
    "On the device: `python bundle.zip` (needs numpy and onnxruntime); back here: `amc profile import measured.json`.\n"
)


def format_probe(channels: int) -> bytes:
    """A graph that shows whether a convolution of so many input channels runs blocked."""
    shape = Kernel(op="conv", kernel=(3, 3), stride=(1, 1), in_map=(8, 8), out_map=(8, 8))
    return micrograph(Probe(shape, channels, 32), Formats(), copies=1, batch=1)


def yardstick_graph() -> bytes:
    """The yardstick: the same graph for every table, whatever the batch and the number type."""
    return micrograph(YARDSTICK, Formats(16, 4), copies=YARDSTICK_COPIES, batch=1)


def fixed_grid(reaches: Mapping[Kernel, Reach], execution: Execution, max_entries: int = MAX_ENTRIES) -> list[Probe]:
    """The finest evenly spaced grid of at most `max_entries`: nothing can be refined on the device."""
    needed = with_parts(reaches, execution)
    for knots in (24, 16, 12, 9, 7, 6, 5, 4, 3, 2):
        grid = [
            probe
            for kernel, r in needed.items()
            for probe in probes(kernel, Reach(first_knots(r.inputs, knots), first_knots(r.outputs, knots)))
        ]
        if len(grid) <= max_entries:
            break
    return grid


def write_bundle(plans: Mapping[Formats, Sequence[Probe]], batch: int, dtype: str) -> bytes:
    """The archive.

    Args:
        plans: For each tensor format what to measure, parts first (`fixed_grid`).
        batch: Batch size of all entries.
        dtype: Number type.
    """
    files: dict[str, bytes] = {}

    def put(model: bytes) -> str:
        name = f"graphs/{hashlib.sha256(model).hexdigest()[:20]}.onnx"
        files[name] = model
        return name

    def entry(probe: Probe, formats: Formats) -> dict[str, Any]:
        one, many = (put(micrograph(probe, formats, copies=c, batch=batch, dtype=dtype)) for c in (1, probe.copies))
        return {
            "kernel": probe.kernel.to_json(),
            "inputs": probe.inputs,
            "outputs": probe.outputs,
            "one": one,
            "many": many,
            "copies": probe.copies,
        }

    manifest = {
        "batch": batch,
        "dtype": dtype,
        "yardstick": put(yardstick_graph()),
        "format_probes": {str(c): put(format_probe(c)) for c in FORMAT_CHANNELS},
        "plans": [
            {"formats": {"block": f.block, "align": f.align, "fuses": f.fuses}, "entries": [entry(p, f) for p in plan]}
            for f, plan in plans.items()
        ],
    }
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    files[device_script.MANIFEST] = json.dumps(manifest).encode()
    files["__main__.py"] = Path(device_script.__file__).read_bytes()
    files["hw_profiles/__init__.py"] = b""
    files |= {f"hw_profiles/{name}.py": Path(file).read_bytes() for name, file in TRAVELLING.items()}
    files["README.txt"] = README.encode()
    return _zipped(files)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive with a fixed date, so that equal bundles are equal files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


class RawEntry(Strict):
    """One timed pair of graphs, parts still in."""

    kernel: KernelKey
    inputs: Size
    outputs: Size
    n: Size
    median_ms: Difference
    mean_ms: Difference
    variance: Variance
    p95_ms: Difference
    overhead_ms: Milliseconds
    yardstick_ms: Positive
    others: float | None = None


class Measured(Strict):
    """What a device brings back."""

    schema_version: Literal[1]
    runtime: RuntimeName
    runtime_version: str
    dtype: Dtype
    batch: Size
    threads: Size
    formats: FormatsKey
    device: Device
    date: str
    yardstick_ms: Positive
    overhead_ms: Milliseconds
    disturbed: Disturbance | None = None
    entries: list[RawEntry] = Field(min_length=1)

    def profile(self) -> Profile:
        """The profile of these measurements.

        Raises:
            ValueError: If an entry stands twice, or what it has to be compared with is missing.
        """
        raw: dict[Probe, dict[str, Any]] = {}
        for e in self.entries:
            probe = Probe(Kernel.from_json(e.kernel.model_dump()), e.inputs, e.outputs)
            if probe in raw:
                raise ValueError(
                    f"an entry must stand once, but {probe.kernel.label!r} at {e.inputs} x {e.outputs} stands twice: "
                    "measure again"
                )
            if e.median_ms < 0:
                raise ValueError(
                    f"a time must not be negative, but {probe.kernel.label!r} at {e.inputs} x {e.outputs} took "
                    f"{e.median_ms} ms: measure again on a quiet device"
                )
            raw[probe] = e.model_dump(exclude={"kernel", "inputs", "outputs"})
        builder = TableBuilder(EXECUTIONS[self.runtime](self.formats.formats()), lambda probe: raw[probe])
        builder.take(list(raw))
        session = Session(
            date=self.date,
            device=self.device,
            runtime_version=self.runtime_version,
            yardstick_ms=self.yardstick_ms,
            overhead_ms=self.overhead_ms,
            disturbed=self.disturbed,
        )
        return Profile(
            runtime=self.runtime,
            dtype=self.dtype,
            batch=self.batch,
            threads=self.threads,
            formats=self.formats,
            sessions=[session],
            kernels=kernel_times(builder.entries(0)),
        )
