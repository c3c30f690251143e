"""Convolutional networks of every kind, small and with random weights: what users bring, not what was tuned for.

`NETWORKS` maps a name to a builder and to the shape of one input; no module here knows the project.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def pooled(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 5),
    )


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 16), (16, 16)):
        layers += [conv_norm(inputs, outputs), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2, 2)] if outputs == inputs else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 20), nn.ReLU(inplace=True), nn.Linear(20, 5))


class Basic(nn.Module):
    """ResNet's basic block with any shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(x)))
        out += self.shortcut(x)
        return F.relu(out)


class PadShortcut(nn.Module):
    """Option A: every second pixel, zeros for the new channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)


def resnet(shortcut: Builder) -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8),
        nn.ReLU(),
        Basic(8, 8, 1, nn.Identity()),
        Basic(8, 16, 2, shortcut()),
        Basic(16, 16, 1, nn.Identity()),
        pooled(16),
    )


class PreActivation(nn.Module):
    """Normalizes and activates in front of each convolution; the projection reads the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut: Tensor = self.project(y) if hasattr(self, "project") else x
        out: Tensor = shortcut + self.conv2(F.relu(self.bn2(self.conv1(y))))
        return out


def preactivation() -> nn.Module:
    blocks = PreActivation(8, 8, 1), PreActivation(8, 12, 2), PreActivation(12, 12, 1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.BatchNorm2d(12), nn.ReLU(), pooled(12))


