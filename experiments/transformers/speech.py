"""KWT-1, a keyword spotter that attends with a single head, as a task.

Command: amc search --task experiments.transformers.speech:kwt1 --data DIR --constraint macs=0.4
DIR holds model.safetensors (the network of Berg et al., Keyword Transformer, Interspeech 2021, as published by ARM) and
mfcc_words.npz: `x` [N, 98, 40] coefficients of one-second clips, `y` [N] classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task

WIDTH, LAYERS, FRAMES, COEFFICIENTS, CLASSES, EPSILON = 64, 12, 98, 40, 12, 1e-6
CALIBRATION, VALIDATION = 1000, 1000
"""Clips of each split; the rest is for the test."""


class SelfAttention(nn.Module):
    """One head; queries, keys and values without bias."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] from [B, N, D]."""
        mixed = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), scale=WIDTH**-0.5)
        out: Tensor = self.out(mixed)
        return out


class Block(nn.Module):
    """Attention and two linear layers, each added and then normalized."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.attn, self.norm1 = SelfAttention(), nn.LayerNorm(WIDTH, EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
        self.norm2 = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] from [B, N, D]."""
        x = self.norm1(x + self.attn(x))
        hidden = F.gelu(self.mlp["fc1"](x), approximate="tanh")
        out: Tensor = self.norm2(x + self.mlp["fc2"](hidden))
        return out


class KeywordTransformer(nn.Module):
    """A class token in front of embedded frames, blocks, and a linear layer on the token."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.embed = nn.Linear(COEFFICIENTS, WIDTH)
        self.class_emb = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_emb = nn.Parameter(torch.zeros(1, FRAMES + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, 12] of coefficients [B, 98, 40]."""
        token = self.class_emb.expand(x.shape[0], -1, -1)
        x = torch.cat([token, self.embed(x)], dim=1) + self.pos_emb
        scores: Tensor = self.head(self.blocks(x)[:, 0])
        return scores


def kwt1(data: Path) -> Task:
    """The task; which clip is in which split is drawn once and for all."""
    network = KeywordTransformer()
    weights = load_file(data / "model.safetensors")
    network.load_state_dict({name: weights[name].reshape(own.shape) for name, own in network.state_dict().items()})
    with np.load(data / "mfcc_words.npz") as arrays:
        clips, labels = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, [CALIBRATION, CALIBRATION + VALIDATION])
    calibration, validation, test = (ArraySplit(clips[part], labels[part]) for part in parts)
    return Task(
        name="kwt1",
        network=network,
        example_input=torch.zeros(1, FRAMES, COEFFICIENTS),
        calibration=calibration,
        validation=validation,
        test=test,
    )
