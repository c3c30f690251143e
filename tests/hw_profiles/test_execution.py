"""What a runtime executes: our reading of the data flow against the graph that onnxruntime itself reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from amc.export.onnx import onnx_bytes
from amc.profiling.networks import network_at, sample_widths
from envs.units.anatomy import dissect
from envs.units.branches.branch import without_branches
from hw_profiles.bench.bundle import FORMAT_CHANNELS, fixed_grid, format_probe
from hw_profiles.bench.device_script import TimedSession, detect_formats, recorded
from hw_profiles.bench.plan import reachable
from hw_profiles.latency.execution import executed
from hw_profiles.latency.graphs import Probe, micrograph
from hw_profiles.latency.kernels import Formats, Kernel
from hw_profiles.latency.runtimes.execution import Operands
from hw_profiles.latency.runtimes.onnxruntime import OnnxRuntimeExecution
from hw_profiles.latency.runtimes.torch import TorchExecution
from hw_profiles.layers import Layout

if TYPE_CHECKING:
    from tests.conftest import Specimen

COMPARED = ("conv", "add", "activation", "linear", "to_plain", "to_blocked")
OP_NAMES = {
    "Conv": "conv",
    "FusedConv": "conv",
    "Add": "add",
    "Relu": "activation",
    "Clip": "activation",
    "Gemm": "linear",
    "ReorderOutput": "to_plain",
    "ReorderInput": "to_blocked",
}
MAP = (8, 8)
SIZE: dict[str, Any] = {"kernel": (3, 3), "stride": (1, 1), "in_map": MAP, "out_map": MAP}


@pytest.fixture(scope="module")
def formats() -> Formats:
    """Those of onnxruntime on this machine."""
    return Formats(**detect_formats({channels: format_probe(channels) for channels in FORMAT_CHANNELS}))


def counted(formats: Formats, layout: Layout) -> Counter[str]:
    """What we say is executed."""
    kernels = [
        work.kernel.op for work in executed(layout, layout.widths(), OnnxRuntimeExecution(formats)) if work.where[0]
    ]
    return Counter({"depthwise": "conv"}.get(op, op) for op in kernels if op in (*COMPARED, "depthwise"))


def reported(model: bytes, example: np.ndarray) -> Counter[str]:
    """What the runtime says it executed."""
    rows = recorded(model, 1, {"input": example})[0]
    return Counter(OP_NAMES[row["op"]] for row in rows if row["op"] in OP_NAMES)


@pytest.mark.parametrize("name", ["residual", "mobile_v1", "mobile_v2", "option_a", "squeeze_excite", "reused"])
def test_the_executed_kernels_are_those_that_onnxruntime_reports(
    name: str, zoo: Callable[[str], Specimen], formats: Formats
) -> None:
    specimen, generator = zoo(name), np.random.default_rng(0)
    family = specimen.anatomy.family
    granules = {unit.name: unit.granule for unit in specimen.anatomy.units}
    for draw in range(4):
        kept = np.asarray(
            [
                int(granules[unit] * generator.integers(1, full // granules[unit] + 1))
                for unit, full in zip(family.units, family.channels, strict=True)
            ]
        )
        kept = family.channels if draw == 0 else kept
        network = network_at(specimen.network, specimen.anatomy, dict(zip(family.units, kept.tolist(), strict=True)))
        model = onnx_bytes(network, specimen.example)
        assert counted(formats, family.at(kept)) == reported(model, specimen.example.numpy()), kept


@pytest.mark.parametrize("name", ["residual", "mobile_v2"])  # mobile_v2: a convolution takes the constant as its bias
def test_a_constant_in_the_place_of_a_branch_is_added_as_onnxruntime_does(
    name: str, zoo: Callable[[str], Specimen], formats: Formats
) -> None:
    specimen = zoo(name)
    anatomy = dissect(specimen.network, specimen.example, branches=True)
    for one in anatomy.branches:
        small = without_branches(specimen.network, [one.branch])
        layout = anatomy.family.dense.without(one.found.rows)
        ours, theirs = counted(formats, layout), reported(onnx_bytes(small, specimen.example), specimen.example.numpy())
        assert not theirs - ours
        assert ours - theirs == ({"add": 1} if name == "mobile_v2" else {})


@pytest.mark.parametrize(
    ("probe", "ops"),
    [
        (Probe(Kernel(op="conv", mode="blocked", activation="relu", **SIZE), 32, 32), {"Conv": 2}),
        (Probe(Kernel(op="conv", mode="blocked", activation="relu", add=True, **SIZE), 32, 32), {"Conv": 3}),
        (Probe(Kernel(op="conv", mode="direct", activation="clip", **SIZE), 9, 32), {"Conv": 2}),
        (Probe(Kernel(op="conv", mode="plain", activation="relu", add=True, **SIZE), 19, 30), {"FusedConv": 3}),
        (Probe(Kernel(op="depthwise", mode="blocked", **SIZE), 32, 32), {"Conv": 2}),
        (Probe(Kernel(op="add", in_map=MAP, out_map=MAP), 32, 32), {"Add": 2}),
        (Probe(Kernel(op="activation", activation="relu", in_map=MAP, out_map=MAP), 32, 32), {"Add": 2, "Relu": 2}),
        (Probe(Kernel(op="to_blocked", in_map=MAP, out_map=MAP), 32, 32), {"ReorderInput": 2}),
        (Probe(Kernel(op="to_plain", in_map=MAP, out_map=MAP), 19, 19), {"Conv": 2, "ReorderOutput": 2}),
        (Probe(Kernel(op="sink", mode="plain", in_map=MAP, out_map=MAP), 19, 19), {"Slice": 2}),
        (Probe(Kernel(op="linear"), 64, 10), {"Gemm": 2}),
        (Probe(Kernel(op="pool", in_map=MAP, out_map=(1, 1)), 32, 32), {"GlobalAveragePool": 2}),
    ],
    ids=lambda value: value.kernel.label if isinstance(value, Probe) else "",
)
def test_a_micrograph_runs_its_kernel_once_per_copy_as_in_a_network(
    probe: Probe, ops: dict[str, int], formats: Formats
) -> None:
    if formats.block != 16:
        pytest.skip("written for blocks of 16 channels")
    rows = Counter(row["op"] for row in recorded(micrograph(probe, formats, copies=2, batch=1))[0])
    assert {op: rows[op] for op in ops} == ops


def test_every_kernel_of_every_network_has_a_micrograph_that_runs(specimen: Specimen, formats: Formats) -> None:
    anatomy = specimen.anatomy
    execution = OnnxRuntimeExecution(formats)
    reaches = reachable(anatomy.family.dense, sample_widths(anatomy), execution)
    grid = fixed_grid(reaches, execution, max_entries=1)  # as few widths as there can be
    assert {probe.kernel for probe in grid} >= set(reaches)
    for probe in grid:
        assert TimedSession(micrograph(probe, formats, copies=2, batch=1), threads=1).seconds(1) > 0


def test_a_convolution_of_few_channels_reads_plain_and_writes_blocks() -> None:
    inputs = np.asarray([3, 15, 16, 17, 18, 20, 32])
    reads, writes = OnnxRuntimeExecution(Formats(16, 4)).convolution(inputs, np.ones_like(inputs))
    assert reads.tolist() == [False, False, True, False, False, True, True]
    assert writes.tolist() == [True, True, True, False, False, True, True]


def test_without_blocks_everything_is_plain() -> None:
    inputs = np.asarray([3, 16, 32])
    operands = Operands(inputs, inputs, np.ones_like(inputs), (np.ones(3, dtype=np.bool_),))
    reads, writes = OnnxRuntimeExecution(Formats()).blocked(Kernel(op="conv", **SIZE), operands)
    assert not reads.any()
    assert not writes.any()


def test_without_fusion_every_operator_is_a_kernel_of_its_own(zoo: Callable[[str], Specimen]) -> None:
    layout = zoo("residual").anatomy.family.dense
    kernels = [work.kernel for work in executed(layout, layout.widths(), TorchExecution())]
    assert not any(kernel.add or (kernel.activation and kernel.op != "activation") for kernel in kernels)
    assert sum(kernel.op == "activation" for kernel in kernels) == sum(a.function == "relu" for a in layout.layers)


def test_fusing_kernels_have_parts_and_others_have_none() -> None:
    probe = Probe(Kernel(op="conv", mode="plain", **SIZE), 19, 30)
    assert [part.kernel.op for part in OnnxRuntimeExecution(Formats()).parts(probe)] == ["sink"]
    assert TorchExecution().parts(probe) == []
