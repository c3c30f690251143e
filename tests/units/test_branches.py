"""Residual branches: found by structure, gone as if silent, counted exactly, kept in files."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import amc
from amc.export.applied import write_applied
from amc.export.onnx import onnx_bytes, verify_onnx
from amc.problem.bounds import recount
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.space.assignment import Assignment
from envs.space.branch_sites import REMOVED, BranchSite, with_branches
from envs.space.constraint import Budget, Constraint, Costing, FloatArray
from envs.space.policy import Policy, PolicyMismatch
from envs.space.rules import Rules
from envs.space.sites import Site
from envs.units.anatomy import Anatomy, dissect
from envs.units.branches.branch import without_branches
from hw_profiles.cost import COSTS, Cost, Macs
from hw_profiles.layers import IntArray


class InPlace(nn.Module):
    """The block of torchvision's ResNets, which adds in place and uses one activation twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """Three convolutions around an addition; the activations are functions."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + x)


class Inverted(nn.Module):
    """MobileNet-V2's block in one nn.Sequential."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out


class Scaled(nn.Module):
    """ConvNeXt's block: linear layers with channels last, and a factor for each channel in its own forward."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm, self.wide, self.narrow = nn.LayerNorm(channels), nn.Linear(channels, wide), nn.Linear(wide, channels)
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        scaled: Tensor = self.gamma * out
        return x + scaled.permute(0, 3, 1, 2)


class Written(nn.Module):
    """A pre-norm block that attends in its own forward, and so cannot be without its attention, and its neurons."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm1(x)
        shares = (self.q(read) @ self.k(read).transpose(1, 2)).softmax(dim=-1)
        x = x + self.out(shares @ self.v(read))
        out: Tensor = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return out


class Nested(nn.Module):
    """A branch with another one inside of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.inner = nn.Conv2d(channels, channels, 1), Inverted(channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(self.before(x))
        return out


def _encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(4, 8), stack, nn.Flatten(), nn.Linear(8 * 5, 3))


def _images(*blocks: nn.Module, width: int) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *blocks, *head)


MAKERS = {
    "in place": lambda: _images(InPlace(6, 6), InPlace(6, 8, 2), InPlace(8, 8), width=8),
    "bottleneck": lambda: _images(Bottleneck(6, 4), Bottleneck(6, 4), width=6),
    "inverted": lambda: _images(Inverted(6, 10), Inverted(6, 10), width=6),
    "nested": lambda: _images(Nested(6), width=6),
    "scaled": lambda: _images(Scaled(6, 10), Scaled(6, 10), width=6),
    "pre-norm": lambda: _encoder(norm_first=True),
    "post-norm": lambda: _encoder(norm_first=False),
}
LAST = {
    "in place": ["2.bn2", "3.bn2", "4.bn2"],
    "bottleneck": ["2.bn3", "3.bn3"],
    "inverted": ["2.conv.7", "3.conv.7"],
    "nested": ["2.inner.conv.7", ""],
    "scaled": ["2.narrow", "3.narrow"],
    "pre-norm": [f"1.layers.{k}.{last}" for k in range(2) for last in ("self_attn.out_proj", "linear2")],
    "post-norm": [f"1.layers.{k}.{last}" for k in range(2) for last in ("self_attn.out_proj", "linear2")],
}
"""The layer of each branch whose parameters silence it, "" where none does alone."""


