"""Shared test networks: one small seeded network of every kind that the core must handle."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import Tensor, nn

from amc.runs import ending
from amc.tasks.models.resnet_cifar import SubsampleAndPad
from envs.space.constraint import Costing
from envs.space.rules import Rules
from envs.units.anatomy import Anatomy, dissect

# A time limit per example would fail on a busy core; derandomized, so that a red run is red again.
settings.register_profile("amc", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("amc")
torch.set_num_threads(1)
ending.TIMED_SECONDS = 0.3  # at the end of every search


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a CUDA device where there is none."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@dataclass(frozen=True)
class Specimen:
    """A test network with everything that the core finds out about it."""

    name: str
    network: nn.Module
    example: Tensor
    anatomy: Anatomy

    def inputs(self, count: int, seed: int = 0) -> Tensor:
        """[count, ...] random inputs."""
        return torch.randn(count, *self.example.shape[1:], generator=torch.Generator().manual_seed(seed))

    def costing(self, rules: Rules | None = None) -> Costing:
        """Costs over all units under some rules."""
        return Costing(self.anatomy.family, tuple((rules or Rules()).sites(self.anatomy.units)[0]))


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """Two convolutions around an addition, with any shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second = conv_norm(inputs, inner, 3, stride), conv_norm(inner, outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class Head(nn.Module):
    """Global average pooling and a linear classifier."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class DenseLayer(nn.Module):
    """Normalize, activate, convolve, and append to what was there."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Inverted(nn.Module):
    """MobileNet-V2's block: expand, depthwise, project, add."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand, self.project = conv_norm(channels, expanded, 1), conv_norm(expanded, channels, 1)
        self.depthwise = conv_norm(expanded, expanded, 3, groups=expanded)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return out


class GroupedBlock(nn.Module):
    """ResNeXt's block: a grouped convolution between two 1 x 1 convolutions."""

    def __init__(self, channels: int, inner: int, groups: int) -> None:
        super().__init__()
        self.reduce, self.expand = conv_norm(channels, inner, 1), conv_norm(inner, channels, 1)
        self.grouped = conv_norm(inner, inner, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(F.relu(self.grouped(F.relu(self.reduce(x))))))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all of them."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class NextBlock(nn.Module):
    """ConvNeXt's block: depthwise, then layer norm and two linear layers with channels last."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out: Tensor = x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)
        return out


class ChannelsLast(nn.Module):
    """Mixes channels by linear layers on maps of as many channels as rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = conv_norm(3, 8), nn.Linear(8, 12), nn.Linear(12, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).permute(0, 2, 3, 1)
        x = self.narrow(F.gelu(self.wide(x))).permute(0, 3, 1, 2)
        logits: Tensor = self.head(x)
        return logits


class Reused(nn.Module):
    """Calls one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.last = conv_norm(3, 6), nn.Conv2d(6, 6, 3, padding=1), conv_norm(6, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.again(F.relu(self.stem(x))))))
        logits: Tensor = self.head(F.relu(self.last(x)))
        return logits


class Branching(nn.Module):
    """Looks at its data to decide what to compute, so that torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_norm(3, 6), conv_norm(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if float(x.mean()) > 1e6:
            x = x * 0.5
        logits: Tensor = self.head(F.relu(self.second(x)))
        return logits


class InPlace(nn.Module):
    """A residual block that overwrites its values wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = conv_norm(3, 6), nn.ReLU(inplace=True)
        self.first, self.second, self.head = conv_norm(6, 8), conv_norm(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.second(F.relu(self.first(x), inplace=True))
        y += x
        logits: Tensor = self.head(torch.relu_(y.mul_(0.5)))
        return logits


def _chain() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 12),
        nn.ReLU(),
        nn.Linear(12, 9, bias=False),
        nn.ReLU(),
        nn.Linear(9, 5),
    )


def _residual() -> nn.Module:
    first = Residual(6, 8, 6, 1, nn.Identity())
    return nn.Sequential(conv_norm(3, 6), nn.ReLU(), first, Residual(6, 7, 10, 2, conv_norm(6, 10, 1, 2)), Head(10))


def _dense() -> nn.Module:
    layers = DenseLayer(6, 4), DenseLayer(10, 4)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *layers, conv_norm(14, 8, 1), nn.AvgPool2d(2), Head(8))


def _joined() -> nn.Module:
    # A concatenation inside a residual stream, and gated: some layers hold only some of the joint channels.
    block = Residual(10, 7, 10, 1, nn.Identity())
    return nn.Sequential(conv_norm(3, 6), nn.ReLU(), DenseLayer(6, 4), SqueezeExcite(10, 3), block, Head(10))


def _mobile_v1() -> nn.Module:
    first = conv_norm(6, 6, 3, groups=6), nn.ReLU(), conv_norm(6, 8, 1), nn.ReLU()
    second = conv_norm(8, 8, 3, 2, groups=8), nn.ReLU(), conv_norm(8, 10, 1), nn.ReLU()
    return nn.Sequential(conv_norm(3, 6), nn.ReLU(), *first, *second, Head(10))


def _option_a() -> nn.Module:
    blocks = Residual(6, 6, 6, 1, nn.Identity()), Residual(6, 8, 10, 2, SubsampleAndPad(6, 10))
    return nn.Sequential(conv_norm(3, 6), nn.ReLU(), *blocks, Head(10))


def _convnext() -> nn.Module:
    # 8 x 8 feature maps with 8 channels: no axis may be recognized by its size.
    return nn.Sequential(nn.Conv2d(3, 8, 1), NextBlock(8, 12), Head(8))


def _prelu() -> nn.Module:
    return nn.Sequential(conv_norm(3, 6), nn.PReLU(6), nn.Conv2d(6, 8, 3, padding=1), nn.PReLU(), Head(8))


def _transposed() -> nn.Module:
    down, up = nn.Conv2d(3, 6, 3, 2, padding=1), nn.ConvTranspose2d(6, 8, 2, 2)
    return nn.Sequential(down, nn.ReLU(), up, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "chain": _chain,
    "residual": _residual,
    "dense": _dense,
    "joined": _joined,
    "mobile_v1": _mobile_v1,
    "mobile_v2": lambda: nn.Sequential(conv_norm(3, 6), Inverted(6, 12), conv_norm(6, 9, 1), Head(9)),
    "grouped": lambda: nn.Sequential(conv_norm(3, 6), nn.ReLU(), GroupedBlock(6, 12, 4), Head(6)),
    "squeeze_excite": lambda: nn.Sequential(conv_norm(3, 8), nn.ReLU(), SqueezeExcite(8, 4), conv_norm(8, 6), Head(6)),
    "option_a": _option_a,
    "convnext": _convnext,
    "channels_last": ChannelsLast,
    "prelu": _prelu,
    "reused": Reused,
    "branching": Branching,
    "in_place": InPlace,
    "transposed": _transposed,
}


def randomize(network: nn.Module, seed: int) -> nn.Module:
    """Gives every normalization statistics and affine parameters that are not trivial; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


def build(name: str) -> nn.Module:
    """A fresh copy of a test network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomize(BUILDERS[name](), seed=1)


@cache
def find(name: str) -> Specimen:
    """A test network, dissected once for all tests."""
    network, example = build(name), torch.zeros(1, 3, 8, 8)
    return Specimen(name, network, example, dissect(network, example))


BLOCKS: dict[str, Callable[[int], tuple[int, nn.Module]]] = {
    "conv": lambda c: (c + 2, nn.Sequential(conv_norm(c, c + 2), nn.ReLU())),
    "identity": lambda c: (c, Residual(c, c + 1, c, 1, nn.Identity())),
    "projection": lambda c: (c + 3, Residual(c, c, c + 3, 2, conv_norm(c, c + 3, 1, 2))),
    "inverted": lambda c: (c, Inverted(c, 2 * c)),
    "grouped": lambda c: (c, GroupedBlock(c, 8, 2)),
    "dense": lambda c: (c + 3, DenseLayer(c, 3)),
    "gate": lambda c: (c, SqueezeExcite(c, 2)),
}


@cache
def stack(kinds: tuple[str, ...], width: int) -> Specimen:
    """Blocks of any kinds in any order behind a stem, as hypothesis likes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers, channels = [conv_norm(3, width), nn.ReLU()], width
        for kind in kinds:
            channels, block = BLOCKS[kind](channels)
            layers.append(block)
        network = randomize(nn.Sequential(*layers, Head(channels)), seed=1)
    example = torch.zeros(1, 3, 8, 8)
    return Specimen("+".join(kinds), network, example, dissect(network, example))


@pytest.fixture(scope="session")
def stacked() -> Callable[[tuple[str, ...], int], Specimen]:
    """Builds and dissects a network of the named blocks and a stem width."""
    return stack


@pytest.fixture(scope="session", params=list(BUILDERS))
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """Every test network in turn."""
    return find(request.param)


@pytest.fixture(scope="session")
def zoo() -> Callable[[str], Specimen]:
    """A test network by name."""
    return find


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that do not time their networks: it takes three seconds."""
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})


@pytest.fixture
def bare(untimed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose report is empty, too."""
    monkeypatch.setattr("amc.runs.runner.write_report", lambda path, _: path.touch())


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """A Ray of two CPUs for all tests that need one: starting it takes seconds."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of its future defaults
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def fresh() -> Callable[[str], nn.Module]:
    """Builds a test network anew, for tests that change it."""
    return build
