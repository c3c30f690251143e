"""Attention over positions of maps: pointwise convolutions write queries, keys and values, others carry them on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.units.anatomy import dissect
from envs.units.slicing import slice_network

WIDTH, HEADS = 16, 4


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator("cpu").manual_seed(1), device="cpu")


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def depthwise(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width))


class Positional(nn.Module):
    """Narrower keys head by head, and a depthwise convolution of the values added (YOLO11's attention)."""

    expected = ("qkv.0", {"qkv.1", "position.0", "position.1"})

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.key, self.value = HEADS, 2, WIDTH // HEADS
        self.qkv, self.position = pointwise(WIDTH, HEADS * (2 * self.key + self.value)), depthwise(WIDTH)
        self.out = pointwise(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        whole = self.qkv(x).view(b, self.heads, 2 * self.key + self.value, h * w)
        q, k, v = whole.split([self.key, self.key, self.value], dim=2)
        weights = (q.transpose(-2, -1) @ k * self.key**-0.5).softmax(dim=-1)
        mixed = (v @ weights.transpose(-2, -1)).view(b, c, h, w)
        out: Tensor = self.out(mixed + self.position(v.reshape(b, c, h, w)))
        return out


class Convolved(nn.Module):
    """Depthwise convolutions in front of the projections (CvT) and behind them; `c // self.heads` in the code."""

    expected = ("q.2", {"q.3.0", "q.3.1", "k.3.0", "k.3.1", "v.3.0", "v.3.1"})

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        parts = (nn.Sequential(*depthwise(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), depthwise(WIDTH)) for _ in range(3))
        self.q, self.k, self.v = parts
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = (part(x).reshape(b, self.heads, c // self.heads, h * w) for part in (self.q, self.k, self.v))
        q, k, v = (part.transpose(-1, -2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        out: Tensor = self.out(mixed.reshape(b, c, h, w))
        return out


class Network(nn.Module):
    """A convolution, attention beside a shortcut, and a classifier."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, WIDTH, 3, padding=1), attention, nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.head((x + self.attention(x)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("kind", [Positional, Convolved])
def test_heads_of_convolutions_go_with_what_carries_their_channels(kind: Any) -> None:
    torch.manual_seed(0)
    anatomy = dissect(Network(kind()).eval(), images(1), images())
    name, carriers = kind.expected
    (unit,) = (unit for unit in anatomy.units if unit.name == f"attention.{name}")
    assert unit.channels == HEADS
    assert {member.module for member in unit.role("carrier")} == {f"attention.{one}" for one in carriers}
    assert not any(entry.name == member.module for entry in anatomy.fixed for member in unit.role("carrier"))
    small: Any = slice_network(anatomy.network, anatomy.units, {unit.name: [1, 2]})
    assert small(images(2)).shape == (2, 5)
    out = small.attention.out
    assert (out[0] if isinstance(out, nn.Sequential) else out).in_channels == WIDTH // 2
