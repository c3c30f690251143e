"""Rules and sites: which widths a unit may take before any budget, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.space.rules import Rules
from envs.space.settings import RulesConfig
from envs.space.sites import WidthSite
from envs.units.units import Member, Unit

if TYPE_CHECKING:
    from tests.conftest import Specimen

RATIOS = st.floats(0.0, 1.0)


def unit(channels: int, granule: int = 1, name: str = "conv") -> Unit:
    groups = tuple(tuple(range(k, channels, channels // granule)) for k in range(channels // granule))
    rows = tuple((channel,) for channel in range(channels))
    members = (
        Member(module=name, role="producer", positions=rows),
        Member(module=f"{name}_norm", role="carrier", positions=rows),
    )
    return Unit(name=name, channels=channels, granules=groups, members=members)


def widths(rules: Rules, channels: int, granule: int = 1) -> list[int]:
    return rules.widths(unit(channels, granule))


def test_without_rules_every_width_but_zero_may_be_chosen() -> None:
    assert widths(Rules(), 5) == [1, 2, 3, 4, 5]


def test_rounding_leaves_multiples_and_the_full_width() -> None:
    assert widths(Rules(round_to=4), 10) == [4, 8, 10]


def test_left_out_rounding_keeps_wide_units_to_what_kernels_compute_together_and_narrow_ones_free() -> None:
    assert widths(Rules(round_to=None), 95) == list(range(1, 96))
    assert widths(Rules(round_to=None), 100) == [*range(8, 97, 8), 100]
    assert Rules.of(RulesConfig()).round_to is None


def test_a_profile_or_ones_own_rounding_takes_the_place_of_what_is_left_out() -> None:
    assert widths(Rules.of(RulesConfig(), profiled=True), 100) == list(range(1, 101))
    for profiled in (False, True):
        assert widths(Rules.of(RulesConfig(round_to=1), profiled=profiled), 100) == list(range(1, 101))
        assert widths(Rules.of(RulesConfig(round_to=32), profiled=profiled), 100) == [32, 64, 96, 100]


def test_a_unit_narrower_than_the_divisor_keeps_all_its_channels() -> None:
    assert widths(Rules(round_to=8), 6) == [6]


def test_channels_of_a_grouped_convolution_go_in_whole_granules() -> None:
    assert widths(Rules(), 12, granule=4) == [4, 8, 12]


def test_rounding_and_granules_hold_together() -> None:
    assert widths(Rules(round_to=6), 48, granule=4) == [12, 24, 36, 48]


def test_ratios_are_inclusive_bounds() -> None:
    assert widths(Rules(min_ratio=0.3, max_ratio=0.7), 10) == [3, 4, 5, 6, 7]


@given(channels=st.integers(2, 40), round_to=st.integers(1, 12), low=RATIOS, high=RATIOS)
def test_choices_obey_every_rule_and_come_lightest_first(channels: int, round_to: int, low: float, high: float) -> None:
    low, high = sorted((low, max(high, 0.01)))
    kept = widths(Rules(round_to=round_to, min_ratio=low, max_ratio=high), channels)
    inside = [k for k in range(1, channels + 1) if low - 1e-9 <= k / channels <= high + 1e-9]
    assert kept == [k for k in inside if k % round_to == 0 or k == channels]


@pytest.mark.parametrize("round_to", [0, -8])
def test_a_divisor_below_one_is_refused(round_to: int) -> None:
    with pytest.raises(ValueError, match=r"round_to\n.*greater than or equal to 1"):
        Rules(round_to=round_to)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.6, 0.4, "`min_ratio <= max_ratio` must hold, but got min_ratio=0.6, max_ratio=0.4"),
        (-0.1, 1.0, "min_ratio\n.*greater than or equal to 0"),
        (0.0, 1.2, "max_ratio\n.*less than or equal to 1"),
        (0.0, 0.0, "max_ratio\n.*greater than 0"),
        (float("nan"), 1.0, "min_ratio\n.*finite"),
    ],
)
def test_impossible_ratios_are_refused(low: float, high: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Rules(min_ratio=low, max_ratio=high)


def test_a_unit_without_any_width_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'conv' with 10 channels \(in steps of 1\) has none"):
        Rules(round_to=4, min_ratio=0.5, max_ratio=0.7).sites([unit(10)])


# Skipping


def test_a_skipped_unit_has_no_site_and_names_the_pattern() -> None:
    sites, fixed = Rules(skip=("stem*",)).sites([unit(4, name="stem"), unit(6, name="body")])
    assert [site.name for site in sites] == ["body"]
    assert [(entry.name, entry.reason) for entry in fixed] == [("stem", "skipped by the pattern 'stem*'")]


def test_a_pattern_that_meets_any_member_skips_the_whole_unit(zoo: Callable[[str], Specimen]) -> None:
    sites, _ = Rules(skip=("*.shortcut.*",)).sites(zoo("residual").anatomy.units)
    # 3.shortcut.0 reads the stream 0.0 and writes the stream 3.second.0
    assert [site.name for site in sites] == ["2.first.0", "3.first.0"]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"but 'head' matches none: `amc inspect` lists the names"):
        Rules(skip=("conv", "head")).sites([unit(4)])


def test_an_empty_unit_list_has_no_sites() -> None:
    assert Rules().sites([]) == ([], [])


# Sites


def test_a_site_refuses_unordered_choices() -> None:
    with pytest.raises(ValueError, match="a site needs ordered, distinct choices, but 'conv' has"):
        WidthSite.of("conv", 4, [3, 1])


def test_a_site_refuses_to_be_without_choices() -> None:
    with pytest.raises(ValueError, match="a site needs ordered, distinct choices"):
        WidthSite.of("conv", 4, [])


@given(ratio=RATIOS, among=st.sets(st.integers(0, 9), min_size=1))
def test_the_nearest_choice_is_no_farther_than_any_other(ratio: float, among: set[int]) -> None:
    site = WidthSite.of("conv", 10, range(1, 11))
    index = site.nearest(ratio, np.asarray(sorted(among)))
    assert index in among
    assert abs(site.choices[index].ratio - ratio) == min(abs(site.choices[i].ratio - ratio) for i in among)


def test_the_lighter_choice_wins_a_tie() -> None:
    site = WidthSite.of("conv", 4, [1, 2])
    assert site.nearest(0.375, np.asarray([0, 1])) == 0
