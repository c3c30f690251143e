"""Attention in the spellings that people use, in transformers of two blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


class Summed(nn.Module):
    """By einsum, heads last but one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k).softmax(-1)
        out: Tensor = self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
        return out


class Batched(nn.Module):
    """By bmm, heads in the place of the batch (as in fairseq)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.softmax, self.dropout = nn.Linear(width, width), nn.Softmax(dim=-1), nn.Dropout(0.1)
        self.behind = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(b, n, self.heads, self.size).transpose(1, 2).reshape(b * self.heads, n, self.size)

        q, k, v = split(self.q(x)) / math.sqrt(self.size), split(self.k(x)), split(self.v(x))
        weights = self.dropout(self.softmax(torch.bmm(q, k.transpose(1, 2))))
        y = torch.bmm(weights, v).view(b, self.heads, n, self.size).transpose(1, 2).reshape(b, n, c)
        out: Tensor = self.behind(self.out(y))
        return out


class Interleaved(nn.Module):
    """One layer for queries, keys and values, head by head (as in GPT-NeoX); causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, c))
        return out


class Grouped(nn.Module):
    """Neighbouring heads share keys and values: two of them, or all."""

    def __init__(self, width: int, heads: int, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, groups * self.size) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = (y.view(b, n, self.groups, self.size).transpose(1, 2) for y in (self.k(x), self.v(x)))
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Flexible(nn.Module):
    """Heads of a fixed width, as many as there are (as in newer Hugging Face classes): it runs with fewer of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k, self.out = nn.LayerNorm(self.size), nn.LayerNorm(self.size), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], -1, self.size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Single(nn.Module):
    """One head whose scale follows from its width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return out


class Block(nn.Module):
    """Attention and a gated pair of linear layers, each added; normalized before or after."""

    def __init__(self, width: int, attention: nn.Module, first: bool) -> None:
        super().__init__()
        self.attention, self.first, self.rest = attention, first, (None,) * isinstance(attention, Summed)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)

    def hidden(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = x + self.attention(self.norm1(x), *self.rest)
            return x + self.hidden(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.hidden(x))
        return out


class Transformer(nn.Module):
    """Embedded frames, positions, blocks; the mean is classified."""

    def __init__(self, attention: Callable[[int, int], nn.Module], first: bool = True) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(5, 16), nn.Parameter(torch.randn(1, 6, 16))
        self.blocks = nn.Sequential(*(Block(16, attention(16, 4), first) for _ in range(2)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(x) + self.positions).mean(dim=1))
        return logits


class CrossAttention(nn.Module):
    """torch's own encoder and decoder layers: queries that are learned read what is encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.queries = nn.Linear(5, 16), nn.Parameter(torch.randn(1, 3, 16))
        self.encode = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
        self.decode = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.encode(self.embed(x))
        logits: Tensor = self.head(self.decode(self.queries.expand(x.shape[0], -1, -1), seen).mean(dim=1))
        return logits


NETWORKS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "attention_summed": (lambda: Transformer(Summed), (6, 5)),
    "attention_batched": (lambda: Transformer(Batched, first=False), (6, 5)),
    "attention_interleaved": (lambda: Transformer(Interleaved), (6, 5)),
    "attention_grouped": (lambda: Transformer(Grouped, first=False), (6, 5)),
    "attention_shared": (lambda: Transformer(lambda width, heads: Grouped(width, heads, 1)), (6, 5)),
    "attention_flexible": (lambda: Transformer(Flexible), (6, 5)),
    "attention_single": (lambda: Transformer(Single), (6, 5)),
    "attention_crossed": (CrossAttention, (6, 5)),
}
