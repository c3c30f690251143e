"""Searches over whole branches: the knapsack against brute force, every searcher, exact budgets, what files say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import amc
from agents.names import AGENTS
from amc.config.search import SINGLE, load_config
from amc.problem.inspection import inspection
from amc.runs.finetuning.settings import FinetuneConfig
from amc.runs.finetuning.subject import Subject
from amc.runs.finetuning.trainer import finetune
from amc.search.allocation.groups import MAX_OPTIONS, thinned, together
from amc.search.allocation.knapsack import knapsack
from envs.compression.damage import Curve
from envs.space.branch_sites import BranchSite, with_branches
from envs.space.constraint import Budget, Constraint, Costing
from envs.space.policy import Policy, UnitPolicy, structure_fingerprint, weights_fingerprint
from envs.space.rules import Rules
from envs.units.anatomy import dissect
from hw_profiles.cost import COSTS, Macs
from tests.tasks.small import make_task

QUICK: dict[str, Any] = {
    "branches": True,
    "progress": False,
    "episodes": 4,
    "warmup": 2,
    "round_size": 2,
    "reward_images": 64,
    "confirm": 1,
    "compression": {"images": 64, "quick_images": 64},
    "knapsack": {"widths": 2, "images": 32},
}


class Block(nn.Module):
    """Two narrow convolutions around an addition."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x).relu())
        return out


@cache
def small_costing(inner: int = 4) -> Costing:
    """Two blocks whose branches may go."""
    stem, head = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
    body = nn.Sequential(Block(3, inner), Block(3, inner), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(stem, nn.ReLU(), body, head).eval()
    anatomy = dissect(network, torch.zeros(1, 1, 4, 4), branches=True)
    units = [unit for unit in anatomy.units if unit.name.startswith("2.")]
    sites = Rules().sites(units)[0]
    every = with_branches(sites, anatomy.branches, units, anatomy.family.dense, ())[0]
    return Costing(anatomy.family, tuple(every))


def make_curves(costing: Costing, seed: int) -> list[Curve]:
    """Damage that falls with the width; a branch that goes does any damage."""
    generator, curves = np.random.default_rng(seed), []
    for site in costing.sites:
        steps = generator.exponential(10 ** generator.uniform(-1, 1), len(site.choices) - 1)
        damage = (*np.cumsum(steps[::-1])[::-1].tolist(), 0.0)
        curves.append(Curve(unit=site.name, kept=tuple(site.values().tolist()), damage=damage))
    return curves


def total(costing: Costing, curves: list[Curve], kept: np.ndarray[Any, Any]) -> float:
    """Damage of an assignment; what is moot does none."""
    settled = costing.settled(kept)
    return float(sum(curve.at(np.asarray([value]))[0] for curve, value in zip(curves, settled, strict=True)))


@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.9), names=st.sampled_from([("macs",), ("macs", "params")]))
@settings(max_examples=10)
def test_the_knapsack_removes_branches_where_brute_force_does(seed: int, share: float, names: tuple[str, ...]) -> None:
    costing = small_costing()
    curves = make_curves(costing, seed)
    ends = costing.lightest(), costing.dense()
    budgets = []
    for name in names:
        low, high = (costing.one(COSTS[name], kept) for kept in ends)
        budgets.append(Budget(COSTS[name], low + share * (high - low)))
    constraint = Constraint.create(costing, budgets)
    kept = knapsack(constraint, curves)
    assert constraint.keeps(kept).all()
    every = np.asarray(list(itertools.product(*(site.values() for site in costing.sites))))
    best = min(total(costing, curves, one) for one in every[constraint.keeps(every)])
    found = total(costing, curves, kept)
    assert found == pytest.approx(best) if len(names) == 1 else found <= 1.5 * best + 1e-9


def test_a_branch_and_what_lies_inside_of_it_are_one_group_of_few_options() -> None:
    costing = small_costing()
    zero = [np.zeros(len(site.choices)) for site in costing.sites]
    groups = together(costing, zero)
    assert sorted(len(group.options) for group in groups) == [5, 5]  # removed, or one of four widths
    wide = small_costing(1500)
    thin = thinned(wide.sites)
    assert all(len(site.choices) <= MAX_OPTIONS for site in thin)
    assert [site.choices[-1] for site in thin] == [site.choices[-1] for site in wide.sites]
    assert sum(isinstance(site, BranchSite) for site in thin) == 2
    dense = wide.one(Macs(), wide.dense())
    kept = knapsack(Constraint.create(wide, [Budget(Macs(), 0.3 * dense)]), make_curves(wide, 0))
    assert wide.one(Macs(), kept) <= 0.3 * dense


@pytest.fixture(autouse=True, scope="module")
def bare_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without latency, and with a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})
        yield


@pytest.mark.parametrize(
    "searcher",
    [
        "knapsack",
        "ddpg",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in sorted({*AGENTS, *SINGLE}.difference({"knapsack", "ddpg", "uniform"}))
        ),
    ],
)
def test_every_searcher_keeps_a_budget_that_needs_a_branch_to_go(searcher: str, tmp_path: Path) -> None:
    if searcher in ("tpe", "gp"):
        pytest.importorskip("optuna")
    task = make_task()
    narrow: dict[str, Any] = {"rules": {"min_ratio": 0.9}}  # with both branches the network cannot be so small
    result = amc.search(task, out=tmp_path / "run", budgets={"macs": 0.6}, searcher=searcher, **QUICK, **narrow)
    found, dense = result.reports["found"].costs, result.reports["dense"].costs
    assert found["macs"] <= 0.6 * dense["macs"]
    removed = json.loads((tmp_path / "run" / "result.json").read_text())["removed"]
    assert removed == [branch.name for branch in result.policy.branches]
    assert removed
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Residual branches" in report
    assert "removed" in report
    again = amc.load(tmp_path / "run")
    image = task.example_input
    with torch.no_grad():
        assert torch.allclose(again(image), result.network(image), atol=1e-5)


@pytest.mark.parametrize("schedule", ["one-shot", "gradual", pytest.param("soft", marks=pytest.mark.slow)])
def test_a_network_without_branches_is_trained_on_every_schedule(schedule: str, tmp_path: Path) -> None:
    task = replace(make_task(), training=make_task().calibration)
    anatomy = dissect(task.network, task.example_input, branches=True)
    policy = Policy(
        structure=structure_fingerprint(task.network),
        weights=weights_fingerprint(task.network),
        units=tuple(UnitPolicy(unit=unit, indices=tuple(range(unit.channels - 1))) for unit in anatomy.units),
        branches=(anatomy.branches[1].branch,),
    )
    small = policy.apply(task.network)
    subject = Subject(task=task, policy=policy, network=small, score=lambda network: 0.0, channels_last=True)
    config = FinetuneConfig.model_validate({"epochs": 3, "learning_rate": 0.02, "schedule": schedule})
    trained = finetune(subject, config, tmp_path / "state").network
    shapes = {name: value.shape for name, value in trained.state_dict().items()}
    assert shapes == {name: value.shape for name, value in small.state_dict().items()}
    constant = next(value for name, value in trained.state_dict().items() if name.endswith("value"))
    assert float(constant.abs().max()) > 0


def test_inspection_lists_branches_where_they_are_asked_for() -> None:
    task = make_task()
    found = inspection(task, load_config(None, {"task": "digits", "branches": True}))
    assert [len(one.layers) for one in found.branches if not one.reason] == [2, 2]
    assert all(0 < one.macs < 1 for one in found.branches)
    assert not inspection(task, load_config(None, {"task": "digits"})).branches
