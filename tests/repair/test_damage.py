"""Damage is measured on images that the fit did not see, however few there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc.config.search import load_config
from amc.scoring.draws import Draws
from envs.compression.compress import Compressor
from envs.compression.damage import (
    Batch,
    damage_images,
    divergence,
    measure_damage,
    output_error,
    output_rows,
    total_damage,
)
from envs.compression.settings import CompressionSettings
from envs.regression.shrinkage import FOLDS
from envs.space.rules import Rules
from envs.space.sites import Site
from envs.units.anatomy import dissect
from hw_profiles.layers import LayerShape, Layout

IMAGES, CHUNK, FRESH = 24, 6, 600
NO_TARGETS = torch.empty(0)


def images(count: int, seed: int) -> Tensor:
    """[count, 3, 6, 6] that differ from each other also in their means, as images do."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 6, 6, generator=draw) + torch.randn(count, 3, 1, 1, generator=draw)


def pooled() -> nn.Module:
    """A network whose last unit is read behind global pooling: one row per image."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 64, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()


def prepared(ridge: float | None) -> tuple[Compressor, Site, list[Tensor]]:
    """A compressor on few images, the site of the pooled unit, and the images in chunks."""
    network, chunks = pooled(), list(torch.split(images(IMAGES, 1), CHUNK))
    anatomy = dissect(network, chunks[0][:1])
    settings = CompressionSettings(importance="l1", positions=8, ridge=ridge)
    compressor = Compressor(network, anatomy.graph, anatomy.family, anatomy.units, chunks, settings)
    sites, _ = Rules().sites(anatomy.units)
    return compressor, next(site for site in sites if site.name == "2"), chunks


def error_on(compressor: Compressor, site: Site, kept: int, inputs: Tensor) -> float:
    """Output error of the network with one unit pruned and repaired on all calibration images."""
    small = compressor.compress(compressor.policy({site.name: kept}), "layerwise").network
    with torch.no_grad():
        return float(output_error(small(inputs), compressor.network(inputs), NO_TARGETS).mean())


@pytest.mark.parametrize("ridge", [0.03, None])
def test_damage_of_a_pooled_unit_is_that_on_fresh_images_not_that_on_repairs_own(ridge: float | None) -> None:
    compressor, site, chunks = prepared(ridge)
    batches = [Batch(chunk, NO_TARGETS, index % FOLDS) for index, chunk in enumerate(chunks)]
    curve = measure_damage(compressor, [site], batches, 4, {"error": output_error})["error"][0]
    assert curve.kept[1:3] == (22, 42)
    for kept, damage in zip(curve.kept[1:3], curve.damage[1:3], strict=True):
        fresh = error_on(compressor, site, kept, images(FRESH, 2))
        own = error_on(compressor, site, kept, torch.cat(chunks))
        assert 0.7 * fresh < damage < 1.8 * fresh  # a fit to half of the images is a little worse
        assert damage > 2 * own


@pytest.mark.parametrize("split", ["validation", "calibration"])
@pytest.mark.parametrize("calibration", [32, 64, 128, 600, 2063, 5000])
def test_nothing_is_judged_on_images_that_repair_sees(split: str, calibration: int) -> None:
    config = load_config(None, {"task": "digits", "reward_split": split})
    draws = Draws(config, calibration, 400)
    fitted, (role, judged) = set(draws.repair()), draws.audition()
    assert judged
    assert role == "validation" or not fitted & set(judged)
    assert split == "validation" or not fitted & set(draws.reward())
    assert len(fitted) >= min(config.compression.images, 3 * calibration // 4)


@pytest.mark.parametrize("repair", ["layerwise", "sequential"])
def test_where_few_images_tell_nothing_repair_does_no_harm(repair: str) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(64, 64), nn.Linear(64, 5)
    with torch.no_grad():
        first.weight.copy_(torch.eye(64))
    network = nn.Sequential(first, nn.ReLU(), last).eval()  # its channels are independent: none stands for another
    draw = torch.Generator().manual_seed(1)
    chunks, fresh = torch.split(torch.randn(24, 64, generator=draw), 6), torch.randn(FRESH, 64, generator=draw)
    anatomy = dissect(network, chunks[0][:1])

    def error(ridge: float | None, how: str) -> float:
        settings = CompressionSettings(importance="l1", ridge=ridge)
        compressor = Compressor(network, anatomy.graph, anatomy.family, anatomy.units, chunks, settings)
        small = compressor.compress(compressor.policy({"0": 32}), how).network
        with torch.no_grad():
            return float((small(fresh) - network(fresh)).square().mean())

    assert error(None, repair) < error(None, "none") < error(0.03, repair)


def language_model() -> Layout:
    """A layout that multiplies so much that its curves would take hours."""
    wide = LayerShape(name="wide", kind="linear", in_channels=30_000, out_channels=30_000, in_map=(16,), out_map=(16,))
    return Layout(layers=(wide,))


@pytest.mark.parametrize(
    ("outputs", "targets", "rows"),
    [
        ((1, 10), torch.zeros(1, dtype=torch.int64), 1),
        ((1, 128, 50_000), torch.zeros(1, 128, dtype=torch.int64), 128),
        ((1, 19, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64), 64),
        ((1, 80), torch.zeros(1, 80, dtype=torch.int64), 1),
        ((1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 64),
        ((1, 30, 384), torch.zeros(1), 1),
        ((1, 1), torch.zeros(1), 1),
    ],
    ids=["classes", "words", "segments", "labels", "pixels", "states", "value"],
)
def test_rows_of_outputs_are_told_by_the_targets(outputs: tuple[int, ...], targets: Tensor, rows: int) -> None:
    assert output_rows(outputs, targets) == rows


@pytest.mark.parametrize(("rows", "images"), [(1, 256), (16, 16), (128, 8)])
def test_a_large_network_is_judged_by_enough_rows_of_outputs_not_by_so_many_samples(rows: int, images: int) -> None:
    _, site, _ = prepared(None)
    assert damage_images(language_model(), [site] * 100, widths=10, max_images=512, rows=rows) == images


def test_many_scores_per_word_are_compared_in_single_precision_with_the_same_result() -> None:
    new, old, words = scores_of_words(tokens=8)
    few = [total_damage(divergence, new[:, k : k + 1], old[:, k : k + 1], words[:, k : k + 1]) for k in range(8)]
    assert total_damage(divergence, new, old, words) == pytest.approx(sum(few) / 8, abs=2e-5)


def test_of_many_words_with_many_scores_some_that_count_are_compared() -> None:
    new, old, words = scores_of_words(tokens=80)
    counts = torch.arange(80) >= 10
    new[:, ~counts] = float("nan")
    looked_at = torch.arange(10, 80, 3)  # 70 that count, at most 32: every third
    expected = total_damage(divergence, new[:, looked_at], old[:, looked_at], words[:, looked_at])
    assert total_damage(divergence, new, old, words, counts.expand(2, 80)) == pytest.approx(expected, rel=1e-6)


def scores_of_words(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """[2, tokens, 20,000] scores of a pruned and of the dense network, and [2, tokens] targets."""
    draw = torch.Generator().manual_seed(0)
    old = torch.randn(2, tokens, 20_000, generator=draw)
    new = old + 0.1 * torch.randn(2, tokens, 20_000, generator=draw)
    return new, old, torch.randint(20_000, (2, tokens), generator=draw)
