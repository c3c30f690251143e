"""Latency of transformers from a profile: which kernels run, which of them a unit changes, what is not measured."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.export.onnx import onnx_bytes
from amc.profiling.measure import measure_profile
from amc.profiling.networks import network_at, sample_widths
from amc.profiling.runtimes.onnxruntime import OnnxRuntime
from amc.profiling.setting import Setting
from envs.network.graph import trace
from envs.units.anatomy import dissect
from envs.units.branches.branch import without_branches
from envs.units.layout import read_layout
from hw_profiles.bench.device_script import TimedSession, recorded
from hw_profiles.bench.measure import MeasureOptions
from hw_profiles.cost import COSTS, cost_of
from hw_profiles.latency.execution import executed
from hw_profiles.latency.graphs import Probe, micrograph
from hw_profiles.latency.kernels import Formats, Kernel
from hw_profiles.latency.runtimes.onnxruntime import OnnxRuntimeExecution
from hw_profiles.latency.runtimes.torch import TorchExecution
from hw_profiles.latency.steps import stand_ins
from hw_profiles.latency.table import LatencyTable
from tests.conftest import Specimen
from tests.hw_profiles.test_latency_table import jagged, whole_table
from tests.units import zoo_attention, zoo_sequence

FORMATS = Formats(16, 4)
NETWORKS = {**zoo_attention.NETWORKS, **zoo_sequence.NETWORKS}
KERNEL_NAMES = {
    "MatMul": "product",
    "FusedMatMul": "product",
    "Gemm": "linear",
    "LayerNormalization": "norm",
    "SkipLayerNormalization": "norm with addition",
    "Softmax": "softmax",
    "Gelu": "gelu",
    "BiasGelu": "gelu",
}
POSITIONS: dict[str, Any] = {"in_map": (9,), "out_map": (9,)}


@cache
def find(name: str) -> Specimen:
    """A transformer, dissected once for all tests."""
    builder, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = builder().eval()
    example = torch.zeros(1, *shape)
    return Specimen(name, network, example, dissect(network, example))


def label(kernel: Kernel) -> list[str]:
    """What a kernel of ours is called among the runtime's operators."""
    if kernel.attends:
        return ["product", "softmax"] if kernel.activation else ["product"]
    if kernel.op == "layernorm":
        return ["norm with addition" if kernel.add else "norm"]
    if kernel.op == "linear":
        return ["product" if kernel.over_positions else "linear"]
    return ["gelu"] if kernel.activation == "gelu" else []


@pytest.mark.parametrize(
    "name",
    ["attention_single", "attention_flexible", "attention_grouped", "attention_batched", "vit_fused", "vit_separate"],
)
def test_the_executed_kernels_are_those_that_onnxruntime_reports(name: str) -> None:
    builder, shape = NETWORKS[name]
    network, example = builder().eval(), torch.rand(1, *shape)
    layout = read_layout(network, trace(network, example), example)
    works = executed(layout, layout.widths(), OnnxRuntimeExecution(FORMATS))
    ours = Counter(name for work in works if work.where[0] for name in label(work.kernel))
    assert ours == reported(network, example)


def reported(network: nn.Module, example: Tensor) -> Counter[str]:
    """Onnxruntime's operators that have a name in `KERNEL_NAMES`."""
    rows = recorded(onnx_bytes(network, example), 1, {"input": example.numpy()})[0]
    return Counter(KERNEL_NAMES[row["op"]] for row in rows if row["op"] in KERNEL_NAMES)


@pytest.mark.parametrize("name", ["attention_flexible", "attention_batched"])  # normalized before, and after
def test_an_addition_of_which_a_constant_is_left_runs_in_no_layer_norm(name: str) -> None:
    specimen = find(name)
    anatomy = dissect(specimen.network, specimen.example, branches=True)
    assert len(anatomy.branches) == 4
    for one in anatomy.branches:
        layout = anatomy.family.dense.without(one.found.rows)
        works = executed(layout, layout.widths(), OnnxRuntimeExecution(FORMATS))
        ours = Counter(name for work in works for name in label(work.kernel))
        assert ours == reported(without_branches(anatomy.network, [one.branch]), specimen.example)


