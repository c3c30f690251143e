"""Patterns as choices of the same search: sites, constraint, environment, and what leaves at the end."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amc.config.budgets import parse_constraints
from amc.config.search import load_config
from amc.export.applied import load_applied, write_applied
from amc.export.check import check_file
from amc.export.onnx import write_onnx
from amc.problem.bounds import skipped_patterns
from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.search.allocation.baselines import wherever_legal
from amc.search.loop import search
from envs.space.assignment import Assignment
from envs.space.constraint import Budget, Constraint, Costing
from envs.space.pattern_sites import PatternSite, interleaved, pattern_sites
from envs.space.patterns import PatternMismatch, verify_network
from envs.space.policy import Policy
from envs.space.rules import Rules
from envs.space.sites import Decisions, WidthSite
from hw_profiles.cost import COSTS, Macs, cost_of
from hw_profiles.latency.profile import Device, FormatsKey, Profile, Session, parse
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import Layout
from hw_profiles.patterns import parse_pattern
from hw_profiles.shape_rules import Uncovered, known_rules, load_rules

if TYPE_CHECKING:
    from tests.conftest import Specimen

MODES = {
    "patterns": {"choose": "patterns", "constraint": {"params": 0.7}, "patterns": ("2:4", "1:4")},
    "unstructured": {"choose": "unstructured", "constraint": {"params": 0.2}, "reward": "error_log_params"},
    "mixed": {"choose": "mixed", "constraint": {"macs": 0.35, "sparsity": "2:4@multiple-of-4"}},
}


@cache
def prepared(mode: str) -> Prepared:
    compression = {"images": 64, "quick_images": 64, "importance": "l1", "repair": "layerwise"}
    values = {
        "task": "digits",
        "agent": "random",
        "reward_images": 64,
        "confirm": 1,
        "episodes": 2,
        "round_size": 2,
        "compression": compression,
        "backend": {"name": "fp32"},
        **MODES[mode],
    }
    return prepare(set_up(load_config(None, values)))


@pytest.mark.parametrize("mode", list(MODES))
def test_gymnasiums_check_passes_in_every_mode(mode: str) -> None:
    environment = prepared(mode).environment()
    check_env(environment, skip_render_check=True)
    assert environment.action_space.shape == (1,)


@settings(max_examples=2)
@pytest.mark.parametrize("mode", list(MODES))
@given(seed=st.integers(0, 10_000))
def test_whatever_is_done_the_network_keeps_pattern_and_budget(mode: str, seed: int) -> None:
    one = prepared(mode)
    setup = one.setup
    ratios = np.random.default_rng(seed).random(len(setup.sites))
    assignment = setup.assignment(setup.constraint.project(ratios.tolist()))
    policy, foretold = one.policy(assignment), setup.constraint.costs(assignment.values)
    small = one.compressor.compress(policy).network
    verify_network(small, policy.patterns())
    costs = setup.real_costs(small, policy.patterns())  # recounted on the network that came out
    for name, limit in setup.constraint.limits().items():
        assert costs[name] <= limit
        assert costs[name] <= foretold[name] * (1 + 1e-12)


@pytest.mark.parametrize("mode", list(MODES))
def test_a_search_ends_with_a_policy_within_its_budget(mode: str) -> None:
    result = search(prepared(mode))
    found = result.reports["found"]
    assert all(found.costs[name] <= limit for name, limit in result.budgets.items())
    verify_network(result.networks["found"], result.policy.patterns())


def test_equal_parts_of_the_action_mean_equal_shares_of_the_patterns() -> None:
    site = PatternSite.of("l", ["1:4", "2:4", "3:4", "dense"])
    everything = np.arange(4)
    picked = [site.nearest(action, everything) for action in (0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, 1.0)]
    assert picked == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [site.nearest(site.action(kept), everything) for kept in (1, 2, 3, 4)] == [0, 1, 2, 3]


def mixed(specimen: Specimen, patterns: tuple[str, ...], rules: str | None, **budgets: float) -> Constraint:
    anatomy, shapes = specimen.anatomy, load_rules(rules) if rules else None
    layers, _ = pattern_sites(specimen.network, anatomy.graph, anatomy.family.dense, patterns, shapes=shapes)
    sites = interleaved(Rules().sites(anatomy.units)[0], layers, anatomy.units)
    costing = Costing(anatomy.family, tuple(sites), shapes)
    skipping = {"macs": Macs(skips=shapes.skips if shapes else ()), "params": COSTS["params"]}
    dense = {name: costing.one(skipping[name], costing.dense()) for name in budgets}
    return Constraint.create(costing, [Budget(skipping[n], share * dense[n]) for n, share in budgets.items()])


def test_the_cost_of_the_lightest_choices_can_be_asked_for(specimen: Specimen) -> None:
    costing, params = mixed(specimen, ("2:4",), None, params=1.0).costing, COSTS["params"]
    lowest = costing.one(params, costing.fitted(costing.lightest()[None, :])[0])
    constraint = Constraint.create(costing, [Budget(params, lowest)])
    assert constraint.keeps(constraint.fallback).all()


@settings(max_examples=3)
@given(st.lists(st.floats(0, 1), min_size=40, max_size=40), st.sampled_from([None, "multiple-of-4"]))
def test_every_walk_over_every_network_ends_legal(specimen: Specimen, actions: list[float], rules: str | None) -> None:
    constraint = mixed(specimen, ("2:4",), rules, params=0.9)
    sites = constraint.costing.sites
    kept = constraint.project(actions[: len(sites)])
    assert constraint.keeps(kept).all()
    assignment = Assignment.of(sites, kept)
    decided = assignment.decisions
    assert Assignment.from_decisions(sites, decided) == assignment
    assert np.array_equal(constraint.project(assignment.actions), kept)
    layout = constraint.costing.family.at(
        np.asarray(
            [
                decided.kept.get(u, int(c))
                for u, c in zip(constraint.costing.family.units, constraint.costing.family.channels, strict=True)
            ]
        )
    )
    for layer in layout.layers:
        pattern = parse_pattern(decided.patterns.get(layer.name, "dense"))
        assert pattern.dense or layer.in_channels // layer.groups % pattern.group == 0


def test_a_unit_comes_before_the_layers_that_it_feeds(zoo: Callable[[str], Specimen]) -> None:
    constraint = mixed(zoo("squeeze_excite"), ("2:4", "1:2"), None, params=0.9)
    order = [site.name for site in constraint.costing.sites]
    units = {unit.name: unit for unit in zoo("squeeze_excite").anatomy.units}
    for name, unit in units.items():
        for member in unit.role("consumer"):
            if f"{member.module}.weight" in order:
                assert order.index(name) < order.index(f"{member.module}.weight")


@pytest.mark.parametrize("choose", ["patterns", "mixed"])
def test_macs_count_what_is_left_where_the_rules_say_that_zeros_are_skipped(choose: str) -> None:
    values = {
        "task": "digits",
        "choose": choose,
        "constraint": {"macs": 0.8, "sparsity": "2:4@multiple-of-4"},
        "compression": {"repair": "none", "importance": "l1"},
    }
    setup = set_up(load_config(None, values))
    one, assignment = prepare(setup), setup.assignment(wherever_legal(setup.sites, "2:4"))
    policy = one.policy(assignment)
    layout = setup.anatomy.family.dense
    halved = [layer for layer in layout.layers if layer.name in policy.patterns()]
    saved = sum(cost_of(Macs(), Layout(layers=(replace(layer, inputs=()),))) for layer in halved) / 2
    assert saved > 0
    real = setup.real_costs(one.compressor.compress(policy).network, policy.patterns())
    assert real["macs"] == setup.constraint.costs(assignment.values)["macs"] == cost_of(Macs(), layout) - saved


def test_a_profile_decides_whether_zeros_are_skipped() -> None:
    device = Device(name="", cpu="", machine="", system="", cores=1, cores_used=1)
    session = Session(date="", device=device, runtime_version="1", yardstick_ms=1.0, overhead_ms=0.0)
    profile = Profile(
        runtime="onnxruntime",
        dtype="fp32",
        batch=1,
        threads=1,
        sessions=[session],
        kernels=[],
        formats=FormatsKey(block=0, align=1, fuses=True),
    )
    skipping = profile.model_copy(update={"skips": {"1:4": "its manual"}})
    rules = load_rules("multiple-of-4")
    assert parse(skipping.text(), "mine.json") == skipping
    assert skipped_patterns(rules, LatencyTable(profile, "mine")) == ()
    assert skipped_patterns(rules, LatencyTable(skipping, "mine")) == ("1:4",)
    assert skipped_patterns(rules, None) == ("2:4",)
    assert skipped_patterns(None, None) == ()


def test_macs_that_no_pattern_can_lower_are_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="sparsity=2:4@RULES"):
        set_up(load_config(None, {"task": "digits", "choose": "patterns", "constraint": {"macs": 0.7}}))


@pytest.mark.parametrize("rules", ["multiple-of-4", "cutlass-int8"])
def test_a_pattern_that_is_yet_to_be_chosen_forbids_no_width(zoo: Callable[[str], Specimen], rules: str) -> None:
    constraint = mixed(zoo("chain"), ("2:4",), rules, params=0.95)
    sites, generator = constraint.costing.sites, np.random.default_rng(0)
    widths = {site.name: set(site.values().tolist()) for site in sites if isinstance(site, WidthSite)}
    for _ in range(200):
        kept = constraint.project(generator.random(len(sites)).tolist())
        assert constraint.keeps(kept).all()
        assert np.array_equal(constraint.project([s.action(k) for s, k in zip(sites, kept, strict=True)]), kept)
        for site, value in zip(sites, kept, strict=True):
            if isinstance(site, WidthSite):
                widths[site.name].discard(int(value))
    assert not any(len(missed) > 1 for missed in widths.values())


def test_coverage_bounds_what_stays_dense() -> None:
    config = load_config(
        None,
        {
            "task": "digits",
            "choose": "patterns",
            "agent": "uniform",
            "constraint": parse_constraints(["sparsity=2:4@multiple-of-4", "coverage=0.6"]),
        },
    )
    setup = set_up(config)
    for action in (0.0, 1.0):
        kept = setup.constraint.project([action] * len(setup.sites))
        assert setup.constraint.costing.one(Uncovered(), kept) <= 0.4
    assert setup.constraint.costing.one(Uncovered(), setup.constraint.costing.dense()) == 1.0


@pytest.mark.parametrize("name", known_rules())
def test_shipped_rules_name_their_source_and_agree_with_torch(name: str) -> None:
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

    rules = load_rules(name)
    assert rules.source
    assert rules.name == name
    library, _, kind = name.partition("-")
    tensors: dict[str, Any] = {
        "cutlass": SparseSemiStructuredTensorCUTLASS,
        "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
    }
    if library in tensors:
        known = tensors[library]._DTYPE_SHAPE_CONSTRAINTS[getattr(torch, kind)]
        assert (rules.rows, rules.columns) == (known.sparse_min_rows, known.sparse_min_cols)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"constraint": {"macs": 0.5, "sparsity": "2:4@nowhere"}, "choose": "mixed"}, "shape rules must be one of"),
        ({"constraint": {"macs": 0.5, "sparsity": "2:4@multiple-of-4"}}, "add --choose patterns"),
        ({"constraint": {"coverage": 0.5}}, "add --choose patterns"),
        ({"choose": "patterns", "patterns": ["4:2"]}, "0 < N < M"),
        ({"choose": "unstructured", "densities": [1.5]}, "density must be in"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_config(None, {"task": "digits", **settings})


def test_rules_of_ones_own_are_read_from_a_file(tmp_path: Path) -> None:
    text = Path("hw_profiles/rules/multiple-of-4.json").read_text()
    own = tmp_path / "board.json"
    own.write_text(text.replace('"rows": 1', '"rows": 16'))
    assert load_rules(str(own)).rows == 16


def pruned() -> tuple[Policy, nn.Module]:
    """A digits network, 2:4 wherever it fits."""
    one = prepared("patterns")
    sites = [site for site in one.setup.sites if isinstance(site, PatternSite)]
    policy = one.policy(Assignment.from_decisions(sites, Decisions(patterns={site.layer: "2:4" for site in sites})))
    return policy, one.compressor.compress(policy, "none").network


def test_an_applied_policy_round_trips_with_its_zeros_and_is_checked(tmp_path: Path) -> None:
    policy, small = pruned()
    write_applied(policy, small, tmp_path)
    again = load_applied(prepared("patterns").setup.task.network, tmp_path)
    verify_network(again, policy.patterns())
    assert check_file(tmp_path).row_count >= len(policy.patterns())
    assert check_file(tmp_path / "network.safetensors").row_count >= len(policy.patterns())


def test_a_broken_pattern_is_neither_written_nor_believed(tmp_path: Path) -> None:
    policy, small = pruned()
    name = next(iter(policy.patterns()))
    write_applied(policy, small, tmp_path / "good")
    small = deepcopy(small)
    weight = small.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.fill_(1.0)
    with pytest.raises(PatternMismatch, match=name):
        write_applied(policy, small, tmp_path / "bad")
    example = prepared("patterns").setup.task.example_input
    with pytest.raises(PatternMismatch, match=name):
        write_onnx(small, example, example, tmp_path / "bad.onnx", policy.patterns())
    assert not list(tmp_path.glob("bad*"))
    state = {key: value.clone() for key, value in small.state_dict().items()}
    (tmp_path / "good" / "network.safetensors").write_bytes(safetensors.torch.save(state))
    with pytest.raises(PatternMismatch, match=name):
        check_file(tmp_path / "good")


def test_an_onnx_model_keeps_the_zeros(tmp_path: Path) -> None:
    policy, small = pruned()
    example = prepared("patterns").setup.task.example_input
    write_onnx(small, example, example, tmp_path / "small.onnx", policy.patterns())
    table = check_file(tmp_path / "small.onnx")
    assert list(table.columns[3].cells).count("2:4") >= len(policy.patterns())


def test_a_weight_of_more_axes_than_torch_takes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    path.write_bytes(safetensors.torch.save({"deep": torch.ones([1] * 65)}))
    with pytest.raises(ValueError, match=r"at most 64 axes, but 'deep' in .* has 65"):
        check_file(path)