class DenseStage(nn.Module):
    """Bottleneck layers that append to a list of features."""

    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + k * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + k * growth, 2 * growth, 1),
                nn.BatchNorm2d(2 * growth),
                nn.ReLU(),
                nn.Conv2d(2 * growth, growth, 3, padding=1),
            )
            for k in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        DenseStage(8, 4, 2),
        transition,
        DenseStage(8, 4, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        pooled(16),
    )


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = conv_norm(inputs, width, 1)
        self.three = nn.Sequential(conv_norm(inputs, width // 2, 1), nn.ReLU(), conv_norm(width // 2, width))
        self.five = nn.Sequential(conv_norm(inputs, width // 2, 1), nn.ReLU(), conv_norm(width // 2, width, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1))


def inception() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(), Inception(8, 4), Inception(16, 4), pooled(16))


def mobilenet_v1() -> nn.Module:
    def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        deep = conv_norm(inputs, inputs, 3, stride, inputs)
        return [deep, nn.ReLU6(), conv_norm(inputs, outputs, 1), nn.ReLU6()]

    return nn.Sequential(conv_norm(3, 8), nn.ReLU6(), *separable(8, 12, 1), *separable(12, 16, 2), pooled(16))


class SqueezeExcite(nn.Module):
    """A gate per channel, from linear layers."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate.view(b, c, 1, 1)


class Inverted(nn.Module):
    """Expand, depthwise, perhaps squeeze and excite, project; added where the shapes agree."""

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, act: type[nn.Module], excite: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(inputs, inner, 1), act(), conv_norm(inner, inner, 5, stride, inner), act()]
        layers += [SqueezeExcite(inner, 4)] if excite else []
        self.body = nn.Sequential(*layers, conv_norm(inner, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.adds else out


def mobilenet_v2() -> nn.Module:
    blocks = Inverted(8, 16, 8, 1, nn.ReLU6), Inverted(8, 16, 12, 2, nn.ReLU6), Inverted(12, 24, 12, 1, nn.ReLU6)
    return nn.Sequential(conv_norm(3, 8), nn.ReLU6(), *blocks, conv_norm(12, 20, 1), nn.ReLU6(), pooled(20))


def mobilenet_v3() -> nn.Module:
    blocks = Inverted(8, 16, 8, 1, nn.ReLU, True), Inverted(8, 16, 12, 2, nn.Hardswish, True)
    head = nn.Linear(20, 24), nn.Hardswish(), nn.Linear(24, 5)
    return nn.Sequential(
        conv_norm(3, 8),
        nn.Hardswish(),
        *blocks,
        conv_norm(12, 20, 1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *head,
    )


class SamePadConv(nn.Conv2d):
    """TensorFlow's padding, computed from the input's size, as in many ports of EfficientNet."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticPadConv(nn.Conv2d):
    """The same with padding computed once, in a module of its own."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, groups=groups, bias=False)
        self.static_padding = nn.ZeroPad2d(kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class EfficientBlock(nn.Module):
    """Inverted block of subclassed convolutions."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.expand, self.bn0 = StaticPadConv(channels, inner, 1), nn.BatchNorm2d(inner)
        self.depthwise, self.bn1 = StaticPadConv(inner, inner, 3, inner), nn.BatchNorm2d(inner)
        self.reduce, self.excite = StaticPadConv(inner, 4, 1), StaticPadConv(4, inner, 1)
        self.project, self.bn2 = StaticPadConv(inner, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn0(self.expand(x)))
        y = F.silu(self.bn1(self.depthwise(y)))
        y = torch.sigmoid(self.excite(F.silu(self.reduce(F.adaptive_avg_pool2d(y, 1))))) * y
        out: Tensor = self.bn2(self.project(y)) + x
        return out


def efficientnet() -> nn.Module:
    stem = SamePadConv(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.SiLU()
    return nn.Sequential(*stem, EfficientBlock(8, 16), SamePadConv(8, 12, 1), nn.SiLU(), pooled(12))


class Shuffle(nn.Module):
    """ShuffleNet-V2's unit: half of the channels pass, then both halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            conv_norm(half, half, 1), nn.ReLU(), conv_norm(half, half, 3, 1, half), conv_norm(half, half, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        out = torch.cat((left, self.body(right)), dim=1)
        n, c, h, w = out.shape
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 16), nn.ReLU(), Shuffle(16), Shuffle(16), conv_norm(16, 20, 1), nn.ReLU(), pooled(20)
    )


class Bottleneck(nn.Module):
    """ResNeXt's block."""

    def __init__(self, channels: int, inner: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm(channels, inner, 1), conv_norm(inner, inner, 3, 1, groups)
        self.conv3 = conv_norm(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))


def resnext() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(), Bottleneck(8, 16, 4), Bottleneck(8, 16, 4), pooled(8))


class NextBlock(nn.Module):
    """ConvNeXt's block with layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = (
            nn.Linear(channels, 3 * channels),
            nn.GELU(),
            nn.Linear(3 * channels, channels),
        )
        self.gamma = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), NextBlock(8), nn.Conv2d(8, 12, 2, 2), NextBlock(12), pooled(12))


class UNet(nn.Module):
    """Two levels down and up, with skips; a score per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._double(3, 6), self._double(6, 8)
        self.bottom = self._double(8, 12)
        self.up2, self.merge2 = nn.ConvTranspose2d(12, 8, 2, 2), self._double(16, 8)
        self.up1, self.merge1 = nn.ConvTranspose2d(8, 6, 2, 2), self._double(12, 6)
        self.head = nn.Conv2d(6, 2, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(inputs, outputs), nn.ReLU(True), conv_norm(outputs, outputs), nn.ReLU(True))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        y = self.bottom(F.max_pool2d(second, 2))
        y = self.merge2(torch.cat([second, self.up2(y)], 1))
        y = self.merge1(torch.cat([first, self.up1(y)], 1))
        scores: Tensor = self.head(y)
        return scores


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 12, 3, padding=1),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class Pyramid(nn.Module):
    """Dilated convolutions side by side and an image-wide branch, as in DeepLab."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.rates = nn.ModuleList(nn.Conv2d(inputs, width, 3, padding=r, dilation=r) for r in (1, 2, 3))
        self.wide = nn.Conv2d(inputs, width, 1)
        self.project = conv_norm(4 * width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.interpolate(self.wide(F.adaptive_avg_pool2d(x, 1)), size=(8, 8), mode="nearest")
        out: Tensor = self.project(torch.cat([*(rate(x) for rate in self.rates), wide], 1))
        return out


def dilated() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(), Pyramid(8, 4), nn.ReLU(), nn.Conv2d(10, 3, 1))


class Detector(nn.Module):
    """Features of two sizes, merged top-down; classes and boxes of each size."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2 = conv_norm(3, 8), conv_norm(8, 12, 3, 2)
        self.lateral1, self.lateral2 = nn.Conv2d(8, 8, 1), nn.Conv2d(12, 8, 1)
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = F.relu(self.stage1(x))
        small = self.lateral2(F.relu(self.stage2(first)))
        large = self.lateral1(first) + F.interpolate(small, scale_factor=2.0, mode="nearest")
        near, far = self.tower(large), self.tower(small)
        return self.classes(near), self.boxes(near), self.classes(far), self.boxes(far)


class Joined(nn.Module):
    """Makes one tensor [B, ...] of several outputs, as a task needs it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([output.flatten(1) for output in self.body(x)], 1).unsqueeze(1)


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.GroupNorm(1, 12),
        nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=1),
        nn.ReLU(),
        pooled(10),
    )


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.InstanceNorm2d(12),
        nn.LeakyReLU(0.1),
        nn.Conv2d(12, 8, 3, 2, padding=1),
        nn.ELU(),
        pooled(8),
    )


def prelu() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.PReLU(8), nn.Conv2d(8, 12, 3, padding=1), nn.PReLU(), pooled(12))


def super_resolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


class NonLocal(nn.Module):
    """Every position attends to every other (Wang et al., 2018)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.theta, self.phi = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.g, self.out = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        attention = torch.softmax(torch.matmul(theta.transpose(1, 2), phi), dim=-1)
        y = torch.matmul(attention, g.transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.out(y.reshape(x.shape[0], -1, x.shape[2], x.shape[3]))
        return out


def nonlocal_net() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(), NonLocal(8, 6), conv_norm(8, 10), nn.ReLU(), pooled(10))


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 4, 1),
        nn.ConvTranspose2d(4, 8, 3, 2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, padding=1),
    )


