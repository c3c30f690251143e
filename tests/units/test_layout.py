"""Layouts and the costs counted on them: published numbers, and recounts on really sliced networks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.tasks.models.resnet_cifar import resnet20, resnet56
from envs.network.graph import trace
from envs.units.anatomy import dissect
from envs.units.layout import kept_counts, quick_factor, read_layout
from envs.units.slicing import slice_network
from hw_profiles.cost import COSTS, Macs, Memory, Params, cost_of
from hw_profiles.layers import LayerShape, Layout

if TYPE_CHECKING:
    from tests.conftest import Specimen

TRACED = [
    "chain",
    "residual",
    "dense",
    "joined",
    "mobile_v1",
    "mobile_v2",
    "grouped",
    "squeeze_excite",
    "option_a",
    "convnext",
    "channels_last",
    "prelu",
    "reused",
    "in_place",
    "transposed",
]
AMC_POLICY = (3, 24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
"""Input widths of the first convolution, the 13 pointwise ones and the classifier (mit-han-lab/amc)."""


def mobilenet_v1() -> nn.Module:
    """MobileNet-V1 (Howard et al. 2017, table 1) for 224 x 224 images."""
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    layers = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before)]
        layers += [nn.ReLU(), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000)).eval()


def layout_of(network: nn.Module, example: Tensor) -> Layout:
    return read_layout(network, trace(network, example), example)


def real_layout(specimen: Specimen, kept: dict[str, list[int]]) -> Layout:
    """The layout of the really sliced network, traced anew as for a user's own recount."""
    return layout_of(slice_network(specimen.network, specimen.anatomy.units, kept), specimen.example)


def draw_kept(data: st.DataObject, specimen: Specimen) -> dict[str, list[int]]:
    """Any channels of every unit, whole granules."""
    kept = {}
    for unit in specimen.anatomy.units:
        granules = data.draw(st.sets(st.sampled_from(unit.granules), min_size=1))
        kept[unit.name] = sorted(channel for granule in granules for channel in granule)
    return kept


# Published numbers


@pytest.mark.parametrize(("build", "millions"), [(resnet20, 40.55), (resnet56, 125.49)])
def test_macs_of_cifar_resnets_are_the_published_ones(build: Callable[[], nn.Module], millions: float) -> None:
    macs = cost_of(Macs(), layout_of(build().eval(), torch.zeros(1, 3, 32, 32)))
    assert macs / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("build", "params"), [(resnet20, 269_722), (resnet56, 853_018)])
def test_parameters_of_cifar_resnets_are_the_published_ones(build: Callable[[], nn.Module], params: int) -> None:
    # 0.27 M and 0.85 M in He et al. 2015, table 6
    assert cost_of(Params(), layout_of(build().eval(), torch.zeros(1, 3, 32, 32))) == params


def test_mobilenet_v1_and_amcs_policy_for_it_count_the_published_macs() -> None:
    network, images = mobilenet_v1(), torch.zeros(1, 3, 224, 224)
    assert cost_of(Macs(), layout_of(network, images)) / 1e6 == pytest.approx(568.74, abs=0.005)
    units = dissect(network, torch.zeros(1, 3, 32, 32)).units  # the image keeps its three channels
    kept = {unit.name: range(width) for unit, width in zip(units, AMC_POLICY[1:], strict=True)}
    pruned = layout_of(slice_network(network, units, kept), images)
    assert cost_of(Macs(), pruned) / 1e6 == pytest.approx(293.87, abs=0.005)


# Every width of every network


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("name", TRACED)
def test_every_predicted_cost_is_that_of_the_sliced_network(
    name: str, data: st.DataObject, zoo: Callable[[str], Specimen]
) -> None:
    specimen = zoo(name)
    kept = draw_kept(data, specimen)
    family, real = specimen.anatomy.family, real_layout(specimen, kept)
    predicted = family.at(kept_counts(family, {unit: len(indices) for unit, indices in kept.items()}))
    assert {n: cost_of(c, predicted) for n, c in COSTS.items()} == {n: cost_of(c, real) for n, c in COSTS.items()}


@settings(max_examples=10)
@given(data=st.data())
def test_macs_and_params_are_predicted_for_a_network_that_cannot_be_traced(
    data: st.DataObject, zoo: Callable[[str], Specimen]
) -> None:
    specimen = zoo("branching")
    kept = draw_kept(data, specimen)
    family, real = specimen.anatomy.family, real_layout(specimen, kept)
    predicted = family.at(kept_counts(family, {unit: len(indices) for unit, indices in kept.items()}))
    assert [cost_of(c, predicted) for c in (Macs(), Params())] == [cost_of(c, real) for c in (Macs(), Params())]


