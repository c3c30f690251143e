"""Networks that treat channels in unusual ways, small and with random weights: sliced, flipped, repeated, mixed.

`NETWORKS` maps a name to a builder and to the shape of one input. Where a channel cannot go, a reason must be found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def pooled(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Between(nn.Module):
    """Two convolutions and a head, with any function of the channels between the convolutions."""

    def __init__(self, between: Callable[[Tensor], Tensor], seen: int = 8) -> None:
        super().__init__()
        self.between = between
        self.first, self.second, self.third, self.head = conv(3, 8), conv(seen, 12), conv(12, 10), pooled(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(F.relu(self.first(x)))
        logits: Tensor = self.head(F.relu(self.third(F.relu(self.second(x)))))
        return logits


class Buffered(nn.Module):
    """A scale per channel that is no parameter."""

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Attended(nn.Module):
    """CBAM: gates per channel from mean and maximum, then per position from mean and maximum over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.spatial = conv(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.shared(F.adaptive_avg_pool2d(x, 1)) + self.shared(F.adaptive_max_pool2d(x, 1)))
        maps = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(maps))


class Window(nn.Module):
    """Swin's block: shifted windows, attention with a table of relative positions, merged patches."""

    index: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(9, heads))
        self.register_buffer("index", torch.arange(16).reshape(4, 4) % 9)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = torch.roll(self.norm1(x), shifts=(-1, -1), dims=(1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        y = self.proj(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, shifts=(1, 1), dims=(1, 2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class Swin(nn.Module):
    """Two stages of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.stage1, self.stage2 = nn.Conv2d(3, 8, 2, 2), Window(8, 2), Window(16, 4)
        self.norm, self.reduction, self.head = nn.LayerNorm(32), nn.Linear(32, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.patch(x).permute(0, 2, 3, 1))
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.stage2(self.reduction(self.norm(torch.cat(parts, -1))))
        logits: Tensor = self.head(x.mean(dim=(1, 2)))
        return logits


class Conformer(nn.Module):
    """Half-step feed-forward, and a convolution module with a gate, depthwise and pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.ff = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.SiLU(), nn.Dropout(0.1), nn.Linear(16, 8))
        self.point1, self.deep = nn.Conv1d(8, 16, 1), nn.Conv1d(8, 8, 5, padding=2, groups=8)
        self.batch, self.point2, self.head = nn.BatchNorm1d(8), nn.Conv1d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + 0.5 * self.ff(x)
        y = F.glu(self.point1(self.norm(x).transpose(1, 2)), dim=1)
        x = x + self.point2(F.silu(self.batch(self.deep(y)))).transpose(1, 2)
        logits: Tensor = self.head(x.mean(1))
        return logits


class PointNet(nn.Module):
    """Shared layers per point, a learned transform multiplied in, the maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        points = nn.Conv1d(3, 8, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten()
        self.transform = nn.Sequential(*points, nn.Linear(8, 9))
        self.conv1, self.bn1, self.conv2 = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 16, 1)
        self.fc1, self.bn2, self.fc2 = nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(self.transform(x).view(-1, 3, 3), x)
        x = torch.max(F.relu(self.conv2(F.relu(self.bn1(self.conv1(x))))), 2)[0]
        logits: Tensor = self.fc2(F.relu(self.bn2(self.fc1(x))))
        return logits


class Experts(nn.Module):
    """A mixture of experts, all of them run, weighted by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(8, 3), nn.Linear(10, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(dim=-1)
        each = torch.stack([expert(x) for expert in self.experts], dim=1)
        logits: Tensor = self.head(F.relu((weights.unsqueeze(-1) * each).sum(dim=1)))
        return logits


class CrossAttention(nn.Module):
    """Learned queries attend to features of a convolution (as in DETR and Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = conv(3, 8), conv(8, 16, 1)
        self.queries = nn.Parameter(torch.randn(3, 16))
        layer = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.project(F.relu(self.stem(x))).flatten(2).transpose(1, 2)
        queries = self.queries.unsqueeze(0).expand(x.shape[0], -1, -1)
        scores: Tensor = self.head(self.decoder(queries, memory))
        return scores


class Cell(nn.Module):
    """A convolutional LSTM over the frames of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.gates, self.last, self.head = conv(1, 6), conv(6 + 4, 16), conv(4, 8), pooled(8)

    def forward(self, clip: Tensor) -> Tensor:
        hidden = clip.new_zeros(clip.shape[0], 4, clip.shape[3], clip.shape[4])
        cell = hidden
        for step in range(3):
            frame = F.relu(self.encode(clip[:, step]))
            i, f, o, g = self.gates(torch.cat([frame, hidden], 1)).chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        logits: Tensor = self.head(F.relu(self.last(hidden)))
        return logits


class Graph(nn.Module):
    """Graph convolutions with a fixed adjacency."""

    adjacency: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.rand(7, 7).softmax(dim=-1))
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.adjacency @ self.first(x))
        x = F.relu(torch.einsum("ij,bjc->bic", self.adjacency, self.second(x)))
        logits: Tensor = self.head(x.sum(dim=1))
        return logits


class Rep(nn.Module):
    """RepVGG's branches, and parallel resolutions that exchange features (HRNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.three, self.one, self.same = conv(3, 8), conv(8, 8), conv(8, 8, 1), nn.BatchNorm2d(8)
        self.low, self.up, self.down = nn.Conv2d(8, 12, 3, 2, 1), conv(12, 8, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.head = pooled(20)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        high = F.relu(self.three(x) + self.one(x) + self.same(x))
        low = F.relu(self.low(x))
        wide = F.interpolate(self.up(low), scale_factor=2, mode="bilinear", align_corners=False)
        high, low = F.relu(high + wide), F.relu(low + self.down(high))
        logits: Tensor = self.head(torch.cat([high, F.interpolate(low, size=high.shape[2:])], 1))
        return logits


class Repeat(nn.Module):
    """Concatenates features with themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.LayerNorm([6, 6, 6]),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.Dropout2d(),
        nn.ReLU(),
        nn.Flatten(),
        nn.BatchNorm1d(128),
        nn.Linear(128, 12),
        nn.BatchNorm1d(12),
        nn.Hardtanh(),
        nn.Linear(12, 5),
    )


NETWORKS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "sliced": (lambda: Between(lambda x: torch.cat([x[:, :4], F.avg_pool2d(x[:, 4:], 3, 1, 1)], 1)), (3, 8, 8)),
    "permuted": (lambda: Between(lambda x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]]), (3, 8, 8)),
    "flipped": (lambda: Between(lambda x: x + x.flip(1)), (3, 8, 8)),
    "doubled": (lambda: Between(Repeat(), 16), (3, 8, 8)),
    "repeated": (lambda: Between(lambda x: x.repeat(1, 2, 1, 1), 16), (3, 8, 8)),
    "maxout": (lambda: Between(lambda x: x.view(x.shape[0], 4, 2, 8, 8).amax(2), 4), (3, 8, 8)),
    "cumulated": (lambda: Between(lambda x: x.cumsum(dim=1)), (3, 8, 8)),
    "softmax_channels": (lambda: Between(lambda x: x.softmax(dim=1)), (3, 8, 8)),
    "local_response": (lambda: Between(nn.LocalResponseNorm(3)), (3, 8, 8)),
    "normalized": (lambda: Between(lambda x: F.normalize(x, dim=1)), (3, 8, 8)),
    "shuffled": (lambda: Between(nn.ChannelShuffle(4)), (3, 8, 8)),
    "unshuffled": (lambda: Between(nn.Sequential(nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2)), 32), (3, 8, 8)),
    "buffered": (lambda: Between(Buffered(8)), (3, 8, 8)),
    "padded": (lambda: Between(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12), (3, 8, 8)),
    "attended": (lambda: Between(Attended(8)), (3, 8, 8)),
    "flattened": (flattened, (3, 8, 8)),
    "swin": (Swin, (3, 8, 8)),
    "conformer": (Conformer, (9, 6)),
    "pointnet": (PointNet, (3, 10)),
    "experts": (Experts, (8,)),
    "cross_attention": (CrossAttention, (3, 4, 4)),
    "convlstm": (Cell, (3, 1, 6, 6)),
    "graph": (Graph, (7, 4)),
    "rep": (Rep, (3, 8, 8)),
}
