"""The benchmarks' own parts: the stopwatch, the floor, the released procedure's fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from experiments.bench.floor import ready
from experiments.bench.released import cached_features, fit
from experiments.bench.scaling import exponent
from experiments.bench.stopwatch import Stopwatch

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
