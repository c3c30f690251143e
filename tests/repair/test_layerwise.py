"""Layer-wise repair: one factorization gives the exact fit of every width."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.regression import statistics
from envs.regression.ridge import Fit
from envs.regression.rows import draw_positions, gather_inputs, output_places, weight_rows
from envs.regression.statistics import Sampling, energy_of, gram_of, input_moments, pack_moments, totals, unpack_moments
from envs.repair.bank import LayerwiseBank

if TYPE_CHECKING:
    from tests.conftest import Specimen

EVERYWHERE = Sampling(positions=10_000)


def bank_of(layer: nn.Module, inputs: Tensor, ridge: float = 0.01) -> LayerwiseBank:
    """The bank of a network of one layer, from all positions."""
    network = nn.Sequential(layer)
    return LayerwiseBank(network, input_moments(network, ["0"], [inputs[:5], inputs[5:]], EVERYWHERE), ridge)


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """A convolution, a linear layer, and correlated inputs with a mean for each."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=draw)
    flat = torch.randn(40, 6, generator=draw) @ mix + 0.5
    maps = torch.einsum("bchw,cd->bdhw", torch.randn(12, 6, 5, 5, generator=draw), mix) + 0.5
    return {"conv": (nn.Conv2d(6, 4, 3, padding=1), maps), "linear": (nn.Linear(6, 4), flat)}


