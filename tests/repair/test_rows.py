"""Gathered rows times weights are the layer's outputs; regressions over rows equal the textbook's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from envs.regression.ridge import add, solve, sums_of
from envs.regression.rows import (
    Positions,
    as_weight,
    can_gather,
    draw_positions,
    gather_inputs,
    output_places,
    take_outputs,
    weight_rows,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_rows_give_the_outputs(module: nn.Module, inputs: Tensor, per_image: int) -> None:
    """rows @ weights + bias = outputs at the sampled positions, in double precision."""
    module, inputs = module.double(), inputs.double()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")  # torch copies the input
        outputs = module(inputs)
    places = output_places(module, tuple(outputs.shape))
    at = draw_positions(len(inputs), places, per_image, generator())
    product = gather_inputs(module, inputs, at) @ weight_rows(module)
    got = product.transpose(0, 1).flatten(1)
    if isinstance(module.bias, Tensor):
        got = got + module.bias.detach()
    torch.testing.assert_close(got, take_outputs(module, outputs, at))


def geometries(dimensions: int) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of a convolution; `same` padding only exists without a stride."""
    sizes = st.tuples(*[st.integers(1, 3)] * dimensions)
    free = st.fixed_dictionaries(
        {
            "kernel_size": sizes,
            "stride": sizes,
            "dilation": st.tuples(*[st.integers(1, 2)] * dimensions),
            "padding": st.tuples(*[st.integers(0, 2)] * dimensions) | st.just("valid"),
            "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
            "bias": st.booleans(),
        }
    )
    same = st.fixed_dictionaries({"kernel_size": sizes, "padding": st.just("same"), "bias": st.booleans()})
    return free | same


CHANNELS = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))  # groups, inputs and outputs of each


@given(geometry=geometries(2), channels=CHANNELS, height=st.integers(5, 8), width=st.integers(5, 8))
def test_rows_of_a_convolution_give_its_outputs(
    geometry: dict[str, Any], channels: tuple[int, int, int], height: int, width: int
) -> None:
    groups, inputs, outputs = channels
    layer = nn.Conv2d(groups * inputs, groups * outputs, groups=groups, **geometry)
    assert_rows_give_the_outputs(layer, torch.randn(2, groups * inputs, height, width, generator=generator()), 7)


@given(geometry=geometries(1), channels=CHANNELS, length=st.integers(5, 9))
def test_rows_of_a_one_dimensional_convolution_give_its_outputs(
    geometry: dict[str, Any], channels: tuple[int, int, int], length: int
) -> None:
    groups, inputs, outputs = channels
    layer = nn.Conv1d(groups * inputs, groups * outputs, groups=groups, **geometry)
    assert_rows_give_the_outputs(layer, torch.randn(2, groups * inputs, length, generator=generator()), 4)


def test_rows_of_a_depthwise_convolution_give_its_outputs() -> None:
    assert_rows_give_the_outputs(nn.Conv2d(6, 6, 3, 2, 1, groups=6), torch.randn(2, 6, 7, 7), 5)


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 2, 4, 5)], ids=["[B,F]", "[B,T,F]", "[B,H,W,F]"])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_of_a_linear_layer_give_its_outputs(shape: tuple[int, ...], bias: bool) -> None:
    assert_rows_give_the_outputs(nn.Linear(5, 6, bias=bias), torch.randn(*shape, generator=generator()), 3)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(3, 5, 2), nn.Linear(4, 3)])
def test_weights_come_back_from_their_rows(layer: nn.Module) -> None:
    assert torch.equal(as_weight(layer, weight_rows(layer).double()), layer.get_parameter("weight"))


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(3, 4, 2), nn.Conv3d(3, 4, 2), nn.BatchNorm2d(3)])
def test_layers_that_cannot_be_gathered_say_so(layer: nn.Module) -> None:
    assert not can_gather(layer)


# Positions


@given(images=st.integers(1, 4), places=st.integers(1, 30), wanted=st.integers(1, 30), seed=st.integers(0, 9))
def test_positions_of_an_image_are_distinct_and_as_many_as_wanted(
    images: int, places: int, wanted: int, seed: int
) -> None:
    at: Positions = draw_positions(images, places, wanted, generator(seed))
    pairs = set(zip(at.image.tolist(), at.place.tolist(), strict=True))
    assert len(pairs) == len(at.image) == images * min(places, wanted)
    assert {image for image, _ in pairs} == set(range(images))
    assert all(0 <= place < places for _, place in pairs)


def test_positions_differ_from_image_to_image() -> None:
    at = draw_positions(2, 1000, 5, generator())
    assert at.place[:5].tolist() != at.place[5:].tolist()


# Ridge regression


