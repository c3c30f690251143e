"""A small vision transformer on CIFAR-10, trained here, as a task.

Command: python -m experiments.vision.vit --data DIR --out FILE (about 18 minutes on one core), then
amc search --task experiments.vision.vit:vit --data DIR --checkpoint FILE --constraint macs=0.45
DIR holds CIFAR-10 (as for `cifar10-resnet20`). Joint queries, keys and values, as in timm (Wightman).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from amc.storage.files import write_bytes
from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.cifar10 import cifar10_splits
from amc.tasks.models.resnet_cifar import cropped_and_flipped
from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task

WIDTH, HEADS, HIDDEN, BLOCKS, PATCHES = 64, 4, 128, 4, 64
EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 16, 128, 1.2e-3, 0.05, 0.05
WARMUP = 0.05
"""Share of the training in which the learning rate grows; then it falls to 0."""


class Attention(nn.Module):
    """Heads whose number and width are those of the published code."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        batch, tokens, width = x.shape
        joint = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = joint.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each normalized before and added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Two strided convolutions, blocks over 64 patches, their mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(3, WIDTH // 2, 3, stride=2, padding=1)
        self.stem = nn.Sequential(
            first, nn.BatchNorm2d(WIDTH // 2), nn.ReLU(), nn.Conv2d(WIDTH // 2, WIDTH, 3, 2, padding=1)
        )
        self.places = nn.Parameter(0.02 * torch.randn(1, PATCHES, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, 10] of normalized images [B, 3, 32, 32]."""
        x = self.stem(x).flatten(2).transpose(1, 2) + self.places
        scores: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return scores


def normalized(pixels: Tensor) -> Tensor:
    """[B, 3, 32, 32] float32 about 0 of pixels [B, 32, 32, 3] uint8."""
    return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.47) / 0.25


def vit(data: Path, checkpoint: Path) -> Task:
    """The task; the weights have seen all training images, so the test images are validation and test."""
    network = VisionTransformer()
    load_checkpoint(network, checkpoint)
    training, validation, test = cifar10_splits(data, normalized)
    return Task(
        name="cifar10-vit",
        network=network,
        example_input=torch.zeros(1, 3, 32, 32),
        calibration=training,
        validation=validation,
        test=test,
        training=training,
        augment=cropped_and_flipped,
    )


def trained(training: ArraySplit, seed: int = 0) -> VisionTransformer:
    """AdamW, a learning rate that grows and then falls, crops and flips; prints the loss of every epoch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VisionTransformer().train()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = len(training) // BATCH
    for epoch in range(EPOCHS):
        order = torch.randperm(len(training), generator=generator).tolist()
        for step in range(steps):
            done = (epoch + step / steps) / EPOCHS
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(done / WARMUP, 1 - done)
            images, classes = training.batch(order[step * BATCH : (step + 1) * BATCH])
            scores = network(cropped_and_flipped(images, generator))
            loss = F.cross_entropy(scores, classes, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    return network.eval()


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    training, _, _ = cifar10_splits(options.data, normalized)
    write_bytes(options.out, save(dict(trained(training).state_dict())))


if __name__ == "__main__":
    main()
