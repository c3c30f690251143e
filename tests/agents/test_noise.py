"""The laws of exploration noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.noise import along, decayed_sigma, normal_quantile, truncated_normal

units = st.floats(0.0, 1.0)
anything = st.floats(allow_nan=False, allow_infinity=False)
sigmas = st.floats(0.0, allow_nan=False, allow_infinity=False)


@given(mean=anything, sigma=sigmas, uniform=units)
def test_noise_stays_within_the_borders_whatever_the_width(mean: float, sigma: float, uniform: float) -> None:
    assert 0.0 <= truncated_normal(mean, sigma, uniform) <= 1.0


@given(mean=units, uniform=units, sigma=st.floats(0.0, 1e-6))
def test_narrow_noise_gives_the_mean(mean: float, uniform: float, sigma: float) -> None:
    assert truncated_normal(mean, sigma, uniform) == pytest.approx(mean, abs=40 * sigma)


@given(mean=units, sigma=st.floats(1e-3, 1e5), uniforms=st.tuples(units, units))
def test_noise_grows_with_the_quantile(mean: float, sigma: float, uniforms: tuple[float, float]) -> None:
    low, high = sorted(uniforms)
    assert truncated_normal(mean, sigma, low) <= truncated_normal(mean, sigma, high) + 1e-9


@given(mean=units, sigma=st.floats(1e-3, 1e5), uniform=units)
def test_noise_mirrors_at_one_half(mean: float, sigma: float, uniform: float) -> None:
    mirrored = 1 - truncated_normal(1 - mean, sigma, 1 - uniform)
    assert truncated_normal(mean, sigma, uniform) == pytest.approx(mirrored, abs=1e-6)


def test_noise_has_the_moments_of_a_truncated_normal() -> None:
    # Mean of a normal around 0 with sigma 0.5, truncated to [0, 1]: sigma (phi(0) - phi(2)) / (Phi(2) - Phi(0)).
    draws = [truncated_normal(0.0, 0.5, (i + 0.5) / 10000) for i in range(10000)]
    assert np.mean(draws) == pytest.approx(0.5 * (0.398942 - 0.053991) / 0.477250, abs=1e-4)


@pytest.mark.parametrize(
    "arguments", [(float("nan"), 0.1, 0.5), (0.5, -1.0, 0.5), (0.5, float("nan"), 0.5), (0.5, 0.1, 2.0)]
)
def test_noise_refuses_impossible_arguments(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        truncated_normal(*arguments)


@given(start=st.floats(0.0, 1.0), decay=st.floats(0.01, 1.0), floor=st.floats(0.0, 0.5), episode=st.integers(0, 5000))
def test_sigma_shrinks_to_its_floor(start: float, decay: float, floor: float, episode: int) -> None:
    now, later = (decayed_sigma(start, decay, floor, e) for e in (episode, episode + 1))
    assert floor <= later <= now <= max(start, floor)


@given(draws=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(-5.0, 5.0)), min_size=1, max_size=8))
def test_noise_along_the_budget_is_orthogonal_to_the_shares(draws: list[tuple[float, float]]) -> None:
    uniforms, shares = zip(*draws, strict=True)
    normal = [normal_quantile(uniform) for uniform in along(uniforms, shares)]
    assert np.dot(normal, shares) == pytest.approx(0.0, abs=1e-6 * (1 + np.abs(shares).max()))


def test_noise_along_no_shares_stays_as_drawn() -> None:
    assert along([0.1, 0.5, 0.8], [0.0, 0.0, 0.0]) == pytest.approx((0.1, 0.5, 0.8))


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_quantiles_are_finite_at_the_borders(uniform: float) -> None:
    assert np.isfinite(normal_quantile(uniform))


@given(uniform=st.floats(1e-6, 1 - 1e-6))
def test_quantiles_mirror_at_one_half(uniform: float) -> None:
    assert normal_quantile(uniform) == pytest.approx(-normal_quantile(1 - uniform), rel=1e-6, abs=1e-9)