class Ghost(nn.Module):
    """Half of the features by a convolution, half by cheap depthwise ones of these (GhostNet)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.primary, self.cheap = conv_norm(inputs, half, 1), conv_norm(half, half, 3, 1, half)

    def forward(self, x: Tensor) -> Tensor:
        primary = F.relu(self.primary(x))
        return torch.cat([primary, F.relu(self.cheap(primary))], dim=1)


def ghostnet() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(), Ghost(8, 16), Ghost(16, 16), pooled(16))


class Res2(nn.Module):
    """Channels in parts, each convolved after the one before was added (Res2Net)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.enter, self.leave = conv_norm(channels, channels, 1), conv_norm(channels, channels, 1)
        self.parts = nn.ModuleList(conv_norm(part, part) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.split(F.relu(self.enter(x)), x.shape[1] // 4, dim=1)
        done = [first]
        for part, piece in zip(self.parts, others, strict=True):
            done.append(F.relu(part(piece + done[-1])))
        return F.relu(x + self.leave(torch.cat(done, 1)))


def res2net() -> nn.Module:
    return nn.Sequential(conv_norm(3, 16), nn.ReLU(), Res2(16), conv_norm(16, 12), nn.ReLU(), pooled(12))


NETWORKS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "plain": (plain, (3, 8, 8)),
    "vgg": (vgg, (3, 8, 8)),
    "resnet_projection": (lambda: resnet(lambda: conv_norm(8, 16, 1, 2)), (3, 8, 8)),
    "resnet_option_a": (lambda: resnet(PadShortcut), (3, 8, 8)),
    "preactivation": (preactivation, (3, 8, 8)),
    "densenet": (densenet, (3, 8, 8)),
    "inception": (inception, (3, 8, 8)),
    "mobilenet_v1": (mobilenet_v1, (3, 8, 8)),
    "mobilenet_v2": (mobilenet_v2, (3, 8, 8)),
    "mobilenet_v3": (mobilenet_v3, (3, 8, 8)),
    "efficientnet": (efficientnet, (3, 8, 8)),
    "shufflenet": (shufflenet, (3, 8, 8)),
    "resnext": (resnext, (3, 8, 8)),
    "convnext": (convnext, (3, 16, 16)),
    "unet": (UNet, (3, 8, 8)),
    "conv1d": (conv1d, (4, 16)),
    "conv3d": (conv3d, (1, 4, 8, 8)),
    "dilated": (dilated, (3, 8, 8)),
    "detector": (lambda: Joined(Detector()), (3, 8, 8)),
    "group_norm": (group_norm, (3, 8, 8)),
    "instance_norm": (instance_norm, (3, 8, 8)),
    "prelu": (prelu, (3, 8, 8)),
    "super_resolution": (super_resolution, (1, 8, 8)),
    "nonlocal": (nonlocal_net, (3, 8, 8)),
    "autoencoder": (autoencoder, (1, 8, 8)),
    "ghostnet": (ghostnet, (3, 8, 8)),
    "res2net": (res2net, (3, 8, 8)),
}
