"""Networks whose code is unusual, small and with random weights: weights from elsewhere, sharing, control flow.

`NETWORKS` maps a name to a builder and to the shape of one input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

Builder = Callable[[], nn.Module]


def pooled(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def parametrized(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Some layers compute their weight from other parameters; the plain ones between them can be pruned."""
    return nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3, padding=1)),
        nn.ReLU(),
        wrap(nn.Conv2d(8, 8, 3, padding=1)),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=1),
        nn.ReLU(),
        wrap(nn.Conv2d(10, 8, 3, padding=1)),
        nn.ReLU(),
        pooled(8),
    )


class Shared(nn.Module):
    """Calls one block on two inputs and one layer twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(16, 12, 3, padding=1), pooled(12)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.twin(x), self.twin(x.flip(3))
        left = F.relu(self.again(F.relu(self.again(F.relu(left)))))
        logits: Tensor = self.head(F.relu(self.last(torch.cat([left, F.relu(right)], 1))))
        return logits


class Tied(nn.Module):
    """An autoencoder of linear layers whose decoder has the encoder's weight, transposed or as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 10)
        self.third.weight = self.second.weight
        self.wide, self.narrow = nn.Linear(10, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        y = self.narrow(torch.relu(self.wide(y)))
        return F.linear(y, self.first.weight.t())


class InPlace(nn.Module):
    """Overwrites its values wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = pooled(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x)).clamp_(max=6.0)
        y = self.second(F.leaky_relu_(self.first(x), 0.1)).mul_(0.5)
        y += x
        y[:, :, 0] = 0.0
        logits: Tensor = self.head(torch.relu_(y))
        return logits


class Conditional(nn.Module):
    """Looks at values and at sizes to decide what to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.rare, self.head = nn.Conv2d(8, 8, 3, padding=1), pooled(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if float(x.abs().max()) > 1e6:
            x = self.rare(x)
        x = F.relu(self.second(x))
        while x.shape[-1] > 4:
            x = F.avg_pool2d(x, 2)
        logits: Tensor = self.head(x)
        return logits


class FreeWeights(nn.Module):
    """Convolutions as functions of parameters that belong to no layer, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(8, 3, 3, 3) / 5), nn.Parameter(torch.zeros(8))
        self.middle, self.last = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)
        self.matrix = nn.Parameter(torch.randn(5, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, self.shift, padding=1))
        x = F.relu(self.last(F.relu(self.middle(x))))
        return F.linear(x.mean(dim=(2, 3)), self.matrix)


class EinsumLinear(nn.Module):
    """A linear layer written as an einsum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bni,oi->bno", x, self.weight)


class Einsum(nn.Module):
    """Einsums between layers, and a contraction of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix = nn.Linear(6, 12), EinsumLinear(12, 8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(torch.relu(self.enter(x)))
        y = y + self.narrow(torch.relu(self.wide(y)))
        logits: Tensor = self.head(torch.einsum("bni,bnj->bij", y, y).flatten(1))
        return logits


class Squeezed(nn.Module):
    """Squeezes maps by reshape, mean, flatten and slices in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, 2, padding=1)
        self.third, self.head = nn.Linear(6 * 16, 12), nn.Linear(12 + 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = F.relu(self.second(x)).reshape(x.shape[0], -1)
        squeezed = x.mean(-1).mean(-1, keepdim=True).squeeze(-1)
        logits: Tensor = self.head(torch.cat([F.relu(self.third(y)), squeezed], dim=1))
        return logits


class Containers(nn.Module):
    """Dictionaries of layers, a branch chosen by name, and a layer that forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(3, 8, 5, padding=2)})
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.unused = nn.Conv2d(8, 8, 1)
        self.merge, self.head = nn.Conv2d(8, 12, 1), pooled(12)
        self.named_twice = nn.ModuleList([self.merge])

    def forward(self, x: Tensor) -> Tensor:
        parts = {name: norm(self.branches[name](x)) for name, norm in zip("ab", self.norms, strict=True)}
        logits: Tensor = self.head(F.relu(self.merge(F.relu(torch.maximum(parts["a"], parts["b"])))))
        return logits


class Frames(nn.Module):
    """Reads the frames of a clip one by one, in the place of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 12, 3, 2, 1)
        self.third, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        clips, frames = x.shape[:2]
        y = F.relu(self.third(F.relu(self.second(F.relu(self.first(x.flatten(0, 1)))))))
        logits: Tensor = self.head(y.mean((2, 3)).view(clips, frames, -1).mean(1))
        return logits


class Fourier(nn.Module):
    """Multiplies frequencies by complex weights, as in a Fourier neural operator; no derivative of its cut-off."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.beside = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 1)
        self.weights = nn.Parameter(torch.randn(8, 8, 5, dtype=torch.cfloat) / 8)
        self.wide, self.narrow = nn.Conv1d(8, 16, 1), nn.Conv1d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        frequencies = torch.fft.rfft(x)
        low = torch.zeros_like(frequencies)
        low[..., :5] = torch.einsum("bix,iox->box", frequencies[..., :5], self.weights)
        x = F.gelu(torch.fft.irfft(low, n=x.shape[-1]) + self.beside(x))
        y: Tensor = self.narrow(F.gelu(self.wide(x))).squeeze(1)
        return y


NETWORKS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "weight_norm": (lambda: parametrized(weight_norm), (3, 8, 8)),
    "spectral_norm": (lambda: parametrized(spectral_norm), (3, 8, 8)),
    "shared": (Shared, (3, 8, 8)),
    "tied": (Tied, (12,)),
    "in_place": (InPlace, (3, 8, 8)),
    "conditional": (Conditional, (3, 8, 8)),
    "free_weights": (FreeWeights, (3, 8, 8)),
    "einsum": (Einsum, (4, 6)),
    "squeezed": (Squeezed, (3, 8, 8)),
    "containers": (Containers, (3, 8, 8)),
    "fourier": (Fourier, (2, 32)),
    "frames": (Frames, (4, 3, 8, 8)),
}
