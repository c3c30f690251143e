"""The embedded task `cluttered-digits`: its images and its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from amc.tasks.cluttered import COUNTS, SIZE, clutter, cluttered_digits, enlarged
from amc.tasks.models.cluttered import WEIGHTS
from amc.tasks.splits import load_digits, subset
from amc.tasks.task import load_task
from experiments.demo.train import accuracy


def test_images_are_the_same_every_time_and_differ_by_seed() -> None:
    splits = cluttered_digits()
    first, again, other = splits[0], cluttered_digits()[0], cluttered_digits(1)[0]
    assert torch.equal(torch.as_tensor(first.inputs), torch.as_tensor(again.inputs))
    assert not torch.equal(torch.as_tensor(first.inputs), torch.as_tensor(other.inputs))
    inputs, targets = first.batch(range(8))
    assert (inputs.shape, inputs.dtype) == ((8, 1, SIZE, SIZE), torch.float32)
    assert inputs.min() >= 0
    assert 0.9 < inputs.max() <= 1
    assert targets.tolist() == load_digits()[0][1][:8].tolist()
    assert tuple(len(split) for split in splits) == COUNTS


def test_every_image_shows_its_digit_whole() -> None:
    digits = enlarged(torch.from_numpy(load_digits()[0][0][:20]))
    images = clutter(digits, torch.arange(20), torch.Generator().manual_seed(0))
    windows = images.unfold(2, 16, 1).unfold(3, 16, 1)  # [20, 1, 17, 17, 16, 16]
    inside = (windows >= digits[:, :, None, None]).all(dim=-1).all(dim=-1)
    assert inside.flatten(1).any(dim=1).all()


@pytest.mark.parametrize(("images", "tolerance"), [(600, 0.02), pytest.param(4000, 0.002, marks=pytest.mark.slow)])
def test_the_shipped_weights_reach_the_accuracies_that_their_file_says(images: int, tolerance: float) -> None:
    task = load_task("cluttered-digits")
    with safe_open(WEIGHTS, "pt") as file:
        said = json.loads(file.metadata()["training"])["accuracy"]
    reached = accuracy(task.network, subset(task.validation, range(images)))
    assert reached == pytest.approx(said["validation"], abs=tolerance)
    stored = safetensors.torch.load_file(WEIGHTS)  # in half precision, computed with in single
    assert stored["classifier.weight"].dtype == torch.float16
    assert torch.equal(task.network.state_dict()["classifier.weight"], stored["classifier.weight"].float())


def test_it_brings_its_own_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave --data out"):
        load_task("cluttered-digits", data=tmp_path)