def exact(layer: nn.Module, inputs: Tensor, places: list[int], intercept: bool) -> tuple[Tensor, Tensor]:
    """Least squares by numpy from the kept inputs to the layer's outputs; weights [k, o] and shift [o]."""
    with torch.no_grad():
        shape = tuple(layer(inputs).shape)
    at = draw_positions(len(inputs), output_places(layer, shape), 10_000, torch.Generator())
    rows = gather_inputs(layer, inputs, at)[0].double()
    target = rows @ weight_rows(layer)[0].double()
    kernel = rows.shape[1] // inputs.shape[1]
    columns = [place * kernel + k for place in places for k in range(kernel)]
    ones = torch.full((len(rows), 1), float(intercept), dtype=torch.float64)
    solution = np.linalg.lstsq(torch.cat([rows[:, columns], ones], 1).numpy(), target.numpy(), rcond=None)[0]
    return torch.from_numpy(solution[:-1]), torch.from_numpy(solution[-1])


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_nested_factor_gives_the_direct_fit_at_every_width(kind: str, intercept: bool) -> None:
    layer, inputs = layers()[kind]
    bank, order = bank_of(layer, inputs), [3, 0, 5, 2, 1, 4]
    for width in range(1, 7):
        kept = torch.tensor(sorted(order[:width]))
        nested = bank.fit("0", kept, order, intercept=intercept)
        direct = bank.fit("0", kept, None, intercept=intercept)
        torch.testing.assert_close(nested.weights, direct.weights, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(nested.shift, direct.shift, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("intercept", [True, False])
def test_with_hardly_any_ridge_the_fit_is_numpys_least_squares(kind: str, intercept: bool) -> None:
    layer, inputs = layers()[kind]
    bank = bank_of(layer, inputs, ridge=1e-9)
    for places in ([0, 3], [0, 1, 2, 4, 5]):
        fit = bank.fit("0", torch.tensor(places), None, intercept=intercept)
        weights, shift = exact(layer, inputs, places, intercept)
        torch.testing.assert_close(fit.weights[0], weights, atol=2e-3, rtol=1e-2)
        torch.testing.assert_close(fit.shift[0], shift, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("intercept", [True, False])
def test_a_grouped_layer_is_fitted_like_its_groups_one_by_one(intercept: bool) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(6, 4, 3, groups=2, bias=False), torch.randn(12, 6, 5, 5) + 0.5
    fit = bank_of(layer, inputs).fit("0", torch.tensor([0, 2, 3, 5]), None, intercept=intercept)  # 0 and 2 of each
    for group in range(2):
        part = nn.Conv2d(3, 2, 3, bias=False)
        part.weight = nn.Parameter(layer.weight[2 * group : 2 * group + 2].detach())
        alone = bank_of(part, inputs[:, 3 * group : 3 * group + 3]).fit(
            "0", torch.tensor([0, 2]), None, intercept=intercept
        )
        torch.testing.assert_close(fit.weights[group], alone.weights[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(fit.shift[group], alone.shift[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("intercept", [True, False])
def test_layers_too_wide_for_a_gram_matrix_get_the_same_fit_from_rows(
    kind: str, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = layers()[kind]
    kept = torch.tensor([0, 2, 5])
    from_gram = bank_of(layer, inputs).fit("0", kept, None, intercept=intercept)
    monkeypatch.setattr(statistics, "GRAM_LIMIT", 3)
    from_rows = bank_of(layer, inputs).fit("0", kept, None, intercept=intercept)
    torch.testing.assert_close(from_rows.weights, from_gram.weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(from_rows.shift, from_gram.shift, atol=1e-5, rtol=1e-4)


def test_inputs_that_are_not_the_best_scored_ones_are_fitted_as_well() -> None:
    # a policy may come from another importance than the one the factor was ordered by
    layer, inputs = layers()["conv"]
    bank, kept = bank_of(layer, inputs), torch.tensor([1, 2])
    ordered = bank.fit("0", kept, [3, 0, 5, 2, 1, 4], intercept=True)
    assert torch.equal(ordered.weights, bank.fit("0", kept, None, intercept=True).weights)


def test_keeping_every_input_keeps_the_weights() -> None:
    layer, inputs = layers()["conv"]
    fit = bank_of(layer, inputs).fit("0", torch.arange(6), list(range(6)), intercept=True)
    torch.testing.assert_close(fit.weights, weight_rows(layer).double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fit.shift, torch.zeros(1, 4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_infinite_ridge_keeps_the_sliced_weights() -> None:
    layer, inputs = layers()["linear"]
    fit: Fit = bank_of(layer, inputs, ridge=1e9).fit("0", torch.tensor([1, 4]), [4, 1, 0, 2, 3, 5], intercept=False)
    torch.testing.assert_close(fit.weights, weight_rows(layer).double()[:, [1, 4]], atol=1e-6, rtol=1e-5)


# Moments


@pytest.mark.parametrize("limit", [10_000, 1], ids=["gram", "rows"])
def test_moments_come_back_from_a_file(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "GRAM_LIMIT", limit)
    layer, inputs = layers()["conv"]
    network = nn.Sequential(layer)
    moments = input_moments(network, ["0"], [inputs[:5], inputs[5:]], Sampling(positions=4, seed=3))
    back = unpack_moments({name: tensor.clone() for name, tensor in pack_moments(moments).items()})
    for ridge in (0.01, 1.0):
        fits = [
            LayerwiseBank(network, m, ridge).fit("0", torch.tensor([0, 3]), None, intercept=True)
            for m in (moments, back)
        ]
        assert torch.equal(fits[0].weights, fits[1].weights)
    torch.testing.assert_close(energy_of(totals(moments)["0"]), energy_of(totals(back)["0"]))


def test_a_gram_matrix_of_a_layer_that_kept_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "GRAM_LIMIT", 3)
    layer, inputs = layers()["conv"]
    with pytest.raises(ValueError, match="a Gram matrix needs at most 3 columns, but got 54"):
        gram_of(totals(input_moments(nn.Sequential(layer), ["0"], [inputs], EVERYWHERE))["0"])


# In the compressor


@pytest.mark.parametrize(
    "name", ["chain", "residual", "dense", "mobile_v1", "grouped", "squeeze_excite", "convnext", "branching"]
)
def test_layerwise_repair_brings_features_nearer_to_the_dense_ones(name: str, zoo: Callable[[str], Specimen]) -> None:
    # One unit at a time: then every consumer still reads dense features, and least squares must gain.
    specimen = zoo(name)
    anatomy, inputs = specimen.anatomy, specimen.inputs(64)
    settings = CompressionSettings(importance="l1", repair="layerwise", positions=64, ridge=1e-4)
    compressor = Compressor(
        specimen.network, anatomy.graph, anatomy.family, anatomy.units, torch.split(inputs, 16), settings
    )
    for unit in anatomy.units:
        policy = compressor.policy({unit.name: unit.granule * (len(unit.granules) // 2)})
        for consumer in {member.module for member in unit.role("consumer")}:
            dense = output_of(specimen.network, consumer, inputs)
            errors = []
            for repair in ("none", "layerwise"):
                network = compressor.compress(policy, repair).network
                errors.append(consumer_error(network, consumer, inputs, dense, anatomy.graph.folds().get(consumer)))
            assert errors[1] <= errors[0] * (1 + 1e-4)


def output_of(network: nn.Module, name: str, inputs: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        network(inputs)
    handle.remove()
    return kept[0]


def consumer_error(network: nn.Module, name: str, inputs: Tensor, dense: Tensor, norm: str | None) -> float:
    """Squared distance to the dense output; a shift that went to the normalization behind counts as given."""
    error = output_of(network, name, inputs) - dense
    if norm is not None and isinstance(network.get_submodule(norm), nn.BatchNorm2d):
        error = error - error.mean(dim=(0, 2, 3), keepdim=True)
    return float(error.square().sum())
