"""Units: what each network must yield, that they are really removable, and what Torch-Pruning makes of them."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from envs.network.copies import copy_network
from envs.units.anatomy import dissect
from envs.units.slicing import silence, slice_network
from envs.units.units import Unit
from envs.units.verification.verify import verify_units
from tests.units.zoo_channels import Conformer

if TYPE_CHECKING:
    from tests.conftest import Specimen

EXPECTED = {  # unit -> (channels, granule)
    "chain": {"0.0": (6, 1), "3": (5, 1), "6": (12, 1), "8": (9, 1)},
    "residual": {"0.0": (6, 1), "2.first.0": (8, 1), "3.first.0": (7, 1), "3.second.0": (10, 1)},
    "dense": {"0": (6, 1), "1.conv": (4, 1), "2.conv": (4, 1), "3.0": (8, 1)},
    "joined": {"0.0": (6, 1), "2.conv": (4, 1), "3.squeeze": (3, 1), "4.first.0": (7, 1)},
    "mobile_v1": {"0.0": (6, 1), "4.0": (8, 1), "8.0": (10, 1)},
    "mobile_v2": {"0.0": (6, 1), "1.expand.0": (12, 1), "2.0": (9, 1)},
    "grouped": {"0.0": (6, 1), "2.reduce.0": (12, 4), "2.grouped.0": (12, 4)},
    "squeeze_excite": {"0.0": (8, 1), "2.squeeze": (4, 1), "3.0": (6, 1)},
    "option_a": {"2.first.0": (6, 1), "3.first.0": (8, 1)},
    "convnext": {"1.wide": (12, 1)},
    "channels_last": {"stem.0": (8, 1), "wide": (12, 1), "narrow": (6, 1)},
    "prelu": {"0.0": (6, 1), "2": (8, 1)},
    "reused": {"last.0": (8, 1)},
    "branching": {"first.0": (6, 1), "second.0": (8, 1)},
    "in_place": {"stem.0": (6, 1), "first.0": (8, 1)},
    "transposed": {"0": (6, 1), "2": (8, 1)},
}


def pick(specimen: Specimen, name: str) -> Unit:
    return next(unit for unit in specimen.anatomy.units if unit.name == name)


def members(unit: Unit) -> dict[str, set[str]]:
    roles: dict[str, set[str]] = {}
    for member in unit.members:
        roles.setdefault(member.role, set()).add(member.module)
    return roles


def reason(specimen: Specimen, layer: str) -> str:
    return next(fixed.reason for fixed in specimen.anatomy.fixed if fixed.name == layer)


def draw_dropped(data: st.DataObject, unit: Unit) -> list[int]:
    """Some channels of a unit, at least one granule and never all."""
    gone = data.draw(st.sets(st.sampled_from(unit.granules), min_size=1, max_size=len(unit.granules) - 1))
    return sorted(channel for granule in gone for channel in granule)


def without(network: nn.Module, unit: Unit, dropped: list[int]) -> nn.Module:
    return slice_network(network, [unit], {unit.name: [c for c in range(unit.channels) if c not in dropped]})


def run(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = network(inputs)
    return outputs


# What is found


def test_each_network_yields_its_units_in_execution_order(specimen: Specimen) -> None:
    found = [(unit.name, (unit.channels, unit.granule)) for unit in specimen.anatomy.units]
    assert found == list(EXPECTED[specimen.name].items())


def test_every_layer_with_a_weight_is_in_a_unit_or_has_a_reason(specimen: Specimen) -> None:
    explained = {fixed.name for fixed in specimen.anatomy.fixed}
    explained |= {m.module for unit in specimen.anatomy.units for m in unit.members if m.role != "consumer"}
    weighted = {layer.name for layer in specimen.anatomy.family.dense.layers if layer.has_weight}
    assert weighted.intersection(dict(specimen.network.named_modules())) <= explained


def test_a_residual_stream_is_one_unit_across_blocks(zoo: Callable[[str], Specimen]) -> None:
    assert members(pick(zoo("residual"), "0.0")) == {
        "producer": {"0.0", "2.second.0"},
        "carrier": {"0.1", "2.second.1"},
        "consumer": {"2.first.0", "3.first.0", "3.shortcut.0"},
    }


def test_a_projection_shortcut_is_bound_to_the_branch_it_is_added_to(zoo: Callable[[str], Specimen]) -> None:
    assert members(pick(zoo("residual"), "3.second.0"))["producer"] == {"3.second.0", "3.shortcut.0"}


def test_a_depthwise_convolution_carries_the_channels_of_its_producer(zoo: Callable[[str], Specimen]) -> None:
    assert "1.depthwise.0" in members(pick(zoo("mobile_v2"), "1.expand.0"))["carrier"]


def test_a_gate_is_bound_to_the_channels_it_scales(zoo: Callable[[str], Specimen]) -> None:
    assert members(pick(zoo("squeeze_excite"), "0.0"))["producer"] == {"0.0", "2.excite"}


def test_a_gated_convolution_is_bound_to_the_depthwise_one_behind_its_gate() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 9, 6, device="cpu")
    anatomy = dissect(Conformer().eval(), x[:1], x)
    (unit,) = (unit for unit in anatomy.units if unit.name == "point1")
    assert unit.channels == 8
    roles = {member.module: member.role for member in unit.members}
    assert roles == {"point1": "producer", "deep": "carrier", "batch": "carrier", "point2": "consumer"}
    assert not any(entry.name in roles for entry in anatomy.fixed if entry.name != "point2")


def test_channels_of_a_concatenation_are_read_at_their_offset(zoo: Callable[[str], Specimen]) -> None:
    unit = pick(zoo("dense"), "2.conv")
    (consumer,) = unit.role("consumer")
    assert consumer.positions == ((10,), (11,), (12,), (13,))


def test_a_channel_before_a_flatten_owns_its_whole_feature_map(zoo: Callable[[str], Specimen]) -> None:
    (consumer,) = pick(zoo("chain"), "3").role("consumer")
    assert consumer.positions[1] == tuple(range(16, 32))


def test_a_grouped_convolution_ties_the_channels_at_the_same_place_of_its_groups(
    zoo: Callable[[str], Specimen],
) -> None:
    assert pick(zoo("grouped"), "2.reduce.0").granules == ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11))


def test_a_normalization_without_parameters_is_sliced_with_its_channels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    (unit,) = dissect(network, torch.zeros(1, 3, 6, 6)).units
    small = without(network, unit, [0, 2])
    assert small.get_submodule("1").num_features == 2


# What stays, and why


@pytest.mark.parametrize(
    ("network", "layer", "text"),
    [
        ("residual", "4.classifier", "its channels are the network's output"),
        ("option_a", "0.0", "removing its channels is not the same as silencing them"),
        ("convnext", "0", "removing its channels is not the same as silencing them"),
        ("convnext", "1.depthwise", "removing its channels is not the same as silencing them"),
        ("reused", "again", "'again' is called more than once"),
        ("reused", "stem.0", "'again' is called more than once"),
    ],
)
def test_a_layer_that_stays_says_why(network: str, layer: str, text: str, zoo: Callable[[str], Specimen]) -> None:
    assert text in reason(zoo(network), layer)


class Partial(nn.Module):
    """Half of one convolution's channels go their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        out: Tensor = self.last(torch.relu(left)) + right.mean()
        return out


