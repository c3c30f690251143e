"""MiniLM, a BERT-like encoder of sentences, on STS-B pairs, as a task.

Command: amc search --task experiments.transformers.minilm:stsb --data DIR --constraint macs=0.5
DIR holds model_fp16.safetensors (all-MiniLM-L6-v2), stsb_train.npz and stsb_dev.npz: `ids1`, `ids2` [N, T] words, 0 is
padding, and `score` [N] from 0 to 5. Calibration and the reward see pairs of the training set; all dev pairs are the
test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from amc.tasks.metric import Metric
from amc.tasks.metrics import rank_correlation
from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task

WIDTH, LAYERS, HEAD_WIDTH, HIDDEN, WORDS, POSITIONS, EPSILON = 384, 6, 32, 1536, 30522, 512, 1e-12
LENGTH = 32
"""Words of the sentences whose multiply-accumulates are counted: 99 of 100 are no longer."""
VALIDATION = 1500
"""Training pairs that the reward sees; the other 3,249 are for calibration."""


class SelfAttention(nn.Module):
    """Heads of a fixed width, as many as the layers write."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """[..., T, D] from [..., T, D], attending where `seen` [..., 1, 1, T] is true."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, HEAD_WIDTH)).transpose(-3, -2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.dense(mixed.transpose(-3, -2).flatten(-2))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each added and then normalized."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.attention, self.norm1 = SelfAttention(), nn.LayerNorm(WIDTH, EPSILON)
        self.wide, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """[..., T, D] from [..., T, D]."""
        x = self.norm1(x + self.attention(x, seen))
        out: Tensor = self.norm2(x + self.feed_forward(x))
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        """[..., T, D] from [..., T, D]."""
        out: Tensor = self.narrow(F.gelu(self.wide(x)))
        return out


class SentenceEncoder(nn.Module):
    """Words to one vector of length 1 per sentence: the mean of the last hidden states, normalized."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.kinds, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, EPSILON)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[..., D] of words [..., T] and of what of them is no padding (1, else 0)."""
        x, seen = self.embedded(ids), (mask > 0)[..., None, None, :]
        for block in self.blocks:
            x = block(x, seen)
        counted = mask[..., None].to(x.dtype)
        return F.normalize((x * counted).sum(dim=-2) / counted.sum(dim=-2), dim=-1)

    def embedded(self, ids: Tensor) -> Tensor:
        """[..., T, D] of words [..., T] and their places."""
        x: Tensor = self.norm(self.words(ids) + self.places.weight[: ids.shape[-1]] + self.kinds.weight[0])
        return x


_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.dense",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "norm2",
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "norm",
}


def minilm(file: Path) -> SentenceEncoder:
    """The published network, in float32."""
    network = SentenceEncoder()
    weights = {_renamed(name): value.float() for name, value in load_file(file).items()}
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


def _renamed(name: str) -> str:
    layer, _, kind = name.removeprefix("encoder.layer.").rpartition(".")
    number, _, inner = layer.partition(".") if name.startswith("encoder.") else ("", "", layer)
    return ".".join((*(("blocks", number) if number else ()), _NAMES.get(inner, inner), kind))


def cosines(embeddings: Tensor) -> Tensor:
    """[B] of pairs [B, 2, D] of vectors of length 1."""
    found: Tensor = (embeddings[:, 0] * embeddings[:, 1]).sum(dim=-1)
    return found


similarity = Metric("Spearman", rank_correlation, per="set", prediction=cosines)
"""Spearman's rank correlation of the cosines of all pairs with their scores."""


def trimmed(ids: Tensor) -> dict[str, Tensor]:
    """Pairs [B, 2, T] without the places that are padding in all of them."""
    words = ids[..., : int((ids > 0).sum(dim=-1).max())].long()
    return {"ids": words, "mask": (words > 0).long()}


def pairs(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """[N, 2, T] words and [N] scores."""
    with np.load(file) as arrays:
        length = max(arrays["ids1"].shape[1], arrays["ids2"].shape[1])
        ids = [np.pad(one, ((0, 0), (0, length - one.shape[1]))) for one in (arrays["ids1"], arrays["ids2"])]
        return np.stack(ids, axis=1).astype(np.int32), arrays["score"].astype(np.float32)


def stsb(data: Path) -> Task:
    """The task; which training pair is in which split is drawn once and for all."""
    (words, scores), dev = pairs(data / "stsb_train.npz"), pairs(data / "stsb_dev.npz")
    order = np.random.default_rng(0).permutation(len(scores))
    validation, calibration = np.split(order, [VALIDATION])
    ids = torch.zeros(1, 2, LENGTH, dtype=torch.int64)
    return Task(
        name="minilm-stsb",
        network=minilm(data / "model_fp16.safetensors"),
        example_input={"ids": ids, "mask": torch.ones_like(ids)},
        calibration=ArraySplit(words[calibration], scores[calibration], trimmed),
        validation=ArraySplit(words[validation], scores[validation], trimmed),
        test=ArraySplit(*dev, trimmed),
        metric=similarity,
    )
