"""Measuring and checking on this very machine, small and coarse: that it works, not how fast the machine is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from amc.anatomy import dissect
from amc.models.resnet_cifar import resnet20
from amc.profile_check import alternate, check_profile, sliced, whole_network
from amc.profile_measure import Bench, Setting, check_here, measure_profile, sample_widths
from amc.profiles import read_profile
from hw_profiles.cost import cost_of
from hw_profiles.graphs import Probe
from hw_profiles.measure import Effort
from hw_profiles.profile import parse
from hw_profiles.table import LatencyTable

if TYPE_CHECKING:
    from tests.conftest import Specimen

QUICK = Effort(knots=2, rounds=0, confidence=1.0, blocks=7)


def silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, zoo: Callable[[str], Specimen]) -> Path:
    """A profile of this machine for a small residual network."""
    path = tmp_path_factory.mktemp("profiles") / "here.json"
    measure_profile(zoo("residual").anatomy, Setting(), QUICK, path, silent)
    return path


def test_a_measured_profile_answers_for_every_variant_of_the_network(
    measured: Path, zoo: Callable[[str], Specimen]
) -> None:
    anatomy, table = zoo("residual").anatomy, LatencyTable(read_profile(measured), "here")
    costs = table.many(anatomy.family.dense, sample_widths(anatomy))
    assert (costs > 0).all()
    assert table.standard_error(anatomy.family.dense) > 0
    assert not measured.with_name("here.json.partial").exists()


def test_a_second_measurement_of_the_same_task_changes_nothing(measured: Path, zoo: Callable[[str], Specimen]) -> None:
    before = measured.read_text()
    measure_profile(zoo("residual").anatomy, Setting(), QUICK, measured, silent)
    assert measured.read_text() == before


def test_an_interrupted_measurement_goes_on(
    tmp_path: Path, zoo: Callable[[str], Specimen], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[object] = []
    real = Bench.time

    def counting(self: Bench, probe: Probe, effort: Effort) -> dict[str, Any]:
        if len(timed) == 5:
            raise KeyboardInterrupt
        timed.append(probe)
        return real(self, probe, effort)

    anatomy, out = zoo("option_a").anatomy, tmp_path / "p.json"
    monkeypatch.setattr(Bench, "time", counting)
    with pytest.raises(KeyboardInterrupt):
        measure_profile(anatomy, Setting(), QUICK, out, silent)
    assert len((tmp_path / "p.json.partial").read_text().splitlines()) == 1 + 5
    again: list[object] = []

    def counting_again(self: Bench, probe: Probe, effort: Effort) -> dict[str, Any]:
        again.append(probe)
        return real(self, probe, effort)

    monkeypatch.setattr(Bench, "time", counting_again)
    profile = measure_profile(anatomy, Setting(), QUICK, out, silent)
    entries = len(profile.probes())
    assert len(set(again)) <= entries
    assert again[0] not in timed


def test_a_profile_of_another_version_device_or_setting_is_refused(
    measured: Path, tmp_path: Path, zoo: Callable[[str], Specimen]
) -> None:
    data = json.loads(measured.read_text())
    changes: list[tuple[Callable[[dict[str, Any]], None], str]] = [
        (lambda d: d["sessions"][0].update(runtime_version="0.1"), "same runtime version"),
        (lambda d: d["sessions"][0]["device"].update(cpu="another"), "same processor"),
        (lambda d: d.update(batch=8), "same batch"),
    ]
    for change, law in changes:
        other = json.loads(json.dumps(data))
        change(other)
        path = tmp_path / "other.json"
        path.write_text(json.dumps(other))
        with pytest.raises(ValueError, match=law):
            measure_profile(zoo("residual").anatomy, Setting(), QUICK, path, silent)


def test_whole_networks_are_timed_in_turn(zoo: Callable[[str], Specimen], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.profile_check.MOST_ROUNDS", 3)
    s = zoo("residual")
    small = sliced(s.network, s.anatomy, dict.fromkeys(s.anatomy.family.units, 1))
    for setting in (Setting(), Setting(batch=3), Setting(runtime="torch")):
        ratio, dense_ms = alternate(*(whole_network(network, s.example, setting) for network in (small, s.network)))
        assert ratio > 0
        assert dense_ms > 0


@pytest.mark.slow
def test_a_check_reports_held_out_errors_and_a_correction(tmp_path: Path) -> None:
    network, example = resnet20(), torch.zeros(1, 3, 32, 32)
    anatomy, path = dissect(network.eval(), example), tmp_path / "resnet20.json"
    profile = measure_profile(anatomy, Setting(), QUICK, path, silent)
    check_here(profile, path)
    checked = check_profile(profile, "here", "resnet20", network, example, anatomy, 8)
    data = checked.to_json()
    assert data["networks"] == len(data["points"]) == 8
    assert data["slope"] > 0
    assert data["dense_ms"] > min(point["measured_ms"] for point in data["points"]) > 0
    stored = profile.model_copy(update={"corrections": [checked.correction]})
    assert parse(stored.text(), "stored") == stored


def test_too_few_networks_are_refused(measured: Path, zoo: Callable[[str], Specimen]) -> None:
    s = zoo("residual")
    with pytest.raises(ValueError, match="--networks must be at least 8"):
        check_profile(read_profile(measured), "here", "residual", s.network, s.example, s.anatomy, 4)


@pytest.mark.parametrize(
    ("values", "law"),
    [
        ({"runtime": "tensorrt"}, "onnxruntime or torch"),
        ({"dtype": "int8"}, "quantized"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(values: dict[str, object], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        Setting(**values)  # type: ignore[arg-type]


def test_torch_is_measured_without_fusion(tmp_path: Path, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("mobile_v2")
    profile = measure_profile(specimen.anatomy, Setting(runtime="torch"), QUICK, tmp_path / "torch.json", silent)
    assert not profile.formats.fuses
    assert cost_of(LatencyTable(profile, "torch"), specimen.anatomy.family.dense) > 0


def test_a_network_timed_in_half_precision_stays_as_it_is(zoo: Callable[[str], Specimen]) -> None:
    s = zoo("chain")  # layers without normalization behind them share their weights with the copy that is timed
    before = {name: tensor.clone() for name, tensor in s.network.state_dict().items()}
    whole_network(s.network, s.example, Setting(runtime="torch", dtype="fp16"))
    for name, tensor in s.network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