class Scaled(nn.Module):
    """A free parameter scales every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale, self.last = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(4, 1, 1)), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.stem(x)) * self.scale)
        return out


@pytest.mark.parametrize(
    ("middle", "text"),
    [
        (nn.GroupNorm(2, 4), "not the same as silencing|does not run without its channels"),
        (nn.LayerNorm([4, 6, 6], elementwise_affine=False), "not the same as silencing|does not run without"),
        (nn.Softmax(dim=1), "not the same as silencing"),
        (nn.Conv2d(4, 8, 3, groups=4), "a grouped convolution ties its channels together"),
        (nn.PixelShuffle(2), "cannot be followed through '1' .pixelshuffle"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "computes its weight from other parameters"),
    ],
    ids=["group norm", "layer norm", "softmax", "channel multiplier", "pixel shuffle", "weight norm"],
)
def test_channels_that_something_mixes_stay(middle: nn.Module, text: str) -> None:
    torch.manual_seed(0)
    width = middle(torch.zeros(1, 4, 6, 6)).shape[1]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), middle, nn.Conv2d(width, 2, 1)).eval()
    anatomy = dissect(network, torch.zeros(1, 3, 6, 6))
    assert "0" not in {unit.name for unit in anatomy.units}
    assert re.search(text, next(fixed.reason for fixed in anatomy.fixed if fixed.name == "0"))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        self.second.weight = self.stem.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.second(torch.relu(self.stem(x)))))
        return out


@pytest.mark.parametrize("network", [Partial(), Scaled(), Tied()], ids=["chunk", "free parameter", "tied weights"])
def test_channels_that_are_not_ours_to_slice_stay(network: nn.Module) -> None:
    anatomy = dissect(network.eval(), torch.zeros(1, 3, 6, 6))
    assert not anatomy.units
    assert "stem" in {fixed.name for fixed in anatomy.fixed}


def test_nothing_is_pruned_where_the_data_decide_which_layers_run() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            out: Tensor = self.last(torch.relu(self.second(y)) if float(x.abs().sum()) > 0 else y)
            return out

    anatomy = dissect(Skipping().eval(), torch.zeros(1, 3, 4, 4))  # zeros take the short way, random inputs do not
    assert not anatomy.units
    assert {fixed.name for fixed in anatomy.fixed} >= {"first", "last"}


# Really removable


@settings(max_examples=10)
@given(data=st.data())
def test_removing_channels_is_the_same_as_silencing_them(data: st.DataObject, specimen: Specimen) -> None:
    unit = data.draw(st.sampled_from(specimen.anatomy.units))
    dropped = draw_dropped(data, unit)
    silent = copy_network(specimen.network)
    silence(silent, unit, dropped)
    inputs = specimen.inputs(3, seed=data.draw(st.integers(0, 100)))
    expected, got = run(silent, inputs), run(without(specimen.network, unit, dropped), inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_silencing_all_but_one_granule_changes_the_output(specimen: Specimen) -> None:
    # otherwise the property above would hold for channels that nobody reads
    inputs = specimen.inputs(3)
    for unit in specimen.anatomy.units:
        silent = copy_network(specimen.network)
        silence(silent, unit, [channel for granule in unit.granules[1:] for channel in granule])
        assert not torch.allclose(run(silent, inputs), run(specimen.network, inputs), atol=1e-3)


@settings(max_examples=10)
@given(data=st.data())
def test_torch_pruning_removes_the_same_from_every_member(data: st.DataObject, specimen: Specimen) -> None:
    unit = data.draw(st.sampled_from(specimen.anatomy.units))
    dropped = draw_dropped(data, unit)
    oracle = copy.deepcopy(specimen.network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch-Pruning warns about free parameters that it ignores
        graph = tp.DependencyGraph().build_dependency(oracle, specimen.example)
        root = oracle.get_submodule(unit.name)
        group = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, dropped)
        group.prune()
    small = without(specimen.network, unit, dropped)
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in oracle.state_dict().items()}
    inputs = specimen.inputs(2)
    torch.testing.assert_close(run(small, inputs), run(oracle.eval(), inputs), atol=1e-5, rtol=1e-4)


@settings(max_examples=10)
@given(data=st.data())
def test_units_can_be_removed_from_together(data: st.DataObject, specimen: Specimen) -> None:
    gone = {unit.name: draw_dropped(data, unit) for unit in specimen.anatomy.units}
    silent = copy_network(specimen.network)
    for unit in specimen.anatomy.units:
        silence(silent, unit, gone[unit.name])
    kept = {unit.name: [c for c in range(unit.channels) if c not in gone[unit.name]] for unit in specimen.anatomy.units}
    inputs = specimen.inputs(2)
    got = run(slice_network(specimen.network, specimen.anatomy.units, kept), inputs)
    torch.testing.assert_close(got, run(silent, inputs), atol=1e-5, rtol=1e-4)


# Wrong groupings are caught


def tampered(unit: Unit, kind: str) -> Unit:
    if kind == "a consumer is missing":
        return replace(unit, members=tuple(m for m in unit.members if m.role != "consumer"))
    if kind == "a carrier is missing":
        return replace(unit, members=tuple(m for m in unit.members if m.role != "carrier"))
    turned = tuple(
        replace(m, positions=(*m.positions[1:], m.positions[0])) if m.role == "consumer" else m for m in unit.members
    )
    return replace(unit, members=turned)


@pytest.mark.parametrize(
    "kind", ["a consumer is missing", "a carrier is missing", "the consumer reads the wrong channels"]
)
def test_a_wrong_grouping_is_rejected(kind: str, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("mobile_v2")
    wrong = tampered(pick(specimen, "1.expand.0"), kind)
    verified, fixed, removals = verify_units(specimen.network, specimen.example, specimen.anatomy.graph, [wrong])
    assert (verified, removals) == ([], [])
    assert "1.expand.0" in {entry.name for entry in fixed}


def test_a_zero_initialized_branch_does_not_hide_a_wrong_grouping(
    fresh: Callable[[str], nn.Module], zoo: Callable[[str], Specimen]
) -> None:
    # Many recipes start the last normalization of a block at 0: nothing of the branch reaches the output.
    network, specimen = fresh("mobile_v2"), zoo("mobile_v2")
    nn.init.zeros_(network.get_parameter("1.project.1.weight"))
    wrong = tampered(pick(specimen, "1.expand.0"), "the consumer reads the wrong channels")
    assert verify_units(network, specimen.example, specimen.anatomy.graph, [wrong])[0] == []


# The network is not touched


def test_dissecting_slicing_and_verifying_leave_the_network_bit_for_bit(
    specimen: Specimen, fresh: Callable[[str], nn.Module]
) -> None:
    network = fresh(specimen.name)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    identities = {name: id(tensor) for name, tensor in network.named_parameters()}
    units = dissect(network, specimen.example).units
    run(slice_network(network, units, {unit.name: unit.granules[0] for unit in units}), specimen.inputs(2))
    assert {name: id(tensor) for name, tensor in network.named_parameters()} == identities
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_dissecting_keeps_gradients_and_training_mode_as_they_were() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)).train()
    network[0].weight.requires_grad_(False)
    dissect(network, torch.zeros(1, 3, 4, 4))
    assert network.training
    assert network[1].inplace
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True]


def test_synchronized_batch_normalization_is_read_as_any_other() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5))
    plain = nn.Sequential(*layers).eval()
    synchronized = nn.Sequential(layers[0], nn.SyncBatchNorm(6), *layers[2:4], nn.SyncBatchNorm(5)).eval()
    first, second = (dissect(network, torch.zeros(1, 3, 8, 8)).units for network in (plain, synchronized))
    assert first == second
    assert [unit.name for unit in first] == ["0"]