def problem(groups: int, count: int, inputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that are not centered, residuals, and prior weights."""
    draw = generator(seed)
    x = torch.randn(groups, count, inputs, generator=draw, dtype=torch.float64) + 0.7
    r = torch.randn(groups, count, 3, generator=draw, dtype=torch.float64) - 0.4
    return x, r, torch.randn(groups, inputs, 3, generator=draw, dtype=torch.float64)


def textbook(x: Tensor, r: Tensor, ridge: float, intercept: bool) -> tuple[Tensor, Tensor]:
    """Change of weights and intercept of one group, by least squares with the penalty as further rows."""
    count, inputs = x.shape
    centered = x - x.mean(0) if intercept else x
    root = (ridge * centered.square().sum() / count / inputs).sqrt()
    ones = torch.full((count, 1), float(intercept), dtype=x.dtype)
    rows = torch.cat([torch.cat([x, ones], 1) / count**0.5, torch.eye(inputs, inputs + 1, dtype=x.dtype) * root])
    target = torch.cat([r / count**0.5, torch.zeros(inputs, r.shape[1], dtype=x.dtype)])
    solution = torch.linalg.lstsq(rows, target, driver="gelsd").solution
    return solution[:inputs], solution[inputs]


SHAPES = {"groups": st.integers(1, 3), "count": st.integers(3, 25), "inputs": st.integers(1, 8)}


@given(**SHAPES, ridge=st.floats(1e-4, 10), intercept=st.booleans(), gram=st.booleans(), seed=st.integers(0, 99))
def test_a_fit_equals_least_squares_with_the_penalty_as_rows(
    groups: int, count: int, inputs: int, ridge: float, intercept: bool, gram: bool, seed: int
) -> None:
    x, r, prior = problem(groups, count, inputs, seed)
    fit = solve(sums_of(x, r, gram=gram), prior, ridge, intercept=intercept)
    for group in range(groups):
        change, shift = textbook(x[group], r[group], ridge, intercept)
        torch.testing.assert_close(fit.weights[group], prior[group] + change, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(fit.shift[group], shift, atol=1e-7, rtol=1e-6)


@given(**SHAPES, ridge=st.floats(1e-6, 10), intercept=st.booleans(), seed=st.integers(0, 99))
def test_the_fit_from_rows_equals_the_fit_from_their_gram_matrix(
    groups: int, count: int, inputs: int, ridge: float, intercept: bool, seed: int
) -> None:
    x, r, prior = problem(groups, count, inputs, seed)
    primal = solve(sums_of(x, r), prior, ridge, intercept=intercept)
    dual = solve(sums_of(x, r, gram=False), prior, ridge, intercept=intercept)
    torch.testing.assert_close(primal.weights, dual.weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(primal.shift, dual.shift, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gram", [True, False])
def test_chunks_add_up_to_the_whole(gram: bool) -> None:
    x, r, prior = problem(2, 20, 5, seed=1)
    parts = [sums_of(x[:, a:b], r[:, a:b], gram=gram) for a, b in [(0, 3), (3, 11), (11, 20)]]
    whole, added = (solve(s, prior, 0.01, intercept=True) for s in (sums_of(x, r, gram=gram), add(parts)))
    torch.testing.assert_close(added.weights, whole.weights)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
def test_features_that_are_always_zero_leave_the_prior(gram: bool, intercept: bool) -> None:
    _, r, prior = problem(1, 6, 4, seed=2)
    fit = solve(sums_of(torch.zeros(1, 6, 4), r.float(), gram=gram), prior, 0.01, intercept=intercept)
    torch.testing.assert_close(fit.weights, prior)


@pytest.mark.parametrize("gram", [True, False])
def test_a_ridge_of_nearly_zero_still_has_a_solution(gram: bool) -> None:
    # Fewer rows than columns, and centered: the Gram matrix is singular in both forms.
    x, r, prior = problem(1, 4, 6, seed=3)
    fit = solve(sums_of(x, r, gram=gram), prior, 1e-30, intercept=True)
    assert fit.weights.isfinite().all()
    assert ((x @ (fit.weights - prior) + fit.shift[:, None] - r).abs() < 1e-3).all()


def test_features_that_are_not_finite_are_refused() -> None:
    x, r, prior = problem(1, 6, 4, seed=4)
    x[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="calibration features must be finite"):
        solve(sums_of(x, r), prior, 0.01, intercept=False)


def test_no_chunk_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one chunk of rows, but got none"):
        add([])


def test_features_that_hardly_vary_have_a_fit_in_half_precision_too() -> None:
    draw = torch.Generator().manual_seed(0)
    x = (30 + 0.05 * torch.randn(2, 64, 9, generator=draw)).to(torch.bfloat16)
    fit = solve(sums_of(x, torch.randn(2, 64, 1, generator=draw)), torch.zeros(2, 9, 1), 0.03, intercept=True)
    assert fit.weights.isfinite().all()
