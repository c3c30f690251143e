"""What leaves the house agrees with what was measured, and is never half there."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import Tensor, nn

from amc.export.applied import POLICY, WEIGHTS, load_applied, read_policy, write_applied
from amc.export.onnx import TOLERANCE, _quiet, by_torch_export, by_tracing, onnx_bytes, verify_onnx, write_onnx
from amc.export.program import write_program
from amc.profiling.timing import latency_ms
from envs.space.policy import Policy, UnitPolicy, structure_fingerprint, weights_fingerprint
from envs.space.policy_file import digest_of
from envs.units.units import Unit


class FixedBatch(nn.Module):
    """Takes the batch size of the example for a constant of nature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.reshape(int(x.shape[0]), -1))
        return scores


class Attention(nn.Module):
    """A vision transformer in small: the tracing exporter does not know its fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.classifier = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return scores


def half(network: nn.Module, units: tuple[Unit, ...]) -> Policy:
    """Keeps the later half of every unit's granules."""
    kept = []
    for unit in units:
        granules = unit.granules[len(unit.granules) // 2 :]
        kept.append(UnitPolicy(unit=unit, indices=tuple(sorted(c for granule in granules for c in granule))))
    return Policy(
        structure=structure_fingerprint(network),
        weights=weights_fingerprint(network),
        units=tuple(kept),
        provenance={"config": {"task": "test"}},
    )


@pytest.fixture(scope="session")
def residual(zoo: Callable[[str], Any]) -> Any:
    return zoo("residual")


@pytest.fixture
def policy(residual: Any) -> Policy:
    return half(residual.network, residual.anatomy.units)


@pytest.fixture
def applied(residual: Any, policy: Policy, tmp_path: Path) -> Path:
    """A folder with an applied policy of the residual network."""
    folder = tmp_path / "applied"
    write_applied(policy, policy.apply(residual.network), folder)
    return folder


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnxruntime_agrees_with_torch_at_any_batch_size(specimen: Any, batch: int) -> None:
    assert verify_onnx(onnx_bytes(specimen.network, specimen.example), specimen.network, specimen.inputs(batch)) < 1e-5


def test_a_pruned_network_is_exported_as_well_as_the_dense_one(specimen: Any) -> None:
    small = half(specimen.network, specimen.anatomy.units).apply(specimen.network)
    assert verify_onnx(onnx_bytes(small, specimen.example), small, specimen.inputs(3)) < 1e-5


def test_what_tracing_cannot_export_goes_through_torch_export() -> None:
    torch.manual_seed(0)
    network = Attention().eval()
    model = onnx_bytes(network, torch.zeros(1, 3, 8, 8))
    assert verify_onnx(model, network, torch.randn(5, 3, 8, 8)) < 1e-5


class Unknown(nn.Module):
    """Looks at values, which no exporter follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor(x.sum().tolist()) if x.sum() > 1e9 else torch.from_numpy(x.numpy())


class Passing(nn.Linear):
    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(*args)


def test_torch_export_takes_a_network_of_any_arguments(tmp_path: Path) -> None:
    network, inputs = Passing(3, 4).eval(), torch.randn(4, 3)
    with _quiet():
        model = by_torch_export(network, inputs[:2])
    assert verify_onnx(model, network, inputs) < 1e-5
    write_program(network, inputs[:1], tmp_path / "small.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "small.pt2").module()(inputs), network(inputs))


def test_a_wrapped_network_that_cannot_be_exported_is_told_to_export_what_it_wraps(tmp_path: Path) -> None:
    network, inputs = nn.DataParallel(Unknown()).eval(), torch.zeros(2, 3)
    for write in (lambda: onnx_bytes(network, inputs[:1]), lambda: write_program(network, inputs[:1], tmp_path / "x")):
        with pytest.raises(ValueError, match=r"its `module`$") as error:
            write()
        one_line(error)


def test_batch_is_the_only_dynamic_axis_and_the_weights_are_inside(residual: Any) -> None:
    graph = onnx.load_from_string(onnx_bytes(residual.network, residual.example)).graph
    axes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input]
    assert axes == [["batch", 3, 8, 8]]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)


def test_exporting_changes_nothing_of_the_network(fresh: Callable[[str], nn.Module]) -> None:
    network = fresh("in_place").train()
    before = weights_fingerprint(network), structure_fingerprint(network), network.training
    onnx_bytes(network, torch.zeros(1, 3, 8, 8))
    assert (weights_fingerprint(network), structure_fingerprint(network), network.training) == before


def test_exporting_is_silent(capfd: pytest.CaptureFixture[str], residual: Any) -> None:
    onnx_bytes(residual.network, residual.example)
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_size_is_refused_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="batch size") as error:
        onnx_bytes(FixedBatch(), torch.zeros(1, 3, 2, 2))
    one_line(error)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_model_with_other_weights_is_refused(residual: Any, value: float) -> None:
    model = onnx.load_from_string(onnx_bytes(residual.network, residual.example))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))
    wrong = onnx.numpy_helper.to_array(bias) + value
    bias.CopyFrom(onnx.numpy_helper.from_array(wrong.astype("float32"), bias.name))
    with pytest.raises(ValueError, match=f"agree within {TOLERANCE:g}") as error:
        verify_onnx(model.SerializeToString(), residual.network, residual.inputs(4))
    one_line(error)


def test_a_model_is_compared_on_at_least_one_image(residual: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        verify_onnx(b"", residual.network, residual.inputs(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_precision_that_onnxruntime_lacks_is_named_with_its_cure(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.export.onnx.EXPORTERS", (by_tracing,))
    network, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(dtype), torch.randn(2, 3, 4, 4, dtype=dtype)
    with pytest.raises(ValueError, match=rf"{dtype}.*network\.float\(\)") as error:
        write_onnx(network, inputs[:1], inputs, tmp_path / "network.onnx")
    assert "again" not in one_line(error).rpartition("):")[2]
    assert write_onnx(network.float(), inputs[:1].float(), inputs.float(), tmp_path / "network.onnx") < 1e-3


def test_bytes_that_are_no_model_are_refused(residual: Any) -> None:
    with pytest.raises(ValueError, match="must load in onnxruntime") as error:
        verify_onnx(b"no model", residual.network, residual.inputs(2))
    one_line(error)


def test_an_onnx_file_is_what_was_verified(residual: Any, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    difference = write_onnx(residual.network, residual.example, residual.inputs(4), path)
    assert difference == verify_onnx(path.read_bytes(), residual.network, residual.inputs(4))


def test_no_onnx_file_appears_when_verification_fails(
    residual: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.export.onnx.TOLERANCE", -1.0)
    monkeypatch.setattr("amc.export.onnx.EXPORTERS", (by_tracing,))  # the slow second attempt is not the point
    with pytest.raises(ValueError, match="must"):
        write_onnx(residual.network, residual.example, residual.inputs(2), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_onnx_file(residual: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_onnx(residual.network, residual.example, residual.inputs(2), path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("network.onnx", b"old")]


def test_a_missing_folder_is_an_os_error(residual: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_onnx(residual.network, residual.example, residual.inputs(2), tmp_path / "nowhere" / "network.onnx")


def test_latency_names_every_network_with_its_spread(residual: Any, policy: Policy) -> None:
    networks = {"dense": residual.network, "pruned": policy.apply(residual.network)}
    measured = latency_ms(networks, residual.example, rounds=3, seconds=0.05)
    assert list(measured) == ["dense", "pruned"]
    assert min(timing.median_ms for timing in measured.values()) > 0
    assert min(timing.mad_ms for timing in measured.values()) >= 0
    assert {timing.rounds for timing in measured.values()} == {3}


def test_no_network_takes_no_time(residual: Any) -> None:
    assert latency_ms({}, residual.example, seconds=0.05) == {}


def test_an_applied_policy_loads_to_the_same_outputs_bit_for_bit(specimen: Any, tmp_path: Path) -> None:
    policy = half(specimen.network, specimen.anatomy.units)
    small = policy.apply(specimen.network)
    with torch.no_grad():  # repair changes weights after slicing: they, not the dense ones, must come back
        for parameter in small.parameters():
            parameter.mul_(1.01)
    write_applied(policy, small, tmp_path)
    loaded = load_applied(specimen.network, tmp_path)
    inputs = specimen.inputs(4)
    assert torch.equal(loaded(inputs), small(inputs))


def test_a_loaded_network_trains_and_every_parameter_moves(residual: Any, applied: Path) -> None:
    network = load_applied(residual.network, applied).train()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    nn.functional.cross_entropy(network(residual.inputs(8)), torch.arange(8) % 5).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


def test_a_loaded_network_shares_nothing_with_the_dense_one(residual: Any, applied: Path) -> None:
    network = load_applied(residual.network, applied)
    dense = {tensor.data_ptr() for tensor in residual.network.state_dict().values()}
    assert dense.isdisjoint(tensor.data_ptr() for tensor in network.state_dict().values())


def test_the_dense_network_may_have_any_weights_to_load_into(residual: Any, applied: Path) -> None:
    expected = load_applied(residual.network, applied)(residual.inputs(3))
    other = other_weights(residual.network)
    assert torch.equal(load_applied(other, applied)(residual.inputs(3)), expected)


def other_weights(network: nn.Module) -> nn.Module:
    """The same structure with other weights."""
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    return twin


def test_a_policy_of_another_structure_is_refused(applied: Path, zoo: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="only fits the network it was made for") as error:
        load_applied(zoo("dense").network, applied)
    one_line(error)


def test_a_policy_of_other_weights_is_warned_about(residual: Any, policy: Policy) -> None:
    with pytest.warns(UserWarning, match="other weights"):
        policy.apply(other_weights(residual.network))


def test_a_policy_file_reads_back_as_the_policy(applied: Path, policy: Policy) -> None:
    assert read_policy(applied / POLICY) == policy


def damage(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data | {"digest": digest_of(data)}))  # as somebody would write it who knows the format


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_text(path.read_text()[:-40]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "newer schema": lambda path: damage(path, lambda data: data.update(schema_version=2)),
    "no units": lambda path: damage(path, lambda data: data.pop("units")),
    "kept and indices at odds": lambda path: damage(path, lambda data: data["units"][0].update(kept=99)),
    "index too large": lambda path: damage(path, lambda data: data["units"][0].update(kept=1, indices=[99])),
}


@pytest.mark.parametrize("harm", list(DAMAGES))
def test_a_damaged_policy_file_is_refused_in_one_line_that_names_it(residual: Any, applied: Path, harm: str) -> None:
    DAMAGES[harm](applied / POLICY)
    with pytest.raises(ValueError, match=r"must|is no valid policy") as error:
        load_applied(residual.network, applied)
    assert str(applied / POLICY) in one_line(error)


def test_a_newer_schema_is_named(applied: Path) -> None:
    DAMAGES["newer schema"](applied / POLICY)
    with pytest.raises(ValueError, match="`schema_version` must be 1, but got 2"):
        read_policy(applied / POLICY)


@pytest.mark.parametrize("content", [None, b"", b"\x10\x00\x00"])
def test_missing_or_damaged_weights_are_refused_in_one_line(
    residual: Any, applied: Path, content: bytes | None
) -> None:
    (applied / WEIGHTS).unlink()
    if content is not None:
        (applied / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match="must be a readable safetensors file") as error:
        load_applied(residual.network, applied)
    one_line(error)


def test_weights_of_another_width_are_refused_in_one_line(
    residual: Any, policy: Policy, applied: Path, tmp_path: Path
) -> None:
    narrower = [replace(entry, indices=entry.indices[1:]) for entry in policy.units]
    other = replace(policy, units=tuple(narrower))
    write_applied(other, other.apply(residual.network), tmp_path / "other")
    (applied / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match="must fit the network and each other") as error:
        load_applied(residual.network, applied)
    one_line(error)


@pytest.mark.parametrize("change", [{"module": "nowhere"}, {"positions": {"first": 90, "size": 1, "rows": 6}}])
def test_a_policy_whose_members_do_not_exist_is_refused_in_one_line(
    residual: Any, applied: Path, change: dict[str, Any]
) -> None:
    damage(applied / POLICY, lambda data: data["units"][0]["members"][0].update(change))
    with pytest.raises(ValueError, match="must name modules and positions") as error:
        load_applied(residual.network, applied)
    one_line(error)


@pytest.mark.parametrize("name", [POLICY, WEIGHTS])
def test_a_folder_that_holds_a_file_already_is_refused(
    residual: Any, policy: Policy, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=f"holds {name}") as error:
        write_applied(policy, residual.network, tmp_path)
    one_line(error)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_no_applied_file_behind(
    residual: Any, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls: list[object] = []
    rename = os.replace

    def fails_at_nth(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == nth:
            full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_at_nth)
    with pytest.raises(OSError, match="No space left"):
        write_applied(policy, policy.apply(residual.network), tmp_path)
    assert not list(tmp_path.iterdir())