@pytest.mark.parametrize(
    ("probe", "ops"),
    [
        (Probe(Kernel(op="linear", **POSITIONS), 8, 16), {"MatMul": 2, "Slice": 2}),
        (Probe(Kernel(op="bias", **POSITIONS), 8, 8), {"Add": 2}),
        (Probe(Kernel(op="layernorm", **POSITIONS), 8, 8), {"LayerNormalization": 2}),
        (Probe(Kernel(op="layernorm", add=True, **POSITIONS), 8, 8), {"SkipLayerNormalization": 2}),
        (
            Probe(Kernel(op="scores", activation="softmax", **POSITIONS), 8, 1),
            {"FusedMatMul": 2, "Softmax": 2, "Add": 2, "Transpose": 0},
        ),
        (
            Probe(Kernel(op="scores", activation="softmax", add=True, **POSITIONS), 8, 3),
            {"FusedMatMul": 2, "Softmax": 2, "Add": 4, "Transpose": 4, "Where": 2},
        ),
        (Probe(Kernel(op="mix", **POSITIONS), 8, 3), {"MatMul": 2, "Transpose": 4, "Add": 2}),
        (Probe(Kernel(op="activation", activation="gelu", **POSITIONS), 8, 8), {"Gelu": 2, "Add": 2}),
        (Probe(Kernel(op="activation", activation="gelutanh", **POSITIONS), 8, 8), {"Tanh": 2, "Add": 6}),
        (Probe(Kernel(op="scores", in_map=(9,), out_map=(4,)), 8, 3), {"FusedMatMul": 2, "Softmax": 0}),
    ],
    ids=lambda value: value.kernel.label if isinstance(value, Probe) else "",
)
def test_a_micrograph_runs_its_kernel_once_per_copy(probe: Probe, ops: dict[str, int]) -> None:
    rows = Counter(row["op"] for row in recorded(micrograph(probe, FORMATS, copies=2, batch=2))[0])
    assert {op: rows[op] for op in ops} == ops


@pytest.mark.parametrize("name", ["attention_single", "attention_flexible", "attention_batched", "attention_grouped"])
def test_the_prediction_is_that_of_the_really_sliced_network(name: str) -> None:
    specimen = find(name)
    costing, table = specimen.costing(), whole_table(specimen, jagged(0), FORMATS)
    generator = np.random.default_rng(0)
    for _ in range(4):
        kept = np.asarray([generator.choice([choice.value for choice in site.choices]) for site in costing.sites])
        widths = {site.name: int(k) for site, k in zip(costing.sites, kept, strict=True)}
        small = network_at(specimen.anatomy.network, specimen.anatomy, widths)
        layout = read_layout(small, trace(small, specimen.example), specimen.example)
        assert cost_of(table, layout) == pytest.approx(costing.one(table, kept))


def changed(name: str, unit: str) -> set[tuple[str, str]]:
    """Kernels of the first block that run otherwise without one channel of a unit, and which of their widths change."""
    anatomy = find(name).anatomy
    family, execution = anatomy.family, OnnxRuntimeExecution(Formats())
    kept = np.stack([family.channels, family.channels - (np.asarray(family.units) == unit)])
    found: set[tuple[str, str]] = set()
    for work in executed(family.dense, family.widths(kept), execution):
        for side, widths in (("in", work.inputs), ("out", work.outputs)):
            if widths[0] != widths[1]:
                found.add((work.kernel.op, side))
    return found


def test_inner_widths_of_a_single_head_change_its_products() -> None:
    linear = ("linear", "out")
    assert changed("attention_single", "blocks.0.attention.q_proj") == {linear, ("scores", "in")}
    assert changed("attention_single", "blocks.0.attention.v_proj") == {linear, ("linear", "in"), ("mix", "in")}


def test_heads_change_the_number_of_products_and_not_their_size() -> None:
    linear = {("linear", "out"), ("linear", "in"), ("bias", "in"), ("bias", "out")}
    found = changed("attention_flexible", "blocks.0.attention.q")
    assert found >= {("scores", "out"), ("mix", "out"), *linear}
    assert not found & {("scores", "in"), ("mix", "in")}


