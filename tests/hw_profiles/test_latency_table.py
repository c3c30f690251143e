"""Latency from a profile: interpolation, its error, refusals, and the promise of the constraint under jagged tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.problem.bounds import measured_only, recount
from amc.profiling.correction import fit_correction, judge
from amc.profiling.networks import reaches_of, sample_widths, spread_networks
from envs.network.graph import trace
from envs.reward import Evaluation, accuracy_latency
from envs.space.assignment import Assignment
from envs.space.branch_sites import BranchSite, with_branches
from envs.space.constraint import Budget, Constraint, Costing
from envs.space.rules import Rules
from envs.units.anatomy import dissect
from envs.units.branches.branch import without_branches
from envs.units.layout import read_layout
from envs.units.slicing import slice_network
from hw_profiles.bench.measure import MeasureOptions, TableBuilder
from hw_profiles.bench.plan import first_knots, probes, reachable, refined, with_parts
from hw_profiles.cost import cost_of
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Formats, Kernel
from hw_profiles.latency.profile import Device, Entry, FormatsKey, Profile, Session, kernel_times
from hw_profiles.latency.runtimes.onnxruntime import OnnxRuntimeExecution
from hw_profiles.latency.steps import steps_of
from hw_profiles.latency.surface import MissingProfileEntry, Surface
from hw_profiles.latency.table import LatencyTable, network_digest

if TYPE_CHECKING:
    from tests.conftest import Specimen

Stacked = Callable[[tuple[str, ...], int], "Specimen"]
LINE = Kernel(op="add", in_map=(4, 4), out_map=(4, 4))
PLANE = Kernel(op="conv", kernel=(1, 1), stride=(1, 1), in_map=(4, 4), out_map=(4, 4))
KINDS = st.lists(st.sampled_from(["conv", "identity", "projection", "inverted"]), min_size=1, max_size=2).map(tuple)
BLOCKED = Formats(4, 2)
"""A small block, so that small networks run in every mode."""


def whole_table(specimen: Specimen, time: Callable[[Probe], float], formats: Formats = BLOCKED) -> LatencyTable:
    """A table with an entry for every width that the network can reach."""
    entries = {}
    for kernel, reach in reaches_of(specimen.anatomy, 1, OnnxRuntimeExecution(formats)).items():
        for probe in probes(kernel, reach):
            ms = time(probe)
            entries[probe] = Entry(
                inputs=probe.inputs,
                outputs=probe.outputs,
                n=9,
                median_ms=ms,
                mean_ms=ms,
                variance=0.0,
                p95_ms=ms,
                yardstick_ms=1.0,
                session=0,
            )
    device = Device(name="", cpu="", machine="", system="", cores=1, cores_used=1)
    session = Session(date="", device=device, runtime_version="1", yardstick_ms=1.0, overhead_ms=0.5)
    key = FormatsKey(block=formats.block, align=formats.align, fuses=formats.fuses)
    return LatencyTable(
        Profile(
            runtime="onnxruntime",
            dtype="fp32",
            batch=1,
            threads=1,
            formats=key,
            sessions=[session],
            kernels=kernel_times(entries),
        ),
        "test",
    )


def jagged(seed: int) -> Callable[[Probe], float]:
    """Times that rise and fall with the width at random."""

    def time(probe: Probe) -> float:
        key = [seed, probe.inputs, probe.outputs, len(probe.kernel.label)]
        return float(1 + 5 * np.random.default_rng(key).random())

    return time


# Surfaces


def test_measured_widths_are_given_back_and_between_them_it_is_linear() -> None:
    surface = Surface.of(LINE, [(4, 4, 1.0, 0.1), (8, 8, 5.0, 0.1), (10, 10, 3.0, 0.1)])
    widths = np.asarray([4, 5, 8, 9, 10])
    assert surface.at(widths, widths).tolist() == [1.0, 2.0, 5.0, 4.0, 3.0]


def test_on_a_plane_it_is_linear_along_both_axes() -> None:
    surface = Surface.of(PLANE, [(i, o, 2.0 * i + 3.0 * o, 0.0) for i in (1, 4, 9) for o in (2, 6)])
    inputs, outputs = np.asarray([1, 2, 7, 9]), np.asarray([2, 3, 5, 6])
    assert surface.at(inputs, outputs) == pytest.approx(2.0 * inputs + 3.0 * outputs)


def test_the_error_is_that_of_left_out_points() -> None:
    straight = Surface.of(LINE, [(w, w, float(w), 0.0) for w in (2, 4, 8)])
    assert straight.error_at(5, 5) == 0.0
    bent = Surface.of(LINE, [(2, 2, 1.0, 0.0), (4, 4, 2.0, 0.0), (6, 6, 1.0, 0.0)])
    assert bent.interpolation_error == pytest.approx(0.5)  # 4 is predicted as 1.0 by its neighbours
    assert bent.error_at(3, 3) == pytest.approx(0.5 * 1.5)
    assert bent.error_at(4, 4) == 0.0


@pytest.mark.parametrize("width", [1, 3, 11, 200])
def test_outside_the_measured_range_it_refuses_and_names_the_command(width: int) -> None:
    surface = Surface.of(LINE, [(4, 4, 1.0, 0.0), (10, 10, 5.0, 0.0)])
    with pytest.raises(MissingProfileEntry, match=rf"outputs={width}, measured are 4 to 10.*amc profile measure"):
        surface.at(np.asarray([width]), np.asarray([width]))


def test_a_bend_is_refined_and_a_line_is_not() -> None:
    cliff = Surface.of(LINE, [(w, w, 1.0 if w <= 16 else 2.0, 0.0) for w in (1, 8, 16, 24, 32)])
    line = Surface.of(LINE, [(w, w, float(w), 0.0) for w in (1, 8, 16, 24, 32)])
    reach = next(iter(with_parts({LINE: _reach(32)}, OnnxRuntimeExecution(BLOCKED)).values()))
    assert {20, 12, 28} & set(refined(cliff, reach, 0.05).outputs)
    assert refined(line, reach, 0.05).outputs == (1, 8, 16, 24, 32)


def _reach(most: int):  # type: ignore[no-untyped-def]
    from hw_profiles.bench.plan import Reach

    return Reach((1,), tuple(range(1, most + 1)))


def test_first_knots_hold_both_ends() -> None:
    assert first_knots(tuple(range(1, 100)), 3) == (1, 50, 99)
    assert first_knots((7,), 5) == (7,)


# TableBuilder


def raw(ms: float) -> dict[str, float]:
    return {
        "n": 9,
        "median_ms": ms,
        "mean_ms": ms,
        "variance": 0.0,
        "p95_ms": ms,
        "overhead_ms": 0.0,
        "yardstick_ms": 1.0,
    }


def test_parts_are_taken_off_and_a_second_task_adds_only_what_is_missing(stacked: Stacked) -> None:
    first, second = stacked(("identity",), 6).anatomy, stacked(("identity",), 8).anatomy
    asked: list[Probe] = []

    def time(probe: Probe) -> dict[str, float]:
        asked.append(probe)
        return raw(10.0 if probe.kernel.op in ("conv", "depthwise") and not probe.kernel.add else 1.0)

    execution, options = OnnxRuntimeExecution(BLOCKED), MeasureOptions(knots=3, max_rounds=0)
    builder = TableBuilder(execution, time)
    builder.cover(reachable(first.family.dense, sample_widths(first), execution), options)
    known = builder.entries(0)
    free = [e.median_ms for p, e in known.items() if p.kernel.op == "conv" and not p.kernel.add]
    assert set(free) == {9.0}  # 10, less the sink
    asked.clear()
    again = TableBuilder(execution, time, known)
    again.cover(reachable(first.family.dense, sample_widths(first), execution), options)
    assert not asked
    again.cover(reachable(second.family.dense, sample_widths(second), execution), options)
    assert asked
    assert not set(asked) & set(known)


# Networks


@settings(max_examples=20)
@given(kinds=KINDS, width=st.integers(4, 9), data=st.data(), seed=st.integers(0, 5))
def test_the_prediction_is_that_of_the_really_sliced_network(
    kinds: tuple[str, ...], width: int, seed: int, data: st.DataObject, stacked: Stacked
) -> None:
    specimen = stacked(kinds, width)
    costing, table = specimen.costing(), whole_table(specimen, jagged(seed))
    kept = np.asarray([data.draw(st.sampled_from(site.choices)).value for site in costing.sites])
    widths = {site.name: int(k) for site, k in zip(costing.sites, kept, strict=True)}
    channels = {
        u.name: sorted(c for g in u.granules[: widths[u.name] // u.granule] for c in g) for u in specimen.anatomy.units
    }
    small = slice_network(specimen.network, specimen.anatomy.units, channels)
    layout = read_layout(small, trace(small, specimen.example), specimen.example)
    assert cost_of(table, layout) == pytest.approx(costing.one(table, kept))


@settings(max_examples=20)
@given(kinds=KINDS, seed=st.integers(0, 50), data=st.data())
def test_a_jagged_table_is_kept_at_every_step_of_any_walk(
    kinds: tuple[str, ...], seed: int, data: st.DataObject, stacked: Stacked
) -> None:
    specimen = stacked(kinds, 6)
    costing: Costing = specimen.costing()
    table = whole_table(specimen, jagged(seed))
    witness = np.asarray([data.draw(st.sampled_from(site.choices)).value for site in costing.sites])
    constraint = Constraint.create(costing, [Budget(table, costing.one(table, witness))])
    prefix: list[int] = []
    for site in costing.sites:
        allowed = constraint.allowed(prefix)
        assert len(allowed)
        prefix.append(site.choices[data.draw(st.sampled_from(allowed.tolist()))].value)
    assert constraint.keeps(np.asarray(prefix)).all()
    assert constraint.keeps(constraint.uniform()).all()


def test_variants_cost_together_what_they_cost_alone(stacked: Stacked) -> None:
    specimen = stacked(("inverted", "projection"), 7)
    table, family = whole_table(specimen, jagged(1)), specimen.anatomy.family
    kept = spread_networks(table, specimen.anatomy, 12, seed=0)
    together = table.many(family.dense, family.widths(kept))
    assert together == pytest.approx([float(table.many(family.dense, family.widths(row))[0]) for row in kept])


def test_a_kernel_that_was_not_measured_is_refused_with_the_command(stacked: Stacked) -> None:
    table = whole_table(stacked(("conv",), 6), jagged(0))
    other = stacked(("inverted",), 6).anatomy.family.dense
    with pytest.raises(MissingProfileEntry, match=r"has no .*amc profile measure --task"):
        cost_of(table, other)


def test_drift_of_the_clock_cancels(stacked: Stacked) -> None:
    specimen = stacked(("conv",), 6)
    table = whole_table(specimen, jagged(0))

    def slowed(times: Entry) -> Entry:
        return times.model_copy(update={"median_ms": 2 * times.median_ms, "yardstick_ms": 2 * times.yardstick_ms})

    kernels = [k.model_copy(update={"entries": [slowed(e) for e in k.entries]}) for k in table.profile.kernels]
    slow = replace(table, profile=table.profile.model_copy(update={"kernels": kernels}))
    layout = specimen.anatomy.family.dense
    assert cost_of(slow, layout) == pytest.approx(cost_of(table, layout))


def test_layers_add_up_to_the_whole_but_for_conversions(stacked: Stacked) -> None:
    specimen = stacked(("identity",), 6)
    table, layout = whole_table(specimen, jagged(0), Formats()), specimen.anatomy.family.dense
    assert table.layers(layout).sum() + table.overhead_ms == pytest.approx(cost_of(table, layout))


# The correction


@given(st.floats(0.0, 2.0), st.floats(0.1, 3.0))
def test_an_affine_law_is_found_exactly(intercept: float, slope: float) -> None:
    predicted = np.linspace(1, 5, 20)
    checked = judge(predicted, intercept + slope * predicted, 5.0, "task", "network")
    assert checked.correction.intercept_ms == pytest.approx(intercept, abs=1e-6)
    assert checked.correction.slope == pytest.approx(slope)
    assert checked.correction.median_relative_error == pytest.approx(0, abs=1e-6)
    assert checked.correction.spearman == pytest.approx(1)


def test_the_error_is_that_of_networks_that_were_not_fitted() -> None:
    generator = np.random.default_rng(0)
    predicted = np.linspace(1, 5, 40)
    measured = predicted * (1 + 0.1 * generator.standard_normal(40))
    checked = judge(predicted, measured, 5.0, "task", "network")
    for half in (0, 1):
        fit = np.arange(40) % 2 == half
        intercept, slope = fit_correction(predicted[fit], measured[fit])
        assert checked.held_out[~fit] == pytest.approx(intercept + slope * predicted[~fit])


def test_predictions_that_say_the_opposite_are_refused() -> None:
    with pytest.raises(ValueError, match="must grow with predicted"):
        fit_correction(np.asarray([1.0, 2.0, 3.0]), np.asarray([3.0, 2.0, 1.0]))


def test_the_stored_correction_is_used_for_its_network_only(stacked: Stacked) -> None:
    specimen, other = stacked(("conv",), 6), stacked(("conv",), 7)
    table, dense = whole_table(specimen, jagged(0)), specimen.anatomy.family.dense
    from hw_profiles.latency.table import network_digest

    correction = judge(np.linspace(1, 5, 20), 1 + 2 * np.linspace(1, 5, 20), 5.0, "t", network_digest(dense)).correction
    known = LatencyTable(table.profile.model_copy(update={"corrections": [correction]}), "test")
    plain = cost_of(table, dense)
    assert cost_of(known.for_network(dense), dense) == pytest.approx(1 + 2 * plain)
    assert known.for_network(other.anatomy.family.dense).correction is None
    assert known.for_network(dense).standard_error(dense) >= 0


def test_networks_are_spread_evenly_over_what_can_be_reached(stacked: Stacked) -> None:
    specimen = stacked(("identity", "inverted"), 9)
    table = whole_table(specimen, lambda probe: float(probe.inputs * probe.outputs))
    family = specimen.anatomy.family
    costs = np.sort(table.many(family.dense, family.widths(spread_networks(table, specimen.anatomy, 10, seed=0))))
    steps = np.diff(costs) / (costs[-1] - costs[0])
    assert costs[-1] == pytest.approx(cost_of(table, family.dense))
    assert steps.max() < 2 / 9


def test_without_a_branch_there_is_as_much_less_of_the_intercept(zoo: Callable[[str], Specimen]) -> None:
    plain = zoo("residual")
    anatomy = dissect(plain.network, plain.example, branches=True)
    dense, formats = anatomy.family.dense, Formats()
    table = whole_table(replace(plain, anatomy=anatomy), lambda probe: 1.0, formats)
    predicted = np.linspace(1, 5, 20)
    stored = judge(predicted, 3.0 + predicted, 5.0, "task", network_digest(dense)).correction
    corrected = replace(table, profile=table.profile.model_copy(update={"corrections": [stored]})).for_network(dense)
    assert cost_of(corrected, dense) == pytest.approx(3.0 + cost_of(table, dense))
    small = dense.without(anatomy.branches[0].found.rows)
    left = len(steps_of(small, table.execution)) / len(steps_of(dense, table.execution))
    assert left < 1
    assert cost_of(corrected, small) == pytest.approx(3.0 * left + cost_of(table, small))


# Reward


def test_the_reward_is_mnasnets() -> None:
    # Tan et al., MnasNet, CVPR 2019, equation 2 with w = -0.07: acc x (latency / target)^w
    evaluation = Evaluation(metric=0.8, loss=None, costs={"latency_ms": 2.0}, images=1, image_forwards=0)
    assert accuracy_latency(evaluation, target_ms=1.0) == pytest.approx(0.8 * 2**-0.07)
    assert accuracy_latency(evaluation, target_ms=2.0) == pytest.approx(0.8)


def test_the_latency_reward_needs_a_latency() -> None:
    evaluation = Evaluation(metric=0.8, loss=None, costs={"macs": 2.0}, images=1, image_forwards=0)
    with pytest.raises(ValueError, match="needs a latency budget"):
        accuracy_latency(evaluation)


# Branches


def test_a_removed_branch_costs_no_time_where_what_is_left_was_measured(zoo: Callable[[str], Specimen]) -> None:
    plain = zoo("residual")
    anatomy = dissect(plain.network, plain.example, branches=True)
    sites = with_branches(Rules().sites(anatomy.units)[0], anatomy.branches, anatomy.units, anatomy.family.dense, ())[0]
    table = whole_table(replace(plain, anatomy=anatomy), lambda probe: float(probe.outputs + probe.inputs))
    assert measured_only(sites, anatomy, table) == (tuple(sites), ())
    costing, generator = Costing(anatomy.family, tuple(sites)), np.random.default_rng(0)
    for _ in range(4):
        kept = costing.settled(np.asarray([generator.choice(site.values()) for site in sites]))
        decided = Assignment.of(sites, kept).decisions
        counts = {unit.name: range(decided.kept[unit.name]) for unit in anatomy.units}
        gone = [one.branch for one in anatomy.branches if one.name in decided.removed]
        small = without_branches(slice_network(plain.network, anatomy.units, counts), gone)
        assert recount(small, plain.example, [table], {}) == {"latency_ms": pytest.approx(costing.one(table, kept))}


def test_branches_stay_where_a_profile_lacks_what_would_be_left(zoo: Callable[[str], Specimen]) -> None:
    plain = zoo("residual")
    anatomy = dissect(plain.network, plain.example, branches=True)
    sites = with_branches(Rules().sites(anatomy.units)[0], anatomy.branches, anatomy.units, anatomy.family.dense, ())[0]
    left, fixed = measured_only(sites, anatomy, whole_table(plain, lambda probe: 1.0))
    assert [site.name for site in left] == [site.name for site in sites if not isinstance(site, BranchSite)]
    assert all("--branches" in entry.reason for entry in fixed)
    assert len(fixed) == len(anatomy.branches)
