"""Sequential repair of whole networks: exact where it can be, better than layer-wise where it cannot."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import parallel
from envs.compression.calibration import plan_calibration
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.network.graph import Graph, trace
from envs.network.kinds import TRANSPOSED
from envs.regression.ridge import sums_of
from envs.regression.statistics import Sampling
from envs.repair.normalization import reestimate_batch_norm
from envs.repair.targets import Targets, record_targets
from envs.repair.walk import RepairWalk
from envs.space.policy import Policy, PolicyMismatch
from envs.units.anatomy import dissect
from envs.units.slicing import kept_axes, slice_axes
from envs.units.units import Unit
from hw_profiles.cost import Memory, Params

if TYPE_CHECKING:
    from tests.conftest import Specimen

Stacked = Callable[[tuple[str, ...], int], "Specimen"]

REPAIRABLE = [
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
]
"""All test networks that can be traced and whose consumers are convolutions or linear layers."""


def compressor_of(network: nn.Module, example: Tensor, chunks: Sequence[Tensor], **settings: Any) -> Compressor:
    anatomy = dissect(network, example)
    options = CompressionSettings(**{"importance": "l1", "positions": 64, **settings})
    return Compressor(network, anatomy.graph, anatomy.family, anatomy.units, chunks, options)


def compressor_for(specimen: Specimen, images: int = 96, **settings: Any) -> Compressor:
    return compressor_of(specimen.network, specimen.example, torch.split(specimen.inputs(images), 32), **settings)


def halved(compressor: Compressor) -> Policy:
    widths = {unit.name: unit.granule * ((len(unit.granules) + 1) // 2) for unit in compressor.units}
    return compressor.policy(widths)


def run(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = network(inputs)
    return outputs


def error(compressor: Compressor, policy: Policy, repair: str, inputs: Tensor) -> float:
    """Squared distance of the outputs to the dense network's."""
    small = compressor.compress(policy, repair).network
    return float((run(small, inputs) - run(compressor.network, inputs)).square().sum())


# Exact where the removed channels are redundant


def make_twins(network: nn.Module, unit: Unit) -> None:
    """Makes the unit's second granule repeat the first one, in every layer that writes or carries it."""
    for member in unit.members:
        if member.role == "consumer":
            continue
        module = network.get_submodule(member.module)
        for here, there in zip(unit.granules[0], unit.granules[1], strict=True):
            source, target = list(member.positions[here]), list(member.positions[there])
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.ndim == 0:
                    continue
                view = tensor.detach().transpose(0, 1) if isinstance(module, TRANSPOSED) and tensor.ndim > 1 else tensor
                view.detach()[target] = view.detach()[source].clone()


@pytest.mark.parametrize("producers", [True, False])
@pytest.mark.parametrize("name", REPAIRABLE)
def test_removing_one_of_two_twin_channels_everywhere_is_repaired_exactly(
    name: str, producers: bool, zoo: Callable[[str], Specimen], fresh: Callable[[str], nn.Module]
) -> None:
    specimen, network = zoo(name), fresh(name)
    for unit in specimen.anatomy.units:
        make_twins(network, unit)
    inputs = specimen.inputs(200)
    compressor = compressor_of(network, specimen.example, torch.split(inputs, 50), ridge=1e-9, producers=producers)
    kept = {unit.name: set(range(unit.channels)) - set(unit.granules[1]) for unit in compressor.units}
    policy = with_kept(compressor, kept)
    dense = run(network, inputs)
    broken, repaired = (run(compressor.compress(policy, r).network, inputs) for r in ("none", "sequential"))
    assert (broken - dense).abs().max() > 0.01 * dense.abs().max()
    torch.testing.assert_close(repaired, dense, atol=2e-3 * float(dense.abs().max()), rtol=0)


def with_kept(compressor: Compressor, kept: dict[str, set[int]]) -> Policy:
    """A policy of these channels instead of the best-scored ones."""
    policy = compressor.policy({})
    chosen = {entry.unit.name: kept.get(entry.unit.name, range(entry.unit.channels)) for entry in policy.units}
    units = (replace(entry, indices=tuple(sorted(chosen[entry.unit.name]))) for entry in policy.units)
    return replace(policy, units=tuple(units))


# Better where they are not


@pytest.mark.parametrize("producers", [True, False])
@pytest.mark.parametrize("name", REPAIRABLE)
def test_repair_lowers_the_output_error_of_every_kind_of_network(
    name: str, producers: bool, zoo: Callable[[str], Specimen]
) -> None:
    specimen = zoo(name)
    compressor = compressor_for(specimen, producers=producers)
    unseen, policy = specimen.inputs(100, seed=7), halved(compressor)
    assert error(compressor, policy, "sequential", unseen) < 0.9 * error(compressor, policy, "none", unseen)


