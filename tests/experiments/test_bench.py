"""The benchmarks' own parts: the stopwatch, the floor, the released procedure's fit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from envs.parallel import THREADS
from envs.space.patterns import verify
from experiments.bench.episode import PARTS, measure
from experiments.bench.episode import options_of as episode_options
from experiments.bench.floor import ready
from experiments.bench.gpu import notebook, options_of, run
from experiments.bench.gpu_parts import PHASES, Phases, play_profile, read_report, searched, tell_profile, tell_tests
from experiments.bench.released import cached_features, fit
from experiments.bench.scaling import exponent
from experiments.bench.sparse24 import linear, timed, weights_of
from experiments.bench.stopwatch import Stopwatch
from hw_profiles.patterns import parse_pattern

if TYPE_CHECKING:
    from tests.conftest import Specimen


class Doubler:
    def double(self, value: int) -> int:
        return 2 * value


def test_what_an_inner_part_takes_is_not_counted_to_the_outer_one() -> None:
    ticks = iter([0.0, 1.0, 4.0, 6.0])
    watch = Stopwatch(lambda: next(ticks))
    with watch.timing("outer"), watch.timing("inner"):
        pass
    assert watch.seconds == {"inner": 3.0, "outer": 3.0}


def test_a_wrapped_function_still_works_and_is_put_back() -> None:
    original, watch = Doubler.double, Stopwatch()
    watch.wrap(Doubler, "double", "doubling")
    assert Doubler().double(3) == 6
    watch.restore()
    assert list(watch.seconds) == ["doubling"]
    assert Doubler.double is original


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("specimen", ["residual"], indirect=True)
def test_the_floor_runs_the_same_network(specimen: Specimen) -> None:
    inputs = specimen.inputs(2)
    fast, ready_inputs = ready(specimen.network, inputs, "fp32")
    with torch.no_grad():
        torch.testing.assert_close(fast(ready_inputs), specimen.network(inputs), rtol=1e-3, atol=1e-3)


def test_the_released_fit_gives_the_layer_back_when_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    network, before = nn.Sequential(layer), layer.weight.detach().clone()
    features = cached_features(network, ["0"], torch.randn(60, 3, 6, 6))
    fit(layer, features["0"], [0, 1, 2])
    torch.testing.assert_close(layer.weight.detach(), before, rtol=1e-3, atol=1e-4)


def test_the_released_fit_leaves_dropped_inputs_at_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 1, bias=False)
    features = cached_features(nn.Sequential(layer), ["0"], torch.randn(60, 3, 6, 6))
    fit(layer, features["0"], [0, 2])
    assert bool((layer.weight[:, 1] == 0).all())
    assert bool((layer.weight[:, [0, 2]] != 0).all())


def test_an_exponent_is_the_slope_in_logarithms() -> None:
    assert np.isclose(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 2.0)


def test_damage_takes_all_the_time_within_it() -> None:
    phases = Phases("cpu")
    with phases.timing("damage curves"), phases.timing("repair"):
        pass
    with phases.timing("scoring"):
        pass
    assert set(phases.seconds) == {"damage curves", "scoring"}


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The options of a quick trial on the CPU; what the parts set in the environment is put back."""
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    monkeypatch.setenv(THREADS, "1")
    return options_of(["--task", "digits", "--device", "cpu", "--quick", "--out", str(tmp_path / "found.json")])


@pytest.mark.slow
def test_every_phase_of_a_search_is_timed(trial: argparse.Namespace) -> None:
    found = searched(trial, "cpu")
    assert set(found["accuracy"]) == {"dense", "uniform", "found"}
    assert found["phases"].keys() == {*PHASES, "other", "whole"}
    assert all(seconds > 0 for seconds in found["phases"].values())


@pytest.mark.slow
def test_a_profile_is_kept_however_disturbed_and_says_so(trial: argparse.Namespace) -> None:
    found: dict[str, Any] = {}
    play_profile(trial, found.update)
    entries, check = tell_profile(found)
    assert "entries were disturbed" in entries
    assert "networks were disturbed" in check


def test_a_part_that_fails_or_lasts_too_long_says_so_in_a_line(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", "pass"], tmp_path / "log", 60) == ""
    assert run([sys.executable, "-c", "raise SystemExit('broken')"], tmp_path / "log", 60) == "exit status 1: broken"
    began = time.monotonic()
    assert run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", 1) == "out of time after 1 s"
    assert time.monotonic() - began < 30


def test_what_a_part_noted_is_kept(tmp_path: Path) -> None:
    note = notebook(tmp_path / "found.json")
    note({"first": 1})
    note({"second": 2})
    assert json.loads((tmp_path / "found.json").read_text()) == {"first": 1, "second": 2}


def test_a_report_of_tests_is_read() -> None:
    root = ElementTree.fromstring(
        "<testsuites><testsuite><testcase name='a' time='1'><system-out>widths (1, 2)\nmore</system-out></testcase>"
        "<testcase name='b' time='2'><failure message='law&#10;long'/></testcase>"
        "<testcase name='c' time='0'><skipped message='no device'/></testcase></testsuite></testsuites>"
    )
    found = read_report(root)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["tests"][0]["printed"] == ["widths (1, 2)"]
    assert found["tests"][1]["reason"] == "law"
    assert tell_tests(found) == ["1 passed, 1 failed, 1 skipped", "b: law"]


def test_weights_of_the_2_4_benchmark_are_2_4_and_products_agree() -> None:
    layer = linear(64, 32, 8)
    verify(weights_of(layer), parse_pattern("2:4"))
    found = timed(layer, "cpu", compress=lambda dense: dense)
    assert found["difference"] == 0
    assert found["ratio"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("repair", ["layerwise", "sequential"])
def test_the_benchmark_of_episodes_times_what_an_episode_does(repair: str) -> None:
    arguments = ["--images", "200", "--rounds", "1", "--repair", repair]
    (found,) = measure(episode_options(arguments))
    untimed = [part for part in PARTS if found["milliseconds"][part] == 0]
    assert untimed in ([], ["re-estimation"])
    assert found["ratio"] > 1
