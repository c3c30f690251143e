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


class Rotary(nn.Module):
    """Neighbouring heads share keys and values; queries are normalized, rotated by their positions; causal (Llama)."""

    rates: Tensor

    def __init__(self, width: int, heads: int, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.repeats = heads, groups, width // heads, heads // groups
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.norm = nn.RMSNorm(self.size)
        self.register_buffer("rates", 100 ** -torch.linspace(0, 1, self.size // 2))

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * self.rates
        cos, sin, even, odd = angles.cos(), angles.sin(), x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    def repeated(self, x: Tensor) -> Tensor:
        if self.repeats == 1:
            return x
        b, groups, n, size = x.shape
        return x[:, :, None].expand(b, groups, self.repeats, n, size).reshape(b, groups * self.repeats, n, size)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.rotated(self.norm(self.q(x).view(b, n, self.heads, self.size)).transpose(1, 2))
        k, v = (y.view(b, n, self.groups, self.size).transpose(1, 2) for y in (self.k(x), self.v(x)))
        y = F.scaled_dot_product_attention(q, self.repeated(self.rotated(k)), self.repeated(v), is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, n, self.heads * self.size))
        return out


class Sloped(Summed):
    """Products fall with the distance, by a slope per head (ALiBi)."""

    slopes: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.register_buffer("slopes", 2.0 ** -torch.arange(heads))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        places = torch.arange(x.shape[1])
        bias = -(places[:, None] - places).abs() * self.slopes[:, None, None]
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        return out


class Relative(Summed):
    """An embedding of distances holds a bias for each head (T5)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.bias = nn.Embedding(7, heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        places = torch.arange(x.shape[1])
        bias = self.bias((places[:, None] - places).clamp(-3, 3) + 3).permute(2, 0, 1)
        out: Tensor = self.out(((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


class Conv1D(nn.Module):
    """A linear layer whose weight is [inputs, outputs] (as in Hugging Face's GPT-2)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight)
        return flat.view(x.shape[0], x.shape[1], self.weight.shape[1])


class Transposed(nn.Module):
    """One layer for queries, keys and values of that kind, taken apart by its size."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size, self.split, self.scale = width // heads, width, 0.7
        self.qkv, self.proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], -1, self.size)
        q, k, v = self.qkv(x).split(self.split, dim=2)
        q, k, v = (y.view(shape).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q * self.bias, k, v, scale=self.scale, is_causal=True)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
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


class FusedBlock(Block):
    """One layer writes the gate and what is gated (Phi-3)."""

    def __init__(self, width: int, attention: nn.Module, first: bool) -> None:
        super().__init__(width, attention, first)
        del self.gate, self.up
        self.gate_up = nn.Linear(width, 48)

    def hidden(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Transformer(nn.Module):
    """Embedded frames, positions, blocks; the mean is classified."""

    def __init__(
        self, attention: Callable[[int, int], nn.Module], first: bool = True, block: type[Block] = Block
    ) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(5, 16), nn.Parameter(torch.randn(1, 6, 16))
        self.blocks = nn.Sequential(*(block(16, attention(16, 4), first) for _ in range(2)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(x) + self.positions).mean(dim=1))
        return logits


class Differential(nn.Module):
    """Two maps of attention per head, of which one is subtracted (Ye et al., Differential Transformer, ICLR 2025)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size, self.weight = heads, width // heads, nn.Parameter(torch.tensor(0.3))
        self.q, self.k = (nn.Linear(width, 2 * width) for _ in range(2))
        self.v, self.out = (nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = (layer(x).view(b, n, self.heads, 2, self.size).permute(3, 0, 2, 1, 4) for layer in (self.q, self.k))
        first, second = (q @ k.transpose(-1, -2)).div(self.size**0.5).softmax(dim=-1)
        v = self.v(x).view(b, n, self.heads, self.size).transpose(1, 2)
        out: Tensor = self.out(((first - self.weight * second) @ v).transpose(1, 2).flatten(2))
        return out


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
    "attention_rotary": (lambda: Transformer(Rotary), (6, 5)),
    "attention_sloped": (lambda: Transformer(Sloped), (6, 5)),
    "attention_relative": (lambda: Transformer(Relative), (6, 5)),
    "attention_transposed": (lambda: Transformer(Transposed, block=FusedBlock), (6, 5)),
    "attention_differential": (lambda: Transformer(Differential), (6, 5)),
    "attention_crossed": (CrossAttention, (6, 5)),
}
