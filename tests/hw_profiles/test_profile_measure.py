"""Measuring and checking on this very machine, small and coarse: that it works, not how fast the machine is."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from amc.profiling.check import CheckOptions, Subject, check_profile
from amc.profiling.correction import CheckResult
from amc.profiling.measure import check_here, measure_profile
from amc.profiling.networks import network_at, sample_widths, spread_networks
from amc.profiling.pairs import PairTiming, time_pair
from amc.profiling.runtimes import RUNTIMES, make_runtime
from amc.profiling.runtimes.onnxruntime import OnnxRuntime
from amc.profiling.setting import Setting
from amc.profiling.show import summary
from amc.profiling.store import read_profile
from amc.tasks.models.resnet_cifar import resnet20
from envs.units.anatomy import dissect
from hw_profiles.bench.measure import MeasureOptions
from hw_profiles.cost import cost_of
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Formats
from hw_profiles.latency.profile import parse
from hw_profiles.latency.runtimes import EXECUTIONS
from hw_profiles.latency.runtimes.onnxruntime import OnnxRuntimeExecution
from hw_profiles.latency.table import LatencyTable

if TYPE_CHECKING:
    from tests.conftest import Specimen

QUICK = MeasureOptions(knots=2, max_rounds=0, confidence=1.0, max_blocks=7, again_minutes=0, keep_disturbed=True)


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
    real = OnnxRuntime.time

    def counting(self: OnnxRuntime, probe: Probe, options: MeasureOptions) -> dict[str, Any]:
        if len(timed) == 5:
            raise KeyboardInterrupt
        timed.append(probe)
        return real(self, probe, options)

    anatomy, out = zoo("option_a").anatomy, tmp_path / "p.json"
    monkeypatch.setattr(OnnxRuntime, "time", counting)
    with pytest.raises(KeyboardInterrupt):
        measure_profile(anatomy, Setting(), QUICK, out, silent)
    assert len((tmp_path / "p.json.partial").read_text().splitlines()) == 1 + 5
    again: list[object] = []

    def counting_again(self: OnnxRuntime, probe: Probe, options: MeasureOptions) -> dict[str, Any]:
        again.append(probe)
        return real(self, probe, options)

    monkeypatch.setattr(OnnxRuntime, "time", counting_again)
    profile = measure_profile(anatomy, Setting(), QUICK, out, silent)
    entries = len(profile.probes())
    assert len(set(again)) <= entries
    assert again[0] not in timed


class MadeUp(OnnxRuntime):
    """Times nothing: quiet, but for every so-many-th probe the first time, or always."""

    def __init__(self, every: int, always: bool = False, stop_after: int | None = None) -> None:
        """Formats and device are those of a board."""
        super().__init__(Setting())
        self.version, self.execution = "1.0", OnnxRuntimeExecution(Formats())
        self.every, self.always, self.stop_after = every, always, stop_after
        self.timed: list[Probe] = []

    def time(self, probe: Probe, options: MeasureOptions) -> dict[str, Any]:
        """A record."""
        if len(self.timed) == self.stop_after:
            raise KeyboardInterrupt
        bad = (hash_of(probe) % self.every == 0) and (self.always or probe not in self.timed)
        self.timed.append(probe)
        return {
            "n": 9,
            "median_ms": 1.0,
            "mean_ms": 1.0,
            "variance": 1e-9,
            "p95_ms": 1.0,
            "overhead_ms": 0.003,
            "yardstick_ms": 0.08,
            "others": 9999.0 if bad else 0.0,
        }


def hash_of(probe: Probe) -> int:
    """A number that a probe keeps from process to process."""
    return sum(map(ord, repr(probe)))


PLAIN = MeasureOptions(knots=2, max_rounds=0)


def test_rounded_widths_are_all_that_is_timed_and_all_that_such_a_search_needs(
    tmp_path: Path, zoo: Callable[[str], Specimen]
) -> None:
    anatomy, out = zoo("residual").anatomy, tmp_path / "rounded.json"
    rounded, names = sample_widths(anatomy, 4), [layer.name for layer in anatomy.family.dense.layers]
    reached = {name: set(rounded.outputs[:, names.index(name)].tolist()) for name in ("0.0", "2.first.0")}
    assert reached == {"0.0": {1, 2, 3, 4, 5, 6}, "2.first.0": {4, 8}}  # 6 is no multiple of 4
    benches, every = [MadeUp(every=10**9) for _ in range(2)], replace(PLAIN, knots=10)
    measure_profile(anatomy, Setting(), every, tmp_path / "all.json", silent, benches[0])
    profile = measure_profile(anatomy, Setting(), every, out, silent, benches[1], round_to=4)
    assert len(benches[1].timed) < len(benches[0].timed)
    assert (LatencyTable(profile, "rounded").many(anatomy.family.dense, rounded) > 0).all()


def test_disturbed_entries_are_timed_again_shown_and_recorded(tmp_path: Path, zoo: Callable[[str], Specimen]) -> None:
    told: list[tuple[str, int, int]] = []
    bench, out = MadeUp(every=5), tmp_path / "p.json"
    profile = measure_profile(zoo("residual").anatomy, Setting(), PLAIN, out, lambda *what: told.append(what), bench)
    disturbed = [probe for probe in set(bench.timed) if hash_of(probe) % 5 == 0]
    count = len(disturbed)
    assert count > 1
    assert sorted(bench.timed[-count:]) == sorted(disturbed)
    assert told[-1] == ("timing disturbed ones again", count, count)
    found = read_profile(out).sessions[0].disturbed
    assert found == profile.sessions[0].disturbed
    assert found is not None
    assert (found.entries, found.at_first, found.left) == (len(set(bench.timed)), count, 0)
    assert f"{count} of {found.entries} entries were disturbed, 0 still are" in summary(profile)


def test_a_second_pass_that_is_stopped_goes_on(tmp_path: Path, zoo: Callable[[str], Specimen]) -> None:
    anatomy, out = zoo("residual").anatomy, tmp_path / "p.json"
    whole = MadeUp(every=5)
    measure_profile(anatomy, Setting(), PLAIN, tmp_path / "whole.json", silent, whole)
    first, again = len(set(whole.timed)), len(whole.timed) - len(set(whole.timed))
    with pytest.raises(KeyboardInterrupt):
        measure_profile(anatomy, Setting(), PLAIN, out, silent, MadeUp(every=5, stop_after=first + 1))
    rest = MadeUp(every=10**9)
    profile = measure_profile(anatomy, Setting(), PLAIN, out, silent, rest)
    assert rest.timed == whole.timed[first + 1 :]
    assert profile.sessions[0].disturbed is not None
    assert profile.sessions[0].disturbed.at_first == again


def test_a_machine_that_stays_busy_is_refused_and_nothing_is_lost(
    tmp_path: Path, zoo: Callable[[str], Specimen]
) -> None:
    anatomy, out, busy = zoo("residual").anatomy, tmp_path / "p.json", MadeUp(every=2, always=True)
    with pytest.raises(ValueError, match=r"at most 10%.*--keep-disturbed"):
        measure_profile(anatomy, Setting(), PLAIN, out, silent, busy)
    assert not out.exists()
    kept = measure_profile(
        anatomy, Setting(), replace(PLAIN, keep_disturbed=True, again_minutes=0), out, silent, MadeUp(1)
    )
    assert kept.sessions[0].disturbed is not None
    assert not kept.sessions[0].disturbed.trusted
    assert "do not trust it" in summary(kept)


class Sized(MadeUp):
    """A quiet board on which a kernel takes the longer, the more channels it multiplies."""

    def time(self, probe: Probe, options: MeasureOptions) -> dict[str, Any]:
        """A record."""
        products = 0 if probe.kernel.square else probe.inputs * probe.outputs
        return super().time(probe, options) | {"median_ms": 1e-3 * (1 + products)}


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory, zoo: Callable[[str], Specimen]) -> Path:
    """A made-up profile for a small residual network."""
    path = tmp_path_factory.mktemp("profiles") / "here.json"
    measure_profile(zoo("residual").anatomy, Setting(), PLAIN, path, silent, Sized(every=10**9))
    return path


class Steady:
    """A network whose runs always take the same."""

    def __init__(self, seconds: float) -> None:
        self.takes = seconds

    def seconds(self, runs: int) -> float:
        """Seconds per run."""
        return self.takes


def test_networks_timed_in_turn_know_their_scatter_and_what_ran_beside() -> None:
    found = time_pair(Steady(1e-3), Steady(2e-3), others=lambda: 4.0)
    assert found == PairTiming(ratio=0.5, other_ms=2.0, n=21, variance=0.0, others=4.0)
    assert found.record()["yardstick_ms"] == 2.0


class MadeUpTimer:
    """Networks take what the profile predicts; the machine is busy at the calls named."""

    def __init__(self, profile: Path, specimen: Specimen, order: Iterable[int], busy: Container[int]) -> None:
        """Networks are timed in this order."""
        family, table = specimen.anatomy.family, LatencyTable(read_profile(profile), "here")
        kept = spread_networks(table, specimen.anatomy, 8, seed=0)
        self.times = table.many(family.dense, family.widths(kept))
        self.order, self.busy, self.calls = list(order), busy, 0

    def __call__(self, one: Any, other: Any) -> PairTiming:
        if self.calls == len(self.order):
            raise KeyboardInterrupt
        self.calls += 1
        others = 9999.0 if self.calls - 1 in self.busy else 0.0
        ratio = float(self.times[self.order[self.calls - 1]])
        return PairTiming(ratio=ratio, other_ms=1.0, n=21, variance=1e-9, others=others)


def check(
    specimen: Specimen, profile: Path, timer: MadeUpTimer, options: CheckOptions, told: list[Any] | None = None
) -> CheckResult:
    s, seen = specimen, told if told is not None else []
    return check_profile(
        read_profile(profile),
        "here",
        Subject(s.name, s.network, s.example, s.anatomy),
        options,
        lambda *what: seen.append(what),
        timer,
    )


def test_a_check_times_disturbed_networks_again_and_says_so(
    sized: Path, tmp_path: Path, zoo: Callable[[str], Specimen]
) -> None:
    told, s = list[Any](), zoo("residual")
    timer = MadeUpTimer(sized, s, [*range(8), 2, 5], busy={2, 5})
    found = check(s, sized, timer, CheckOptions(networks=8, journal=tmp_path / "journal"), told)
    assert told[-1] == ("timing disturbed ones again", 2, 2)
    assert found.correction.disturbed is not None
    assert found.correction.disturbed.in_words("networks") == "2 of 8 networks were disturbed, 0 still are"
    assert found.to_json()["disturbed"] == {"entries": 8, "at_first": 2, "left": 0}
    assert found.correction.slope == pytest.approx(1)
    assert found.to_json()["dense_spread"] == {"mad_ms": 0.0, "rounds": 8, "others": None}


def test_a_check_on_a_busy_machine_is_refused_and_goes_on_later(
    sized: Path, tmp_path: Path, zoo: Callable[[str], Specimen]
) -> None:
    options, s, always = CheckOptions(networks=8, journal=tmp_path / "journal"), zoo("residual"), range(99)
    with pytest.raises(KeyboardInterrupt):
        check(s, sized, MadeUpTimer(sized, s, [*range(8), 0, 1], always), options)
    with pytest.raises(ValueError, match=r"at most 10% of the networks.*but 8 of 8 are.*--keep-disturbed"):
        check(s, sized, MadeUpTimer(sized, s, [*range(8), *range(8)], always), options)
    found = check(s, sized, MadeUpTimer(sized, s, range(8), ()), options)
    assert found.correction.disturbed is not None
    assert (found.correction.disturbed.at_first, found.correction.disturbed.left) == (8, 0)


def test_a_disturbed_check_is_stored_when_told_to_and_says_so(sized: Path, zoo: Callable[[str], Specimen]) -> None:
    s = zoo("residual")
    options = CheckOptions(networks=8, again_minutes=0, keep_disturbed=True)
    found = check(s, sized, MadeUpTimer(sized, s, range(8), range(8)), options)
    profile = read_profile(sized).model_copy(update={"corrections": [found.correction]})
    assert parse(profile.text(), "stored") == profile
    assert "checked on residual: 8 of 8 networks were disturbed, 8 still are; do not trust it" in summary(profile)


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


def test_whole_networks_are_timed_in_turn(zoo: Callable[[str], Specimen]) -> None:
    s = zoo("residual")
    small = network_at(s.network, s.anatomy, dict.fromkeys(s.anatomy.family.units, 1))
    for setting in (Setting(), Setting(batch=3), Setting(runtime="torch")):
        runtime = make_runtime(setting)
        timed = time_pair(runtime.network(small, s.example), runtime.network(s.network, s.example), max_rounds=3)
        assert timed.ratio > 0
        assert timed.other_ms > 0
        assert timed.n == 3


@pytest.mark.slow
def test_a_check_reports_held_out_errors_and_a_correction(tmp_path: Path) -> None:
    network, example = resnet20(), torch.zeros(1, 3, 32, 32)
    anatomy, path = dissect(network.eval(), example), tmp_path / "resnet20.json"
    profile = measure_profile(anatomy, Setting(), QUICK, path, silent)
    check_here(profile, path)
    options = CheckOptions(networks=8, again_minutes=0, keep_disturbed=True)
    checked = check_profile(profile, "here", Subject("resnet20", network, example, anatomy), options)
    data = checked.to_json()
    assert data["networks"] == len(data["points"]) == 8
    assert data["slope"] > 0
    assert data["dense_ms"] > min(point["measured_ms"] for point in data["points"]) > 0
    stored = profile.model_copy(update={"corrections": [checked.correction]})
    assert parse(stored.text(), "stored") == stored


def test_too_few_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="--networks must be at least 8"):
        CheckOptions(networks=4)


def test_a_runtime_stands_in_both_dicts() -> None:
    assert set(RUNTIMES) == set(EXECUTIONS)


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
    make_runtime(Setting(runtime="torch", dtype="fp16")).network(s.network, s.example)
    for name, tensor in s.network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
