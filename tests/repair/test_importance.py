"""Importance: one finite score per channel, whole granules, nested kept sets, and what OBS must see."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.importance import obs
from envs.importance.importance import Evidence, channel_order
from envs.importance.scores import IMPORTANCES, importance_named
from envs.importance.taylor import gate_sensitivities
from envs.regression import statistics
from envs.regression.statistics import Sampling, input_moments, totals
from envs.units.slicing import slice_network
from envs.units.units import Member, Unit

if TYPE_CHECKING:
    from tests.conftest import Specimen


def evidence_of(specimen: Specimen, seed: int = 0) -> Evidence:
    consumers = sorted({m.module for unit in specimen.anatomy.units for m in unit.role("consumer")})
    moments = totals(input_moments(specimen.network, consumers, [specimen.inputs(24)], Sampling(positions=32)))
    sensitivities = gate_sensitivities(
        specimen.network, specimen.anatomy.units, [specimen.inputs(8)], at_once=8, seed=seed
    )
    return Evidence(network=specimen.network, moments=moments, sensitivities=sensitivities, seed=seed)


def has_normalization(specimen: Specimen, unit: Unit) -> bool:
    return any(isinstance(specimen.network.get_submodule(m.module), nn.BatchNorm2d) for m in unit.role("carrier"))


# Every importance


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_every_channel_of_every_unit_gets_a_finite_score(name: str, specimen: Specimen) -> None:
    evidence = evidence_of(specimen)
    for unit in specimen.anatomy.units:
        if name == "bn_scale" and not has_normalization(specimen, unit):
            continue
        scores = importance_named(name)(unit, evidence)
        assert scores.shape == (unit.channels,)
        assert scores.isfinite().all()


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_the_order_holds_every_channel_once_and_granules_together(name: str, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("grouped")
    unit = specimen.anatomy.units[1]
    assert unit.granule == 4
    order = channel_order(unit, importance_named(name)(unit, evidence_of(specimen)))
    assert sorted(order) == list(range(unit.channels))
    assert {tuple(sorted(order[k : k + 4])) for k in range(0, 12, 4)} == set(unit.granules)


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_kept_sets_are_nested(name: str, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    anatomy, settings = specimen.anatomy, CompressionSettings(importance=name, repair="none", positions=16)
    compressor = Compressor(
        specimen.network, anatomy.graph, anatomy.family, anatomy.units, [specimen.inputs(16)], settings
    )
    for unit in anatomy.units:
        sets = [set(compressor.policy({unit.name: k}).kept()[unit.name]) for k in range(1, unit.channels + 1)]
        assert [len(kept) for kept in sets] == list(range(1, unit.channels + 1))
        assert all(small < large for small, large in itertools.pairwise(sets))


@given(scores=st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_channels_come_by_descending_score_and_the_first_one_on_a_tie(scores: list[float]) -> None:
    unit = Unit(name="u", channels=4, granules=((0,), (1,), (2,), (3,)), members=())
    order = channel_order(unit, torch.tensor(scores, dtype=torch.float64))
    assert order == sorted(range(4), key=lambda channel: (-scores[channel], channel))


# Magnitudes


def pair(reader: nn.Module, channels: int = 4, width: int = 1) -> tuple[nn.Module, Unit]:
    """A producer of `channels` and one reader of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, channels, 1), reader)
    rows = tuple((channel,) for channel in range(channels))
    wide = tuple(tuple(range(c * width, (c + 1) * width)) for c in range(channels))
    members = Member(module="0", role="producer", positions=rows), Member(module="1", role="consumer", positions=wide)
    return network, Unit(name="0", channels=channels, granules=rows, members=members)


def set_weight(module: nn.Module, weight: Tensor) -> None:
    with torch.no_grad():
        module.get_parameter("weight").copy_(weight)


@pytest.mark.parametrize(("name", "expected"), [("l1", [1, 3, 2, 4]), ("l2", [1, 5, 2, 8])])
def test_magnitudes_are_those_of_the_weights_that_read_a_channel(name: str, expected: list[float]) -> None:
    reader = nn.Conv2d(4, 2, 1)
    set_weight(reader, torch.tensor([[1.0, -2.0, 1.0, 2.0], [0.0, 1.0, -1.0, 2.0]])[:, :, None, None])
    network, unit = pair(reader)
    scores = importance_named(name)(unit, Evidence(network=network, moments={}))
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64) / sum(expected))


def test_all_positions_of_a_flattened_map_count_for_their_channel() -> None:
    reader = nn.Linear(8, 1)
    set_weight(reader, torch.tensor([[1.0, 1.0, 0.0, 0.0, 3.0, 0.0, 0.0, 3.0]]))
    network, unit = pair(reader, width=2)
    scores = importance_named("l1")(unit, Evidence(network=network, moments={}))
    torch.testing.assert_close(scores, torch.tensor([2.0, 0.0, 3.0, 3.0], dtype=torch.float64) / 8)


def test_a_transposed_convolution_is_scored_by_its_inputs_too() -> None:
    reader = nn.ConvTranspose2d(4, 2, 2)
    set_weight(reader, torch.arange(4.0)[:, None, None, None].expand(4, 2, 2, 2))
    network, unit = pair(reader)
    scores = importance_named("l1")(unit, Evidence(network=network, moments={}))
    torch.testing.assert_close(scores, torch.arange(4, dtype=torch.float64) / 6)