def test_what_is_left_without_channels_takes_no_time() -> None:
    specimen = find("attention_single")
    family, table = specimen.anatomy.family, whole_table(specimen, lambda probe: 1.0, FORMATS)
    kept = np.stack([family.channels, family.channels])
    kept[1, [family.units.index(f"blocks.0.attention.{name}_proj") for name in "qv"]] = 0
    whole, without = table.many(family.dense, family.widths(kept))
    assert whole - without == pytest.approx(6.0)  # queries, keys, values, scores, mix, projection


class Counted(OnnxRuntime):
    """Times nothing: a kernel takes a microsecond per product of its channels."""

    def __init__(self) -> None:
        """Formats and device are those of a board."""
        super().__init__(Setting())
        self.version, self.execution = "1.0", OnnxRuntimeExecution(FORMATS)

    def time(self, probe: Probe, options: MeasureOptions) -> dict[str, Any]:
        """A record."""
        ms = 1e-3 * probe.inputs * probe.outputs
        times = {"median_ms": ms, "mean_ms": ms, "p95_ms": ms, "overhead_ms": 0.0, "yardstick_ms": 1.0}
        return {"n": 9, "variance": 1e-9, "others": 0, **times}


@pytest.mark.parametrize("name", ["attention_single", "attention_flexible", "vit_modular"])
def test_a_measured_profile_answers_for_every_variant_of_a_transformer(name: str, tmp_path: Path) -> None:
    anatomy = find(name).anatomy
    options = MeasureOptions(knots=3, max_rounds=1, again_minutes=0, keep_disturbed=True)
    profile = measure_profile(anatomy, Setting(), options, tmp_path / "p.json", lambda *step: None, Counted())
    costs = LatencyTable(profile, "made up").many(anatomy.family.dense, sample_widths(anatomy))
    assert (costs > 0).all()
    assert {"linear", "scores", "mix", "layernorm"} <= {times.kernel.op for times in profile.kernels}


@pytest.mark.parametrize("op", ["linear", "layernorm", "scores", "mix"])
def test_torch_times_the_same_kernels(op: Any) -> None:
    from amc.profiling.runtimes.torch import TorchRuntime

    activation = "softmax" if op == "scores" else ""
    probe = Probe(Kernel(op=op, activation=activation, add=op == "scores", **POSITIONS), 8, 8)
    assert TorchRuntime(Setting(runtime="torch")).micrograph(probe, 2).seconds(1) > 0
    layout = find("attention_single").anatomy.family.dense
    assert op in {work.kernel.op for work in executed(layout, layout.widths(), TorchExecution())}


def test_what_has_no_kernel_of_its_own_is_named() -> None:
    network, example = NETWORKS["vit_modular"][0]().eval(), torch.zeros(1, 3, 8, 8)
    layout = read_layout(network, trace(network, example), example)
    found = stand_ins(layout, OnnxRuntimeExecution(FORMATS))
    assert found == {"a relu": ("expand",), "nothing": ("multiheadattention",), "a copy": ("getitem",)}


def test_cached_keys_and_values_are_those_before_heads_share_them() -> None:
    specimen = find("attention_grouped")
    layout = specimen.anatomy.family.dense
    blocks, groups, width, positions, bytes_each = 2, 2, 4, 6, 4
    cached = cost_of(COSTS["memory_cached"], layout) - cost_of(COSTS["memory"], layout)
    assert cached == blocks * 2 * groups * width * positions * bytes_each


def test_every_kernel_of_a_transformer_has_a_micrograph_that_runs() -> None:
    layout = find("attention_crossed").anatomy.family.dense
    kernels = {
        work.kernel: Probe(work.kernel, int(work.inputs[0]), int(work.outputs[0]))
        for work in executed(layout, layout.widths(), OnnxRuntimeExecution(FORMATS))
    }
    for probe in kernels.values():
        assert TimedSession(micrograph(probe, FORMATS, copies=2, batch=1), threads=1).seconds(1) > 0
