"""Selections and refits: against brute force on one layer, against their patterns on whole networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envs.compression.compress import Compressor
from envs.compression.names import SELECTIONS
from envs.compression.settings import CompressionSettings
from envs.compression.sparsify import refit, selection_named
from envs.space.patterns import PatternMismatch, best_mask, refusal, unfit, verify_network
from envs.space.policy import PolicyMismatch
from hw_profiles.patterns import Pattern, parse_pattern, unstructured

if TYPE_CHECKING:
    from tests.conftest import Specimen

TWO_FOUR = Pattern(keep=2, group=4)
PATTERNS = [TWO_FOUR, Pattern(keep=1, group=2), unstructured(0.3)]


def layer(seed: int, groups: int = 1, inputs: int = 8, kernel: int = 2, outputs: int = 5) -> tuple[Tensor, Tensor]:
    """Weights [G, n, o] and a curvature [G, n, n] of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    n = inputs * kernel
    x = torch.randn(groups, 60, n, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(groups, n, n, generator=generator, dtype=torch.float64)
    curvature = x.transpose(1, 2) @ x / 60 + 0.01 * torch.eye(n)
    return torch.randn(groups, n, outputs, generator=generator, dtype=torch.float64), curvature


def damage(new: Tensor, old: Tensor, curvature: Tensor) -> float:
    change = new - old
    return float(((curvature @ change) * change).sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", list(SELECTIONS))
def test_a_selection_keeps_exactly_what_its_pattern_allows(name: str, pattern: Pattern) -> None:
    weights, curvature = layer(0, groups=2)
    sparse = selection_named(name)(weights, curvature, pattern, 2)
    assert not sparse.weights[~sparse.mask].any()
    each = [pattern.allowed(weights[0].numel())] * 2
    total = pattern.allowed(weights.numel())
    assert int(sparse.mask.sum()) in (total, sum(each))
    if pattern.structured:
        again = best_mask(sparse.mask.double(), pattern, 2)
        assert torch.equal(again, sparse.mask)  # every group holds N of M


@given(st.integers(0, 1000), st.sampled_from(PATTERNS))
def test_the_refit_is_the_least_squares_solution_on_what_stays(seed: int, pattern: Pattern) -> None:
    weights, curvature = layer(seed)
    sparse = selection_named("magnitude")(weights, curvature, pattern, 2)
    found = refit(sparse, weights, curvature)[0]
    root = torch.linalg.cholesky(curvature[0]).T
    for output in range(weights.shape[2]):
        stays = sparse.mask[0, :, output]
        best = torch.linalg.lstsq(root[:, stays], root @ weights[0, :, output]).solution
        torch.testing.assert_close(found[stays, output], best, rtol=1e-6, atol=1e-6)
        assert not found[~stays, output].any()


def test_on_the_whole_a_sweep_does_less_damage_than_magnitude_and_the_refit_less_than_the_sweep() -> None:
    total = {"magnitude": 0.0, "sweep": 0.0, "refit": 0.0}
    for seed in range(20):
        weights, curvature = layer(seed)
        swept = selection_named("sparsegpt")(weights, curvature, TWO_FOUR, 2)
        plain = selection_named("magnitude")(weights, curvature, TWO_FOUR, 2).weights
        for name, new in (
            ("magnitude", plain),
            ("sweep", swept.weights),
            ("refit", refit(swept, weights, curvature)),
        ):
            total[name] += damage(new, weights, curvature)
    assert total["refit"] < total["sweep"] < total["magnitude"]


def compressor(specimen: Specimen, repair: str, selection: str = "magnitude") -> Compressor:
    anatomy = specimen.anatomy
    names = [entry.name for entry in anatomy.family.dense.layers if entry.has_weight]
    sparse = [name for name in names if not unfit(specimen.network, anatomy.graph, name)]
    chosen = CompressionSettings(
        images=24, positions=8, quick_images=24, repair=repair, importance="l1", selection=selection
    )
    chunks = torch.split(specimen.inputs(24), 12)
    return Compressor(specimen.network, anatomy.graph, anatomy.family, anatomy.units, chunks, chosen, sparse=sparse)


def legal(specimen: Specimen, kept: dict[str, int], pattern: Pattern) -> dict[str, str]:
    """The pattern on every layer that can take it at these widths."""
    family = specimen.anatomy.family
    counts = [kept.get(name, int(full)) for name, full in zip(family.units, family.channels, strict=True)]
    layout = family.at(torch.tensor(counts).numpy())
    fits = [
        a.name
        for a in layout.layers
        if a.has_weight and not unfit(specimen.network, specimen.anatomy.graph, a.name) and not refusal(a, pattern)
    ]
    return dict.fromkeys(fits, str(pattern))


@pytest.mark.parametrize("repair", ["none", "layerwise", "sequential"])
def test_every_network_keeps_to_its_patterns_beside_pruned_channels(specimen: Specimen, repair: str) -> None:
    made = compressor(specimen, repair)
    kept = {unit.name: unit.granule * max(1, len(unit.granules) * 2 // 3) for unit in specimen.anatomy.units}
    patterns = legal(specimen, kept, Pattern(keep=1, group=2))
    small = made.compress(made.policy(kept, patterns)).network
    verify_network(small, patterns)
    with torch.no_grad():
        assert torch.isfinite(small(specimen.inputs(3))).all()


@pytest.mark.parametrize("repair", ["none", "layerwise", "sequential"])
@pytest.mark.parametrize("selection", list(SELECTIONS))
def test_a_depthwise_layer_of_which_channels_went_keeps_to_a_density(
    stacked: Callable[[tuple[str, ...], int], Specimen], repair: str, selection: str
) -> None:
    specimen = stacked(("inverted",), 4)
    kept = {unit.name: unit.granule * max(1, len(unit.granules) - 1) for unit in specimen.anatomy.units}
    patterns = legal(specimen, kept, parse_pattern("unstructured:0.25"))
    made = compressor(specimen, repair, selection)
    verify_network(made.compress(made.policy(kept, patterns)).network, patterns)


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from(["conv", "identity", "inverted", "grouped", "gate", "dense"]), min_size=1, max_size=2),
    st.integers(4, 6),
    st.sampled_from(["2:4", "1:3", "unstructured:0.25"]),
    st.sampled_from(list(SELECTIONS)),
    st.sampled_from(["none", "layerwise", "sequential"]),
    st.randoms(use_true_random=False),
)
def test_random_networks_keep_to_random_patterns(
    stacked: Callable[[tuple[str, ...], int], Specimen],
    kinds: list[str],
    width: int,
    text: str,
    selection: str,
    repair: str,
    random: st.DataObject,
) -> None:
    specimen = stacked(tuple(kinds), width)
    made = compressor(specimen, repair, selection)
    draw = random.randint  # type: ignore[attr-defined]
    kept = {u.name: u.granule * draw(1, len(u.granules)) for u in specimen.anatomy.units}
    patterns = legal(specimen, kept, parse_pattern(text))
    small = made.compress(made.policy(kept, patterns)).network
    verify_network(small, patterns)


def test_repair_makes_up_for_what_a_pattern_takes(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("squeeze_excite")
    inputs = specimen.inputs(64, seed=1)
    errors = {}
    for repair in ("none", "sequential"):
        made = compressor(specimen, repair)
        patterns = legal(specimen, {}, TWO_FOUR)
        assert patterns
        small = made.compress(made.policy({}, patterns)).network
        with torch.no_grad():
            errors[repair] = float((small(inputs) - specimen.network(inputs)).square().mean())
    assert errors["sequential"] < errors["none"]


def test_a_pattern_that_does_not_fit_is_refused_with_the_reason(zoo: Callable[[str], Specimen]) -> None:
    made = compressor(zoo("mobile_v1"), "none")
    first = made.policy({}).layers[0].name
    with pytest.raises(PolicyMismatch, match="fewer than the 4"):
        made.compress(made.policy({}, {first: "2:4"}))


def test_an_applied_policy_keeps_to_its_patterns(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("squeeze_excite")
    made, patterns = compressor(specimen, "none"), legal(specimen, {}, TWO_FOUR)
    policy = made.policy({}, patterns)
    verify_network(policy.apply(specimen.network), patterns)
    with pytest.raises(PatternMismatch):
        verify_network(specimen.network, patterns)