def test_on_a_deep_residual_network_it_beats_layerwise_repair_and_that_beats_none(stacked: Stacked) -> None:
    specimen = stacked(("identity",) * 5, 8)
    compressor = compressor_for(specimen)
    policy, unseen = halved(compressor), specimen.inputs(100, seed=7)
    none, layerwise, sequential = (
        error(compressor, policy, repair, unseen) for repair in ("none", "layerwise", "sequential")
    )
    assert sequential < 0.9 * layerwise
    assert layerwise < 0.5 * none


def test_a_network_that_cannot_be_traced_is_repaired_layerwise(zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_for(zoo("branching"))
    networks = [compressor.compress(halved(compressor), repair).network for repair in ("sequential", "layerwise")]
    assert equal_states(*networks)


def test_consumers_that_cannot_be_gathered_are_left_as_they_are(zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_for(zoo("transposed"))
    policy = halved(compressor)
    plain, repaired = (compressor.compress(policy, repair).network for repair in ("none", "sequential"))
    assert torch.equal(plain.get_parameter("2.weight"), repaired.get_parameter("2.weight"))
    assert not torch.equal(plain.get_parameter("5.weight"), repaired.get_parameter("5.weight"))


def test_a_policy_that_keeps_everything_changes_nothing(zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_for(zoo("residual"))
    assert equal_states(compressor.compress(compressor.policy({})).network, compressor.network)


class Branches(nn.Module):
    """Two branches meet in an addition; only the second one reads a copy of channel 3.

    The first addend is ready before the second branch, or (late) only after something without weights.
    """

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.stem, self.copy = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.left, self.right = nn.Conv2d(4, 5, 1, bias=False), nn.Conv2d(6, 5, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)
        with torch.no_grad():
            self.copy.weight[0], self.copy.get_parameter("bias")[0] = (
                self.stem.weight[3],
                self.stem.get_parameter("bias")[3],
            )
            self.norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0, 3.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.stem(x)), torch.relu(self.copy(x))
        left = self.left(first)
        right = self.norm(self.right(torch.cat([first, second], 1)))
        out: Tensor = self.last((torch.neg(left) if self.late else left) + right)
        return out


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("producers", [True, False])
def test_a_branch_makes_up_for_what_the_other_branch_of_its_addition_lost(producers: bool, late: bool) -> None:
    torch.manual_seed(0)
    network, inputs = Branches(late).eval(), torch.randn(40, 3, 6, 6)
    compressor = compressor_of(network, inputs[:1], torch.split(inputs, 20), ridge=1e-9, producers=producers)
    policy = with_kept(compressor, {"stem": {0, 1, 2}, "copy": {0, 1}})
    dense = run(network, inputs)
    layerwise, sequential = (run(compressor.compress(policy, r).network, inputs) for r in ("layerwise", "sequential"))
    assert (layerwise - dense).abs().max() > 0.05 * dense.abs().max()
    torch.testing.assert_close(sequential, dense, atol=2e-3 * float(dense.abs().max()), rtol=0)


def test_without_producers_only_readers_of_pruned_channels_are_refitted(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    changed = {}
    for producers in (True, False):
        compressor = compressor_for(specimen, producers=producers)
        small = compressor.compress(compressor.policy({"2.first.0": 4}), "sequential").network
        weights = specimen.network.state_dict()
        changed[producers] = {
            name.removesuffix(".weight")
            for name, tensor in small.state_dict().items()
            if tensor.ndim > 1 and not (tensor.shape == weights[name].shape and torch.equal(tensor, weights[name]))
        }
    assert changed[False] == {"2.first.0", "2.second.0"}  # the first one is only cut
    assert changed[True] == changed[False] | {"3.first.0", "3.shortcut.0", "3.second.0", "4.classifier"}


def test_a_channel_whose_scale_is_zero_is_left_as_it_is(fresh: Callable[[str], nn.Module]) -> None:
    # What the addition still misses cannot be mapped back through a normalization that multiplies by 0.
    network, inputs = fresh("residual"), torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.get_parameter("2.second.1.weight")[2] = 0
    compressor = compressor_of(network, inputs[:1], torch.split(inputs, 32))
    policy = compressor.policy({"2.first.0": 3})
    small = compressor.compress(policy, "sequential").network
    sliced = compressor.compress(policy, "none").network
    assert torch.equal(small.get_parameter("2.second.0.weight")[2], sliced.get_parameter("2.second.0.weight")[2])
    assert small.get_parameter("2.second.0.weight").isfinite().all()


# The same numbers, whoever computes them


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("repair", ["layerwise", "sequential"])
def test_the_result_does_not_depend_on_the_number_of_threads(
    repair: str, zoo: Callable[[str], Specimen], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = []
    for cores in (1, 4):
        monkeypatch.setattr(parallel, "cores", lambda count=cores: count)
        compressor = compressor_for(zoo("residual"), importance="obs", positions=16)
        networks.append(compressor.compress(halved(compressor), repair).network)
    assert equal_states(*networks)


@pytest.mark.parametrize("sizes", [[20, 20, 8], [8, 40], [16, 16, 16]])
def test_unequal_chunks_give_the_fit_of_one_chunk(sizes: list[int]) -> None:
    # A linear layer has one row per image: the last chunk alone has fewer rows than columns.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    inputs = torch.randn(48, 12)
    whole, parts = (
        compressor_of(network, inputs[:1], chunks, ridge=0.1) for chunks in ([inputs], list(torch.split(inputs, sizes)))
    )
    networks = [c.compress(c.policy({"0": 30, "2": 20}), "sequential").network for c in (whole, parts)]
    torch.testing.assert_close(run(networks[0], inputs), run(networks[1], inputs), atol=1e-4, rtol=1e-4)


def test_the_seed_draws_the_positions(zoo: Callable[[str], Specimen]) -> None:
    networks = []
    for seed in (0, 0, 1):
        compressor = compressor_for(zoo("mobile_v2"), positions=4, seed=seed)
        networks.append(compressor.compress(halved(compressor), "sequential").network)
    assert equal_states(networks[0], networks[1])
    assert not equal_states(networks[0], networks[2])


@pytest.mark.parametrize("repair", ["none", "layerwise", "sequential"])
def test_the_dense_network_is_unchanged_bit_for_bit(repair: str, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    before = copy.deepcopy(specimen.network)
    compressor = compressor_for(specimen, repair=repair, reestimate_images=40)
    compressor.compress(halved(compressor))
    assert equal_states(specimen.network, before)
    assert not specimen.network.training


def test_a_policy_of_another_structure_is_refused(zoo: Callable[[str], Specimen]) -> None:
    policy = halved(compressor_for(zoo("residual")))
    with pytest.raises(PolicyMismatch, match="a policy only fits the network it was made for"):
        compressor_for(zoo("chain")).compress(policy)


def test_repair_counts_both_networks_and_every_image(zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_for(zoo("residual"), images=96, importance="l1", repair="sequential")
    assert compressor.compress(halved(compressor), "sequential").image_forwards == 96
    assert compressor.compress(halved(compressor), "none").image_forwards == 0


# Memory


def test_enough_memory_uses_every_image(zoo: Callable[[str], Specimen]) -> None:
    plan = plan_calibration(zoo("residual").anatomy.family, CompressionSettings(images=500), available=300)
    assert plan.images == 300
    assert plan.chunk == 75  # four chunks at least, so that folds can be left out


def test_less_memory_means_fewer_images_but_never_below_16(zoo: Callable[[str], Specimen]) -> None:
    family = zoo("residual").anatomy.family
    memories = [1.0, 1e-2, 1e-3, 1e-4, 1e-9]
    plans = [plan_calibration(family, CompressionSettings(memory_gb=m, images=500), available=400) for m in memories]
    images = [plan.images for plan in plans]
    assert images == sorted(images, reverse=True)
    assert images[0] == 400
    assert images[-1] == 16
    assert 16 < images[2] < 400
    assert all(1 <= plan.chunk <= plan.images for plan in plans)


def test_planned_images_fit_what_repair_holds(zoo: Callable[[str], Specimen]) -> None:
    layout = zoo("residual").anatomy.family.dense
    widths = layout.widths()
    live = float((Memory().many(layout, widths) - 4 * Params().many(layout, widths))[0])
    plan = plan_calibration(zoo("residual").anatomy.family, CompressionSettings(memory_gb=1e-3, images=500), 500)
    assert live * plan.images <= 1e6
    compressor = compressor_for(zoo("residual"), images=plan.images, repair="sequential", positions=plan.positions)
    dense = compressor.dense
    targets = record_targets(dense.network, dense.graph, dense.chunks, dense.sampling, narrow=plan.narrow_targets)
    rows = [target for chunk in targets.rows for target in chunk.values()]
    width = 2 if plan.narrow_targets else 4
    held = sum(width * (t.own.numel() + (0 if t.other is None else t.other.numel())) for t in rows)
    assert live * plan.images + held <= 1e6


def test_few_images_are_sampled_at_more_positions(zoo: Callable[[str], Specimen]) -> None:
    family = zoo("residual").anatomy.family
    plans = [plan_calibration(family, CompressionSettings(images=2000), available) for available in (2000, 250, 32)]
    assert [plan.positions for plan in plans] == [16, 128, 1000]


def test_a_walk_that_begins_again_at_every_layer_gives_the_same_weights(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    compressor, chunks = compressor_for(specimen), torch.split(specimen.inputs(96), 32)
    targets = record_targets(specimen.network, compressor.graph, chunks, Sampling(positions=16))
    axes = kept_axes(specimen.network, compressor.units, halved(compressor).kept())
    networks = [slice_axes(specimen.network, axes), slice_axes(specimen.network, axes)]
    for network, held_bytes in zip(networks, (math.inf, 0.0), strict=True):
        repair = RepairWalk(network=specimen.network, graph=compressor.graph, targets=targets, held_bytes=held_bytes)
        assert all(ridge > 0 for ridge in repair(network, axes).values())
    assert equal_states(*networks)
    assert not equal_states(networks[0], slice_axes(specimen.network, axes))


def test_a_network_that_cannot_be_traced_is_planned_for_too(zoo: Callable[[str], Specimen]) -> None:
    settings = CompressionSettings(memory_gb=1e-3, images=500)
    assert 16 <= plan_calibration(zoo("branching").anatomy.family, settings, 500).images < 500


# Re-estimated batch norm


def test_reestimated_statistics_are_those_of_the_images(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    network, inputs = copy.deepcopy(specimen.network), specimen.inputs(60)
    used = reestimate_batch_norm(network, torch.split(inputs, 20), 40)
    stem = run(network.get_submodule("0.0"), inputs[:40])
    assert used == 40
    torch.testing.assert_close(network.get_buffer("0.1.running_mean"), stem.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_reestimation_changes_nothing_but_statistics_of_the_copy(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    plain, again = (compressor_for(specimen, reestimate_images=n) for n in (0, 40))
    policy = halved(plain)
    networks = [c.compress(policy, "none").network for c in (plain, again)]
    states = [network.state_dict() for network in networks]
    changed = {name.rpartition(".")[2] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(module.training for module in networks[1].modules())
    assert {m.momentum for m in networks[1].modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_the_dense_network_is_walked_once_for_all_policies(
    zoo: Callable[[str], Specimen], monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[int] = []

    def counted(
        network: nn.Module, graph: Graph, chunks: Sequence[Tensor], sampling: Sampling, *, narrow: bool
    ) -> Targets:
        walks.append(sum(len(chunk) for chunk in chunks))
        return record_targets(network, graph, chunks, sampling, narrow=narrow)

    monkeypatch.setattr("envs.repair.sequential.record_targets", counted)
    compressor = compressor_for(zoo("residual"), images=96, repair="sequential", quick_images=32)
    for _ in range(2):
        compressor.compress(halved(compressor))
        compressor.compress(halved(compressor), quick=True)
    assert walks == [96]
    assert compressor.preparation_forwards >= sum(walks)


@pytest.mark.parametrize("columns", [1, 5, 32, 33, 130, 257])
def test_a_gram_matrix_from_its_upper_bands_is_the_whole_product(columns: int) -> None:
    rows = torch.randn(2, 50, columns, generator=torch.Generator().manual_seed(0))
    gram = sums_of(rows, rows[:, :, :1]).xx
    assert gram is not None
    torch.testing.assert_close(gram, rows.transpose(1, 2) @ rows)
    assert torch.equal(gram, gram.transpose(1, 2))


# In the arithmetic of the backend that scores


@pytest.mark.parametrize("specimen", ["residual"], indirect=True)
def test_repair_in_half_precision_leaves_weights_in_full_precision(specimen: Specimen) -> None:
    compressor = compressor_for(specimen)
    small = compressor.compress(halved(compressor), quick=True, half=True).network
    assert {p.dtype for p in small.parameters()} == {torch.float32}


class Scaled(nn.Module):
    """A residual branch of linear layers behind a scale per channel (Touvron et al., CaiT, ICCV 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gamma = nn.Linear(4, 8), nn.Linear(8, 4), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.gamma * self.fc2(F.gelu(self.fc1(x)))
        return out


def test_a_branch_is_followed_through_the_scale_of_its_channels() -> None:
    network, inputs = Scaled().eval(), torch.randn(4, 3, 4)
    targets = record_targets(network, trace(network, inputs[:1]), [inputs], Sampling(positions=2))
    assert {str(layer.target): addend.scale.tolist() for layer, addend in targets.addends.items()} == {
        "fc2": network.gamma.tolist()
    }


@pytest.mark.parametrize("name", ["residual", "branching"])
def test_targets_beside_a_walk_are_those_that_would_have_been_kept(name: str, zoo: Callable[[str], Specimen]) -> None:
    kept, beside = (compressor_for(zoo(name), keep_targets=keep, positions=16) for keep in (True, False))
    policy = halved(kept)
    assert equal_states(kept.compress(policy).network, beside.compress(policy).network)
    assert equal_states(kept.compress(policy, quick=True).network, beside.compress(policy, quick=True).network)
    assert beside.compress(policy).image_forwards == 2 * kept.compress(policy).image_forwards