def test_memory_of_a_network_that_cannot_be_traced_is_refused(zoo: Callable[[str], Specimen]) -> None:
    with pytest.raises(ValueError, match=r"needs the network's data flow.*use macs= or params="):
        cost_of(Memory(), zoo("branching").anatomy.family.dense)


def test_params_count_every_parameter_once(specimen: Specimen) -> None:
    total = sum(parameter.numel() for parameter in specimen.network.parameters())
    assert cost_of(Params(), specimen.anatomy.family.dense) == total


def test_the_layout_of_the_family_at_full_width_is_the_dense_one(specimen: Specimen) -> None:
    assert specimen.anatomy.family.at(specimen.anatomy.family.channels) == specimen.anatomy.family.dense


def test_many_widths_at_once_cost_what_they_cost_one_by_one(zoo: Callable[[str], Specimen]) -> None:
    family = zoo("dense").anatomy.family
    rows = np.random.default_rng(0).integers(1, family.channels + 1, size=(7, len(family.units)))
    for cost in COSTS.values():
        one_by_one = [cost_of(cost, family.at(row)) for row in rows]
        assert cost.many(family.dense, family.widths(rows)).tolist() == one_by_one


# Counted by hand


def test_a_convolution_called_twice_costs_its_macs_twice_and_its_parameters_once(
    zoo: Callable[[str], Specimen],
) -> None:
    layers = zoo("reused").anatomy.family.dense
    assert cost_of(Macs(), layers) == 64 * (27 * 6 + 2 * 54 * 6 + 54 * 8) + 8 * 5


def test_a_transposed_convolution_multiplies_once_per_input_position() -> None:
    layout = layout_of(nn.ConvTranspose2d(3, 5, 2, 2), torch.zeros(1, 3, 4, 4))
    assert cost_of(Macs(), layout) == 4 * 4 * 2 * 2 * 3 * 5


def test_memory_of_a_small_residual_network_is_the_one_counted_by_hand() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
            self.inner, self.back = nn.Conv2d(2, 6, 1, bias=False), nn.Conv2d(6, 2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.stem(x)))
            out: Tensor = self.back(torch.relu(self.inner(x))) + x
            return out

    # On a 4 x 4 map (16 values a channel) the peak is in `back`: it reads the 6 inner channels (activated in
    # place) and writes 2 while the shortcut's 2 wait. Weights: 18 + 4 (norm) + 12 + 12.
    layout = layout_of(Small().eval(), torch.zeros(1, 1, 4, 4))
    assert cost_of(Memory(), layout) == 4 * (16 * (6 + 2 + 2) + 46)


def test_an_activation_costs_memory_when_its_input_is_still_needed() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + x

    # input, activation and sum live together: nothing may write over the input
    assert cost_of(Memory(), layout_of(Twice(), torch.zeros(1, 3, 4, 4))) == 4 * 48 * 3


@pytest.mark.parametrize("channels", [7, 8])
def test_reordering_axes_is_a_view_also_where_the_axes_are_equally_long(channels: int) -> None:
    class Reordered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1).transpose(1, 3)

    layout = layout_of(Reordered(), torch.zeros(1, channels, 8, 8))
    assert [layer.kind for layer in layout.layers] == ["input", "reshape", "reshape"]
    assert cost_of(Memory(), layout) == 4 * channels * 64


# The type


def test_a_layout_round_trips_through_json(specimen: Specimen) -> None:
    layout = specimen.anatomy.family.dense
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_layout_pickles(specimen: Specimen) -> None:
    layout = specimen.anatomy.family.dense
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_a_layout_of_a_newer_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="`schema_version` must be 1, but got 2"):
        Layout.from_json({"schema_version": 2, "layers": []})


@pytest.mark.parametrize("field", ["in_channels", "out_channels", "groups"])
def test_a_layer_without_channels_or_groups_is_refused(field: str) -> None:
    widths: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "groups": 1} | {field: 0}
    with pytest.raises(ValueError, match=f"`{field} >= 1` must hold, but got 0 for 'conv'"):
        LayerShape(name="conv", kind="conv", **widths)


def test_a_layer_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="`kind` must be one of"):
        LayerShape(name="conv", kind="pruned", in_channels=1, out_channels=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2**20, 2**29])
def test_integers_are_multiplied_exactly_however_large(size: int) -> None:
    left, right = np.array([[3, -7], [size, 1]]), np.array([[size + 1, 5], [-2, size]])
    found = (left @ quick_factor(right, np.abs(left).max(axis=0))).astype(np.int64)
    assert found.tolist() == [[3 * size + 17, 15 - 7 * size], [size * (size + 1) - 2, 6 * size]]