@cache
def dissected(name: str) -> tuple[nn.Module, Tensor, Anatomy]:
    """A network of that kind with random statistics, its example, and what of it can be pruned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MAKERS[name]().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features) + 0.5
        example = torch.randn((1, 5, 4) if "norm" in name else (1, 3, 8, 8))
    return network, example, dissect(network, example, branches=True)


def inputs_for(example: Tensor, count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *example.shape[1:], generator=torch.Generator().manual_seed(seed))


def sites_of(anatomy: Anatomy, skip: Sequence[str] = ()) -> list[Site]:
    sites = Rules().sites(anatomy.units)[0]
    return with_branches(sites, anatomy.branches, anatomy.units, anatomy.family.dense, skip)[0]


def compressor_for(name: str, repair: str) -> Compressor:
    _, example, anatomy = dissected(name)
    return Compressor(
        anatomy.network,
        anatomy.graph,
        anatomy.family,
        anatomy.units,
        [inputs_for(example, 12, seed) for seed in range(4)],
        CompressionSettings(repair=repair, images=48, positions=64),
        forms=anatomy.forms,
        branches=anatomy.branches,
    )


def drawn(costing: Costing, seed: int) -> Assignment:
    generator = np.random.default_rng(seed)
    kept = np.asarray([generator.choice(site.values()) for site in costing.sites])
    return Assignment.of(costing.sites, costing.settled(kept))


@pytest.mark.parametrize("name", MAKERS)
def test_a_network_without_a_branch_is_the_one_in_which_it_is_silent(name: str) -> None:
    network, example, anatomy = dissected(name)
    assert len(anatomy.branches) == len(LAST[name])
    assert not anatomy.whole
    inputs = inputs_for(example, 4)
    for one, last in zip(anatomy.branches, LAST[name], strict=True):
        if not last:
            continue
        silent = copy.deepcopy(network)
        for parameter in silent.get_submodule(last).parameters():
            nn.init.zeros_(parameter)
        small = without_branches(anatomy.network, [one.branch])
        with torch.no_grad():
            assert torch.allclose(small(inputs), silent(inputs), atol=1e-5)
            assert not torch.allclose(small(inputs), network(inputs), atol=1e-3)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("repair", ["none", "layerwise", "sequential"])
def test_costs_of_the_network_that_comes_out_are_those_foretold(name: str, repair: str) -> None:
    _, example, anatomy = dissected(name)
    costing = Costing(anatomy.family, tuple(sites_of(anatomy)))
    compressor = compressor_for(name, repair)
    for seed in range(3):
        assignment = drawn(costing, seed)
        small = compressor.compress(compressor.policy_of(assignment)).network
        real = recount(small, example, list(COSTS.values()), {})
        assert real == {cost: costing.one(COSTS[cost], assignment.values) for cost in COSTS}


@given(seed=st.integers(0, 10**6), share=st.floats(0.15, 1), name=st.sampled_from(sorted(MAKERS)))
@settings(max_examples=30)
def test_no_walk_ends_above_a_budget_and_what_is_moot_is_left_whole(seed: int, share: float, name: str) -> None:
    anatomy = dissected(name)[2]
    costing = Costing(anatomy.family, tuple(sites_of(anatomy)))
    low, high = (costing.one(Macs(), kept) for kept in (costing.lightest(), costing.dense()))
    constraint = Constraint.create(costing, [Budget(Macs(), low + share * (high - low))])
    kept = constraint.project(np.random.default_rng(seed).uniform(size=len(costing.sites)).tolist())
    assert constraint.keeps(kept).all()
    assert np.array_equal(costing.settled(kept), kept)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(MAKERS)))
@settings(max_examples=30)
def test_whatever_keeps_the_budget_can_be_walked_to(seed: int, name: str) -> None:
    # The widths before a branch that goes may take what its absence saves.
    anatomy = dissected(name)[2]
    costing = Costing(anatomy.family, tuple(sites_of(anatomy)))
    wanted = drawn(costing, seed)
    constraint = Constraint.create(costing, [Budget(Macs(), costing.one(Macs(), wanted.values))])
    assert constraint.project(wanted.actions).tolist() == list(wanted.key)
    assert constraint.scaled(np.asarray(wanted.actions)).tolist() == list(wanted.key)


def test_no_cost_is_asked_for_no_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = dissected("in place")[2]
    costing = Costing(anatomy.family, tuple(sites_of(anatomy)))
    constraint = Constraint.create(costing, [Budget(Macs(), costing.one(Macs(), costing.dense()))])
    asked, many = [], Costing.many

    def noted(self: Costing, cost: Cost, kept: IntArray) -> FloatArray:
        asked.append(len(np.atleast_2d(kept)))
        return many(self, cost, kept)

    monkeypatch.setattr(Costing, "many", noted)
    constraint.project([1.0] * len(costing.sites))
    assert min(asked) > 0


def test_branches_stay_in_uniform_and_go_only_where_an_action_is_small() -> None:
    anatomy = dissected("bottleneck")[2]
    costing = Costing(anatomy.family, tuple(sites_of(anatomy)))
    constraint = Constraint.create(costing, [Budget(Macs(), 0.5 * costing.one(Macs(), costing.dense()))])
    branches = [step for step, site in enumerate(costing.sites) if isinstance(site, BranchSite)]
    assert len(branches) == 2
    assert (constraint.uniform()[branches] != REMOVED).all()
    site = costing.sites[branches[0]]
    every = np.arange(2)
    assert [site.choices[site.nearest(action, every)].label for action in (0.0, 0.19, 0.2, 1.0)] == [
        *("removed", "removed", "kept", "kept")
    ]
    assert all(site.nearest(site.action(value), every) == value for value in (0, 1))


def test_a_branch_stands_in_front_of_what_lies_inside_of_it_and_can_be_skipped() -> None:
    anatomy = dissected("nested")[2]
    sites = sites_of(anatomy)
    names = [site.name for site in sites]
    for place, site in enumerate(sites):
        if isinstance(site, BranchSite):
            assert all(names.index(inner) > place for inner in site.inner)
    outer = next(site for site in sites if isinstance(site, BranchSite))
    assert any(name.endswith(".branch") for name in outer.inner)
    assert not any(isinstance(site, BranchSite) for site in sites_of(anatomy, ["*.inner.*"]))


def test_what_would_still_run_is_kept_with_the_reason() -> None:
    network = nn.Sequential(nn.Linear(4, 8), Written(8), nn.Linear(8, 2)).eval()
    anatomy = dissect(network, torch.randn(1, 5, 4), branches=True)
    assert [one.branch.layer for one in anatomy.branches] == ["1.narrow"]
    assert [entry.name for entry in anatomy.whole] == ["1.out.branch"]
    assert "would still run" in anatomy.whole[0].reason


def test_repair_gives_a_removed_branch_what_the_sum_lacks_in_the_mean() -> None:
    name = "bottleneck"
    network, _, anatomy = dissected(name)
    compressor = compressor_for(name, "sequential")
    kept = {unit.name: unit.channels - 1 for unit in anatomy.units if unit.name.startswith("2.")}
    second = anatomy.branches[1].name
    small = compressor.compress(compressor.policy(kept, removed=[second])).network
    inputs = torch.cat([inputs_for(dissected(name)[1], 12, seed) for seed in range(4)])
    sums: dict[str, list[Tensor]] = {"dense": [], "small": []}
    with torch.no_grad():
        for key, one in (("dense", network), ("small", small)):
            assert isinstance(one, nn.Sequential)
            x = one[:3](inputs)
            block: Any = one[3]
            branch = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
            sums[key].append((branch + x).mean(dim=(0, 2, 3)))
    assert torch.allclose(sums["dense"][0], sums["small"][0], atol=1e-5)
    plain = compressor_for(name, "none")
    silent = plain.compress(plain.policy({}, removed=[second])).network
    assert not any(float(value.abs().max()) for key, value in silent.state_dict().items() if key.endswith("value"))


@pytest.mark.parametrize("name", ["in place", "pre-norm"])
def test_a_network_without_branches_is_exported_trained_saved_and_made_again(name: str, tmp_path: Path) -> None:
    network, example, anatomy = dissected(name)
    compressor = compressor_for(name, "sequential")
    policy = compressor.policy({}, removed=[one.name for one in anatomy.branches[1:]])
    small = compressor.compress(policy).network
    inputs = inputs_for(example, 5)
    with torch.no_grad():
        expected = small(inputs)
    model = onnx_bytes(small, example)
    verify_onnx(model, small, inputs)
    assert _weighted(model) == sum(isinstance(one, nn.Conv2d | nn.Linear) for one in small.modules()) + 2 * (
        "norm" in name
    )
    write_applied(policy, small, tmp_path)
    again = amc.load(tmp_path)
    fresh = policy.apply(network)
    fresh.load_state_dict(small.state_dict())
    for one in (again, fresh):
        with torch.no_grad():
            assert torch.equal(one.eval()(inputs), expected)
    again.train()(inputs).square().sum().backward()
    values = [parameter for key, parameter in again.named_parameters() if key.endswith("value")]
    assert values
    assert all(value.grad is not None and float(value.grad.abs().max()) > 0 for value in values)


def _weighted(model: bytes) -> int:
    """Operators of an ONNX model that multiply matrices."""
    return sum(node.op_type in ("Conv", "MatMul", "Gemm") for node in onnx.load_from_string(model).graph.node)


def test_a_policy_with_branches_is_checked_as_it_is_read_and_applied() -> None:
    network, _, anatomy = dissected("in place")
    compressor = compressor_for("in place", "none")
    policy = compressor.policy({}, removed=[anatomy.branches[0].name])
    content = policy.to_json()
    assert Policy.from_json(content) == policy
    for field, value, law in (
        ("axis", 9, "axis < rank"),
        ("block", {"shortcut": "", "tail": "", "function": "exec"}, "must be one of relu"),
        ("outputs", 99, "less than or equal to 16"),
        ("code", "x", "not permitted"),
    ):
        broken = copy.deepcopy(content)
        broken["branches"][0][field] = value
        with pytest.raises(ValueError, match=law):
            Policy.from_json(broken)
    with pytest.raises(PolicyMismatch, match="must name modules"):
        with_branch(policy, module="4.nowhere").apply(network)
    with pytest.raises(PolicyMismatch, match="may only remove branches"):
        compressor.compress(with_branch(policy, layer="4.conv1"))


def with_branch(policy: Policy, **changes: str) -> Policy:
    """A policy whose first branch is another one."""
    return replace(policy, branches=(replace(policy.branches[0], **changes),))  # type: ignore[arg-type]  # texts
