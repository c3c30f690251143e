"""Trains the network of the embedded task `cluttered-digits` and writes `amc/tasks/models/cluttered.safetensors`.

Command: `.venv/bin/python -m experiments.demo.train` (seed 0, one thread, minutes). Every epoch draws new images
of the 600 training digits: distorted, placed and cluttered. Weights are stored in half precision, and the accuracies in
the file's metadata are those of what is stored.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.cluttered import clutter, cluttered_digits, enlarged
from amc.tasks.metrics import top1
from amc.tasks.models.cluttered import WEIGHTS, ClutteredDigitsNet
from amc.tasks.splits import Split, chunks, load_digits
from experiments.demo.train_digits import distort

SEED = 0
EPOCHS = 50
BATCH = 50
LEARNING_RATE = 0.08
COMMAND = "python -m experiments.demo.train"


def train(network: ClutteredDigitsNet, digits: Tensor, classes: Tensor, epochs: int, seed: int) -> None:
    """Trains by SGD with momentum and a one-cycle learning rate; every draw comes from `seed`.

    Args:
        network: Trained in place.
        digits: `[N, 1, 16, 16]` in [0, 1].
        classes: `[N]` int64.
        epochs: How often each digit is seen.
        seed: Of order, distortion and clutter.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * len(chunks(len(digits), BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(epochs):
        distorted = distort(digits, generator)
        shuffled = torch.randperm(len(digits), generator=generator)
        for part in chunks(len(digits), BATCH):
            order = shuffled[part.start : part.stop]
            scores = network(clutter(distorted, order, generator))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(scores, classes[order], label_smoothing=0.05))
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """The fraction of a split that the network classifies correctly."""
    batches = [split.batch(part) for part in chunks(len(split), BATCH)]
    return float(torch.cat([top1(network(images), classes) for images, classes in batches]).mean())


def main(path: Path = WEIGHTS) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)  # the initial weights
    digits, classes = load_digits()[0]
    network = ClutteredDigitsNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster
    train(network, enlarged(torch.from_numpy(digits)), torch.from_numpy(classes), EPOCHS, SEED)
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    safetensors.torch.save_file(halves, path)
    stored = ClutteredDigitsNet().eval()
    load_checkpoint(stored, path)
    _, validation, test = cluttered_digits()
    metadata = {
        "command": COMMAND,
        "seed": SEED,
        "torch": torch.__version__,
        "accuracy": {
            "validation": round(accuracy(stored, validation), 4),
            "test": round(accuracy(stored, test), 4),
        },
    }
    # One entry, because safetensors writes several in random order, and the file should be reproducible.
    safetensors.torch.save_file(halves, path, {"training": json.dumps(metadata)})
    print(path, metadata)


if __name__ == "__main__":
    main()
