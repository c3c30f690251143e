"""Trains the network of the embedded task `digits` and writes `amc/models/digits.safetensors`.

Command: `.venv/bin/python -m experiments.demo.train_digits` (seed 0, one thread, half a minute). Only the 600
training images are learned from; the file's metadata hold the accuracies, the seed and the command.
"""

import json
import math
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.tasks.metrics import top1
from amc.tasks.models.digits import WEIGHTS, DigitsNet, upsample
from amc.tasks.splits import ArraySplit, Split, chunks, load_digits

SEED = 0
EPOCHS = 80
BATCH = 50
LEARNING_RATE = 0.05
COMMAND = "python -m experiments.demo.train_digits"


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates by up to 12 degrees, scales by up to 10 % and shifts by up to 1.5 pixels, each image by itself."""
    count, _, height, width = images.shape
    draws = torch.rand(4, count, generator=generator) * 2 - 1
    angle, scale = draws[0] * math.radians(12), 1 + 0.1 * draws[1]
    shift_x, shift_y = draws[2] * 3 / width, draws[3] * 3 / height
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cosine, -sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(network: nn.Module, split: Split, seed: int) -> None:
    """Trains by SGD with momentum and a one-cycle learning rate; every draw comes from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * len(chunks(len(split), BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(split), generator=generator).tolist()
        for part in chunks(len(split), BATCH):
            images, classes = split.batch(order[part.start : part.stop])
            optimizer.zero_grad()
            scores = network(distort(images, generator))
            torch.autograd.backward(F.cross_entropy(scores, classes, label_smoothing=0.05))
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """The fraction of a split that the network classifies correctly."""
    images, classes = split.batch(range(len(split)))
    return float(top1(network(images), classes).mean())


def main(path: Path = WEIGHTS) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)  # the initial weights
    training, validation, test = (ArraySplit(x, y, upsample) for x, y in load_digits())
    network = DigitsNet()
    train(network, training, SEED)
    metadata = {
        "command": COMMAND,
        "seed": SEED,
        "torch": torch.__version__,
        "accuracy": {
            "validation": round(accuracy(network, validation), 4),
            "test": round(accuracy(network, test), 4),
        },
    }
    # One entry, because safetensors writes several in random order, and the file should be reproducible.
    safetensors.torch.save_file(network.state_dict(), path, {"training": json.dumps(metadata)})
    print(path, metadata)


if __name__ == "__main__":
    main()
