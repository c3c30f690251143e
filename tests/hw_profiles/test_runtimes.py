"""A runtime is one class and one line on each floor: its kernels are measured, stored, read back and summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from torch import nn

from amc.profiling import runtimes
from amc.profiling.check import CheckOptions, Subject, check_profile
from amc.profiling.measure import check_here, measure_profile
from amc.profiling.runtimes.runtime import Runtime
from amc.profiling.setting import Setting
from amc.profiling.store import read_profile
from envs.network.inputs import Inputs
from hw_profiles.bench.measure import MeasureOptions
from hw_profiles.cost import cost_of
from hw_profiles.latency import runtimes as executions
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import BoolArray, Formats, Kernel
from hw_profiles.latency.runtimes.execution import Operands, TokenRules
from hw_profiles.latency.table import LatencyTable

if TYPE_CHECKING:
    from tests.conftest import Specimen


@dataclass(frozen=True, slots=True)
class Exact:
    """What takes exactly so long."""

    takes: float

    def seconds(self, runs: int) -> float:
        return self.takes


@dataclass(frozen=True, slots=True)
class ReluExecution:
    """Runs relu inside the kernel before it, and nothing else."""

    formats: Formats
    fused_activations: ClassVar[Mapping[str, str]] = {"relu": "relu"}
    fuses_additions: ClassVar[bool] = False
    tokens: ClassVar[TokenRules] = TokenRules()

    def blocked(self, kernel: Kernel, operands: Operands) -> tuple[BoolArray, BoolArray]:
        nowhere = np.zeros(len(operands.inputs), dtype=np.bool_)
        return nowhere, nowhere

    def parts(self, probe: Probe) -> list[Probe]:
        return []


class ReluRuntime(Runtime):
    """Kernels take a microsecond per product of channels, networks one per parameter."""

    version, execution, yardstick = "7", ReluExecution(Formats()), Exact(1e-3)

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def micrograph(self, probe: Probe, copies: int) -> Exact:
        return Exact(1e-6 * copies * probe.inputs * probe.outputs)

    def network(self, network: nn.Module, example: Inputs) -> Exact:
        return Exact(1e-6 * sum(parameter.numel() for parameter in network.parameters()))


@pytest.fixture
def relu(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The one line on each floor."""
    monkeypatch.setitem(executions.EXECUTIONS, "relu", ReluExecution)
    monkeypatch.setitem(runtimes.RUNTIMES, "relu", ReluRuntime)
    return Setting(runtime="relu")


def test_every_runtime_stands_on_both_floors() -> None:
    assert set(runtimes.RUNTIMES) == set(executions.EXECUTIONS)


def test_a_new_runtime_is_measured_read_back_and_summed(
    relu: Setting, tmp_path: Path, zoo: Callable[[str], Specimen]
) -> None:
    specimen, path = zoo("residual"), tmp_path / "relu.json"
    options = MeasureOptions(knots=2, max_rounds=0, keep_disturbed=True, again_minutes=0)
    measure_profile(specimen.anatomy, relu, options, path, lambda what, done, total: None)
    profile, dense = read_profile(path), specimen.anatomy.family.dense
    assert (profile.runtime, profile.version) == ("relu", "7")
    check_here(profile, path)
    kernels = [times.key() for times in profile.kernels]
    assert any(kernel.op == "conv" and kernel.activation == "relu" for kernel in kernels)
    products = sum(1e-3 * a.in_channels * a.out_channels for a in dense.layers if a.kind == "conv")
    assert cost_of(LatencyTable(profile, "relu"), dense) >= products


def test_a_new_runtime_times_whole_networks(relu: Setting, tmp_path: Path, zoo: Callable[[str], Specimen]) -> None:
    s, path = zoo("residual"), tmp_path / "relu.json"
    options = MeasureOptions(knots=2, max_rounds=0, keep_disturbed=True, again_minutes=0)
    profile = measure_profile(s.anatomy, relu, options, path, lambda what, done, total: None)
    subject = Subject(s.name, s.network, s.example, s.anatomy)
    found = check_profile(profile, "relu", subject, CheckOptions(networks=8, keep_disturbed=True, again_minutes=0))
    parameters = sum(parameter.numel() for parameter in s.network.parameters())
    assert found.correction.dense_ms == pytest.approx(1e-3 * parameters)
    assert found.measured.max() == pytest.approx(1e-3 * parameters)
    assert found.measured.min() < 0.5e-3 * parameters


def test_an_unknown_runtime_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="onnxruntime or torch, but got 'relu'"):
        Setting(runtime="relu")