def test_bn_scale_is_the_scale_of_the_normalization(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("chain")
    scores = importance_named("bn_scale")(specimen.anatomy.units[0], evidence_of(specimen))
    torch.testing.assert_close(scores, specimen.network.get_parameter("0.1.weight").detach().double().abs())


def test_bn_scale_without_a_normalization_names_the_unit_and_the_cure(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("chain")
    with pytest.raises(ValueError, match="in every unit, but '3' has none: use obs, l1 or l2"):
        importance_named("bn_scale")(specimen.anatomy.units[1], evidence_of(specimen))


# Random


def test_random_scores_are_those_of_the_seed(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    unit = specimen.anatomy.units[0]
    first, again, other = (importance_named("random")(unit, evidence_of(specimen, seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_scores_differ_from_unit_to_unit() -> None:
    evidence = Evidence(network=nn.Identity(), moments={})
    names = ["layer1.0.conv1", "layer1.1.conv0", "layer1.0.conv2", "layer2.0.conv1"]
    units = [Unit(name=name, channels=8, granules=(), members=()) for name in names]
    assert len({tuple(importance_named("random")(unit, evidence).tolist()) for unit in units}) == len(names)


# Optimal brain surgeon


def obs_order(reader: nn.Module, inputs: Tensor, width: int = 1) -> list[int]:
    """The elimination order's survivors first, for a reader that sees exactly `inputs`."""
    network, unit = pair(reader, channels=inputs.shape[1] // width, width=width)
    alone = nn.Sequential(nn.Identity(), reader)
    moments = totals(input_moments(alone, ["1"], [inputs], Sampling(positions=10_000)))
    return channel_order(unit, importance_named("obs")(unit, Evidence(network=network, moments=moments)))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["linear", "conv", "wide linear"])
def test_obs_first_drops_a_channel_that_is_never_read(kind: str) -> None:
    torch.manual_seed(1)
    reader: nn.Module = nn.Conv2d(5, 3, 3) if kind == "conv" else nn.Linear(5, 3)
    with torch.no_grad():
        reader.get_parameter("weight")[:, 2] = 0
    inputs = draw(40, 5, 5, 5) if kind == "conv" else draw(200, 5)
    assert obs_order(reader, inputs)[-1] == 2


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_obs_first_drops_a_channel_that_the_others_replace_exactly(kind: str) -> None:
    torch.manual_seed(1)
    reader: nn.Module = nn.Conv2d(6, 8, 3) if kind == "conv" else nn.Linear(6, 8)
    inputs = draw(60, 6, 5, 5) if kind == "conv" else draw(400, 6)
    inputs[:, 4] = 0.5 * inputs[:, 0] - 2 * inputs[:, 1]  # any one of 0, 1, 4 can go without loss
    order = obs_order(reader, inputs)
    assert order[-1] in (0, 1, 4)
    assert {0, 1, 4} - {order[-1]} <= set(order[:5])


def test_obs_keeps_one_of_two_twins() -> None:
    # Each twin alone can go for free; together they matter most. Magnitudes cannot see that.
    reader, inputs = nn.Linear(5, 8), draw(300, 5)
    set_weight(reader, torch.ones(8, 5))
    inputs[:, 3] = inputs[:, 1]
    order = obs_order(reader, inputs)
    assert order[-1] in (1, 3)
    assert order[0] in (1, 3)


def test_obs_drops_a_channel_that_is_constant_zero_first() -> None:
    torch.manual_seed(1)
    reader, inputs = nn.Linear(5, 8), draw(300, 5)
    inputs[:, 0] = 0
    assert obs_order(reader, inputs)[-1] == 0


def test_obs_sees_all_positions_of_a_flattened_map() -> None:
    torch.manual_seed(1)
    reader, inputs = nn.Linear(12, 8), draw(300, 12)
    inputs[:, 6:9] = inputs[:, 0:3]  # channel 2 repeats channel 0 at each of its three places
    order = obs_order(reader, inputs, width=3)
    assert order[-1] in (0, 2)
    assert order[-2] not in (0, 2)


def test_obs_without_a_gram_matrix_weighs_by_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "GRAM_LIMIT", 2)
    reader = nn.Linear(4, 2)
    set_weight(reader, torch.ones(2, 4))
    inputs = draw(300, 4) * torch.tensor([3.0, 1.0, 4.0, 2.0])
    assert obs_order(reader, inputs) == [2, 0, 3, 1]


def test_obs_of_wide_units_drops_several_channels_per_round_and_still_ranks_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(obs, "ELIMINATIONS", 3)
    torch.manual_seed(1)
    reader = nn.Linear(10, 4)
    assert sorted(obs_order(reader, draw(300, 10))) == list(range(10))


def test_obs_loses_less_than_magnitude_where_features_are_redundant(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("mobile_v2")
    unit = specimen.anatomy.units[1]
    evidence, inputs = evidence_of(specimen), specimen.inputs(64, seed=9)
    with torch.no_grad():
        dense = specimen.network(inputs)
        losses = {}
        for name in ("obs", "random"):
            kept = sorted(channel_order(unit, importance_named(name)(unit, evidence))[: unit.channels // 2])
            small = slice_network(specimen.network, [unit], {unit.name: kept})
            losses[name] = float((small(inputs) - dense).square().sum())
    assert losses["obs"] < losses["random"]


def test_scoring_does_not_change_the_network(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("mobile_v2")
    before = {name: tensor.clone() for name, tensor in specimen.network.state_dict().items()}
    for score in map(importance_named, IMPORTANCES):
        score(specimen.anatomy.units[0], evidence_of(specimen))
    assert all(torch.equal(tensor, before[name]) for name, tensor in specimen.network.state_dict().items())
