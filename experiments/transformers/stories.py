"""stories260K, a language model like Llama 2 (rotated positions, shared keys and values, SwiGLU, RMSNorm), as a task.

Command: amc search --task experiments.transformers.stories:stories --data DIR --constraint macs=0.8
DIR holds model.safetensors (Karpathy's tinyllamas), tokenizer.json (pieces with their scores) and eval_9_stories.txt.
The model writes its own calibration and validation texts; the test is the nine stories, which it has not seen.
"""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from amc.storage.cache import cached_tensors
from amc.tasks.metrics import IGNORED, perplexity
from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task

WIDTH, LAYERS, HEAD_WIDTH, HEADS, GROUPS, HIDDEN, WORDS, EPSILON, BASE = 64, 5, 8, 8, 4, 172, 512, 1e-5, 1e4
START, LONGEST = 1, 512
CALIBRATION, VALIDATION = 96, 32
"""Texts that the model writes."""
WINDOW, STRIDE = 128, 64
"""Words of a text, and of what the model sees of a story at once; scored are the last ones, at a story's start all.
"""
Ids = NDArray[np.int64]


class RootMeanSquare(nn.Module):
    """Normalization without mean or bias."""

    def __init__(self) -> None:
        """A scale of 1."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] from [..., D]."""
        return x * (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt() * self.weight


class SelfAttention(nn.Module):
    """Each head of keys and values serves two of queries; a word sees those before it."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        shared = HEAD_WIDTH * GROUPS
        self.wq, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(WIDTH, shared, bias=False) for _ in range(2))

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]; what positions are rotated by is [T, E / 2]."""
        q, k, v = (layer(x).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for layer in (self.wq, self.wk, self.wv))
        q, k = rotated(q, cosines, sines), rotated(k, cosines, sines)
        k, v = (one.repeat_interleave(HEADS // GROUPS, dim=1) for one in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return out


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """[B, H, T, E], its pairs of neighbouring channels rotated."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], dim=-1).flatten(-2)


class Block(nn.Module):
    """Attention and a gated pair of linear layers, each behind its normalization, both added."""

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.attention_norm, self.attention, self.ffn_norm = RootMeanSquare(), SelfAttention(), RootMeanSquare()
        self.w1, self.w3 = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), cosines, sines)
        y = self.ffn_norm(x)
        out: Tensor = x + self.w2(F.silu(self.w1(y)) * self.w3(y))
        return out


class Storyteller(nn.Module):
    """Words to scores of the next word; the classifier is the embedding."""

    cosines: Tensor
    sines: Tensor

    def __init__(self) -> None:
        """Layers of the published widths."""
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), RootMeanSquare()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        turns = BASE ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
        angles = torch.outer(torch.arange(LONGEST).float(), turns)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T, K] from [B, T]."""
        length = ids.shape[1]
        x, cosines, sines = self.words(ids), self.cosines[:length], self.sines[:length]
        for block in self.blocks:
            x = block(x, cosines, sines)
        return F.linear(self.norm(x), self.words.weight)


def storyteller(file: Path) -> Storyteller:
    """The published network."""
    network = Storyteller()
    weights = {_renamed(name): value.float() for name, value in load_file(file).items()}
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


def _renamed(name: str) -> str:
    return name.replace("layers.", "blocks.").replace("feed_forward.", "").replace("tok_embeddings", "words")


@torch.no_grad()
def written(network: nn.Module, texts: int, length: int, seed: int) -> Tensor:
    """[texts, length] words that the model writes, each drawn by its probability."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((texts, 1), START)
    while ids.shape[1] < length:
        odds = network(ids)[:, -1].softmax(dim=-1)
        ids = torch.cat([ids, torch.multinomial(odds, 1, generator=generator)], dim=1)
    return ids


def next_words(ids: Ids) -> Ids:
    """Targets: each word's successor; of the last one nothing is asked."""
    return np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], IGNORED)], axis=1)


class Tokenizer:
    """Merges the pair of pieces with the best score until no two make a piece (SentencePiece's byte-pair encoding)."""

    def __init__(self, file: Path) -> None:
        """Reads [piece, score] of every word."""
        self._scores = [score for _, score in json.loads(file.read_text(encoding="utf8"))]
        self._pieces = [piece for piece, _ in json.loads(file.read_text(encoding="utf8"))]
        self._places = {piece: place for place, piece in enumerate(self._pieces)}
        self._word = cache(self._encoded)

    def __call__(self, text: str) -> list[int]:
        """Pieces of a text; no piece holds a space but at its start, so words are apart."""
        return [place for word in re.findall(r" ?[^ ]+| +", " " + text) for place in self._word(word)]

    def _encoded(self, word: str) -> list[int]:
        ids: list[int] = []
        for letter in word:
            known = self._places.get(letter)
            ids += [known] if known is not None else [byte + 3 for byte in letter.encode()]
        while True:
            merges = [self._places.get(self._pieces[a] + self._pieces[b]) for a, b in pairwise(ids)]
            best = max((m for m in merges if m is not None), key=lambda place: self._scores[place], default=None)
            if best is None:
                return ids
            at = merges.index(best)
            ids[at : at + 2] = [best]


def windows(stories: list[list[int]]) -> tuple[Ids, Ids]:
    """[N, T] words and targets: each target is asked once, behind as many words as fit into a window."""
    ids, targets = [], []
    for story in stories:
        for start in range(0, max(1, len(story) - 1 - (WINDOW - STRIDE)), STRIDE):
            own, after = story[start : start + WINDOW], story[start + 1 : start + 1 + WINDOW]
            asked = [IGNORED] * (WINDOW - STRIDE) * (start > 0) + after[(WINDOW - STRIDE) * (start > 0) :]
            ids.append(own + [0] * (WINDOW - len(own)))
            targets.append(asked + [IGNORED] * (WINDOW - len(asked)))
    return np.asarray(ids, dtype=np.int64), np.asarray(targets, dtype=np.int64)


def read_stories(data: Path) -> list[list[int]]:
    """Words of each story, the first of them the start."""
    encode = Tokenizer(data / "tokenizer.json")
    text = (data / "eval_9_stories.txt").read_text(encoding="utf8")
    return [[START, *encode(story.strip())][: LONGEST + 1] for story in text.split("<|endoftext|>") if story.strip()]


def stories(data: Path) -> Task:
    """The task. What the model writes is written once, and remembered."""
    network = storyteller(data / "model.safetensors")
    key = {"texts": CALIBRATION + VALIDATION, "length": WINDOW, "seed": 0, "version": 1}
    own = cached_tensors("stories", key, lambda: {"ids": written(network, CALIBRATION + VALIDATION, WINDOW, seed=0)})[
        "ids"
    ].numpy()
    calibration, validation = own[:CALIBRATION], own[CALIBRATION:]
    return Task(
        name="stories260k",
        network=network,
        example_input=torch.ones(1, WINDOW, dtype=torch.int64),
        calibration=ArraySplit(calibration, next_words(calibration)),
        validation=ArraySplit(validation, next_words(validation)),
        test=ArraySplit(*windows(read_stories(data))),
        metric=perplexity,
    )
