"""Networks over sequences and tokens, small and with random weights: gated convolutions, recurrence, attention.

`NETWORKS` maps a name to a builder and to the shape of one input; those in `WORDS` read that many different integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


class WaveNet(nn.Module):
    """Gated dilated convolutions; the last layer's residual is computed and never read."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.residuals = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 10, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 12, 1), nn.ReLU(), nn.Conv1d(12, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0.0
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            tanh, sigmoid = gate(x).chunk(2, dim=1)
            y = torch.tanh(tanh) * torch.sigmoid(sigmoid)
            total = total + skip(y)
            x = x + residual(y)
        out: Tensor = self.head(total)
        return out


class TemporalBlock(nn.Module):
    """A causal block: padded on both sides, the future cut off (Bai et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=2 * dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=2 * dilation, dilation=dilation)
        self.chomp = 2 * dilation
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, : -self.chomp])
        y = F.relu(self.conv2(y)[:, :, : -self.chomp].contiguous())
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    """Causal blocks; the last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(2, 8, 1), TemporalBlock(8, 8, 2), TemporalBlock(8, 12, 4))
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.blocks(x)[:, :, -1])
        return logits


class Gated(nn.Module):
    """Gated linear units in convolutions and in linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, 16, 3, padding=1), nn.Conv1d(8, 12, 3, padding=1)
        self.gate, self.head = nn.Linear(12, 20), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.glu(self.conv1(x), dim=1)))
        logits: Tensor = self.head(F.glu(self.gate(x.mean(dim=2)), dim=-1))
        return logits


class Recurrent(nn.Module):
    """A convolution in front of a recurrent layer; the last step is classified."""

    def __init__(self, kind: Callable[..., nn.Module], bidirectional: bool = False) -> None:
        super().__init__()
        self.front, self.norm = nn.Conv1d(4, 12, 3, padding=1), nn.BatchNorm1d(12)
        self.rnn = kind(12, 8, batch_first=True, bidirectional=bidirectional)
        self.wide, self.head = nn.Linear(8 * (1 + bidirectional), 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(F.relu(self.norm(self.front(x))).transpose(1, 2))
        logits: Tensor = self.head(F.relu(self.wide(y[:, -1])))
        return logits


class Modular(nn.Module):
    """Attention by nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


class Fused(nn.Module):
    """Attention by hand, with one linear layer for queries, keys and values (as in timm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))
        return out


class Separate(nn.Module):
    """Attention by hand, with a linear layer each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, self.heads, self.width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.width // self.heads)
        y = torch.matmul(torch.softmax(scores, dim=-1), v).transpose(1, 2).contiguous()
        out: Tensor = self.out(y.view(x.size(0), -1, self.width))
        return out


class ScaledDot(nn.Module):
    """Attention by torch's fused operator."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (y.reshape(b, n, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each normalized and added."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class ViT(nn.Module):
    """Patches, a class token, positions, blocks, a head."""

    def __init__(self, *blocks: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


def vit(attention: Callable[[int, int], nn.Module]) -> Builder:
    return lambda: ViT(*(Block(16, attention(16, 4)) for _ in range(2)))


def vit_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    return ViT(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class Encoder(nn.Module):
    """BERT-like: words and positions embedded, attention with a mask of padding, classified by the first word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.norm = nn.Embedding(20, 16), nn.Embedding(6, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.fc1, self.fc2, self.norm2 = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)
        self.pooler, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4.0
        scores = scores.masked_fill((ids == 0)[:, None, :], -1e9)
        x = x + self.out(scores.softmax(dim=-1) @ self.v(x))
        x = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        logits: Tensor = self.head(torch.tanh(self.pooler(x[:, 0])))
        return logits


class RMSNorm(nn.Module):
    """Divides by the root mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class DecoderBlock(nn.Module):
    """Llama-style: root-mean-square norms, grouped queries with rotated positions, SwiGLU; no biases."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2]).float()[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = self.norm1(x)
        q = self.rotate(self.q(y).view(b, n, self.heads, self.size).transpose(1, 2))
        k = self.rotate(self.k(y).view(b, n, self.groups, self.size).transpose(1, 2))
        v = self.v(y).view(b, n, self.groups, self.size).transpose(1, 2)
        k, v = (z.repeat_interleave(self.heads // self.groups, dim=1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, c)
        x = x + self.o(y)
        y = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Decoder(nn.Module):
    """Scores the next word after the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(20, 16), nn.Sequential(*(DecoderBlock(16, 4, 2) for _ in range(2)))
        self.norm, self.head = RMSNorm(16), nn.Linear(16, 20, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.words(ids)))[:, -1])
        return logits


class MixerBlock(nn.Module):
    """Linear layers across tokens, then across channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channels(self.norm2(x))
        return out


class Mixer(nn.Module):
    """MLP-Mixer; as many tokens as channels, so that no axis can be told by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 16, 2, 2), nn.Sequential(MixerBlock(16, 16), MixerBlock(16, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return logits


WORDS = {"encoder": 20, "decoder": 20}

NETWORKS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "wavenet": (WaveNet, (2, 16)),
    "tcn": (TCN, (2, 16)),
    "gated": (Gated, (4, 16)),
    "lstm": (lambda: Recurrent(nn.LSTM), (4, 10)),
    "gru": (lambda: Recurrent(nn.GRU, bidirectional=True), (4, 10)),
    "vit_modular": (vit(Modular), (3, 8, 8)),
    "vit_encoder": (vit_encoder, (3, 8, 8)),
    "vit_fused": (vit(Fused), (3, 8, 8)),
    "vit_separate": (vit(Separate), (3, 8, 8)),
    "vit_scaled_dot": (vit(ScaledDot), (3, 8, 8)),
    "encoder": (Encoder, (6,)),
    "decoder": (Decoder, (6,)),
    "mixer": (Mixer, (3, 8, 8)),
}
