"""2:4 weights as torch's sparse kernels want them."""

from __future__ import annotations

import pytest
import torch

from amc.export.semi_structured import TOLERANCE, as_matrix, difference_on_cuda
from envs.regression.rows import as_weight, kernel_size, weight_rows
from envs.space.patterns import best_mask
from hw_profiles.patterns import parse_pattern


def pruned(layer: torch.nn.Conv2d | torch.nn.Linear) -> torch.Tensor:
    """The layer's weight, the two largest of every four consecutive inputs kept."""
    rows = weight_rows(layer).double()
    mask = best_mask(rows.abs(), parse_pattern("2:4"), kernel_size(layer))
    return as_weight(layer, rows * mask).detach()


LAYERS: dict[str, torch.nn.Conv2d | torch.nn.Linear] = {
    "linear": torch.nn.Linear(128, 64),
    "1x1": torch.nn.Conv2d(64, 32, 1),
    "3x3": torch.nn.Conv2d(64, 32, 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_four_consecutive_columns_of_the_matrix_are_one_group(name: str) -> None:
    groups = as_matrix(pruned(LAYERS[name])).reshape(len(LAYERS[name].weight), -1, 4)
    assert ((groups != 0).sum(dim=2) == 2).all()


def test_the_matrix_is_the_convolution_on_patches_of_whole_pixels() -> None:
    layer, image = torch.nn.Conv2d(8, 5, 3, bias=False), torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        expected = layer(image).flatten()
    assert torch.allclose(as_matrix(layer.weight) @ image[0].movedim(0, -1).flatten(), expected, atol=1e-5)


def test_without_cuda_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert difference_on_cuda(pruned(LAYERS["linear"])) is None


@pytest.mark.cuda
@pytest.mark.parametrize("name", LAYERS)
def test_sparse_products_agree_with_dense_ones(name: str) -> None:
    difference = difference_on_cuda(pruned(LAYERS[name]))
    assert difference is not None
    assert difference <= TOLERANCE
