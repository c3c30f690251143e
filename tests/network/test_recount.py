"""Costs by operator: every network's layouts count what its own forward multiplies, dense and pruned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.network.counting import counting
from envs.network.graph import trace
from envs.network.recount import CountMismatch, confirm_macs, independent_macs
from envs.units.anatomy import dissect
from envs.units.layout import kept_counts, read_layout
from envs.units.slicing import slice_network
from envs.units.verification.together import verify_together
from hw_profiles.cost import Macs, Params, cost_of
from hw_profiles.layers import Layout

IMAGE, TOKENS, SIGNAL = (1, 3, 16, 16), (1, 10, 8), (1, 3, 20)


class PaddedConv(nn.Conv2d):
    """Pads by itself and calls F.conv2d, as EfficientNet-Lite's convolutions do."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.static_padding = nn.ZeroPad2d((0, kernel - 1, 0, kernel - 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = self.static_padding(x)
        return F.conv2d(padded, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def padded() -> nn.Module:
    return nn.Sequential(
        PaddedConv(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        PaddedConv(8, 8, 3, 2, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        PaddedConv(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


class Vit(nn.Module):
    """One block of a vision transformer."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patch, self.attention, self.head = nn.Conv2d(3, 16, 4, 4), attention(), nn.Linear(16, 5)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.attention(self.first(x))
        out: Tensor = self.head((x + self.narrow(F.gelu(self.wide(self.second(x))))).mean(1))
        return out


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class FusedAttention(nn.Module):
    """One layer for queries, keys and values, and torch's fused product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        out: Tensor = self.out(mixed)
        return out


class ApartAttention(nn.Module):
    """Single-head attention from three layers and two products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bic,bjc->bij", self.q(x), self.k(x)).softmax(-1)
        out: Tensor = self.out(scores @ self.v(x))
        return out


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(8, 32), nn.Linear(24, 16)
        self.recurrent, self.head = kind(32, 24, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(F.relu(self.first(x)))
        out: Tensor = self.head(F.relu(self.hidden(states[:, -1])))
        return out


class Encoder(nn.Module):
    """Integer tokens and torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embed, self.encoder, self.head = nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(tokens)).mean(1))
        return out


class Functional(nn.Module):
    """Parameters of its own, used by functions of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.up = nn.Parameter(torch.rand(8, 3, 3, 3)), nn.Parameter(torch.rand(8, 3, 2, 2))
        self.wide, self.narrow, self.bilinear = nn.Linear(6, 10), nn.Linear(10, 6), nn.Bilinear(6, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(F.relu(F.conv2d(x, self.weight)), self.up, stride=2, groups=2)
        x = x.mean((2, 3))
        out: Tensor = self.bilinear(x, self.narrow(F.relu(self.wide(x))))
        return out


class CalledAttention(nn.Module):
    """Multi-head attention as a function, which returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Parameter(torch.rand(48, 16)), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        mixed: Tensor = F.multi_head_attention_forward(
            x, x, x, 16, 2, self.mix, None, None, None, False, 0.0, self.out.weight, self.out.bias, training=False
        )[0]
        return mixed.transpose(0, 1)


class Undecided(nn.Module):
    """Branches on values, so that it cannot be traced, and multiplies by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.mix = nn.Linear(8, 10), nn.Linear(10, 4), nn.Parameter(torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(torch.relu(self.wide(x)))
        return x @ self.mix if x.sum() < 1e9 else x


class Windows(nn.Module):
    """Works on four windows that stand in the place of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 5, 8)
        out: Tensor = self.narrow(torch.relu(self.wide(windows))).reshape(x.shape[0], -1, 4).mean(1)
        return out


class Stacked(nn.Module):
    """A stack of residual convolutions whose last residual nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv1d(3, 8, 1), nn.Conv1d(6, 2, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=2**k, dilation=2**k) for k in range(2))
        self.residuals = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(8, 6, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(1)
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            hidden = torch.relu(gate(x))
            total = total + skip(hidden)
            x = x + residual(hidden)
        out: Tensor = self.out(torch.relu(total)).mean(2)
        return out


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # network, input, MACs by hand
    "padded": (padded, IMAGE, 3 * 8 * 9 * 256 + 8 * 9 * 64 + 8 * 12 * 64 + 48),
    "attention module": (lambda: Vit(SelfAttention), IMAGE, 69712),
    "fused attention": (lambda: Vit(FusedAttention), IMAGE, 69712),
    "attention apart": (lambda: Vit(ApartAttention), IMAGE, 69712),
    "attention called": (lambda: Vit(CalledAttention), IMAGE, 69712),
    "lstm": (lambda: Recurrent(nn.LSTM), TOKENS, 2560 + 10 * 4 * 24 * 56 + 24 * 16 + 64),
    "gru": (lambda: Recurrent(nn.GRU), TOKENS, 2560 + 10 * 3 * 24 * 56 + 24 * 16 + 64),
    "rnn": (lambda: Recurrent(nn.RNN), TOKENS, 2560 + 10 * 24 * 56 + 24 * 16 + 64),
    "encoder": (Encoder, (1, 7), 2 * (4 * 7 * 32 * 32 + 2 * 7 * 7 * 32 + 2 * 7 * 32 * 64) + 96),
    "functional": (Functional, IMAGE, 8 * 27 * 196 + 8 * 3 * 4 * 196 + 120 + 144),
    "untraced": (Undecided, (1, 8), 80 + 40 + 16),
    "windows": (Windows, (1, 20, 8), 20 * 120),
    "dead code": (Stacked, SIGNAL, 20 * (24 + 2 * (192 + 64 + 48) + 12)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = NETWORKS[name]
    return make().eval(), torch.zeros(shape, dtype=torch.long if name == "encoder" else torch.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_that_multiplies_is_counted(name: str) -> None:
    network, example = build(name)
    macs = NETWORKS[name][2]
    assert cost_of(Macs(), dissect(network, example).family.dense) == macs
    assert independent_macs(network, example).macs == macs


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "functional"])
def test_the_costs_foretold_are_those_of_the_really_sliced_network(name: str) -> None:
    network, example = build(name)
    anatomy = dissect(network, example)
    kept = {unit.name: list(range(unit.channels // 2)) for unit in anatomy.units}
    assert kept
    small = slice_network(anatomy.network, anatomy.units, kept)
    foretold = anatomy.family.at(kept_counts(anatomy.family, {name: len(own) for name, own in kept.items()}))
    assert cost_of(Macs(), foretold) == independent_macs(small, example).macs
    assert cost_of(Params(), foretold) == sum(parameter.numel() for parameter in small.parameters())


def test_units_that_together_cost_other_than_foretold_are_left_out() -> None:
    network, example = build("dead code")
    anatomy = dissect(network, example)
    family, graph = anatomy.family, anatomy.graph
    assert verify_together(network, example, graph, anatomy.units, family) == (list(anatomy.units), [])
    slopes = family.products.copy()
    slopes[graph.order()["gates.0"], family.units.index("first")] = 1
    kept, fixed = verify_together(network, example, graph, anatomy.units, replace(family, products=slopes))
    assert [unit.name for unit in kept] == [unit.name for unit in anatomy.units if unit.name != "first"]
    assert "what 'gates.0' multiplies is not linear in its channels" in fixed[0].reason


def test_a_layout_that_counts_other_than_the_network_names_where() -> None:
    network, example = build("fused attention")
    anatomy = dissect(network, example)
    layers = tuple(replace(one, products=0) for one in anatomy.family.dense.layers)
    wrong = replace(anatomy.family.dense, layers=layers)
    with pytest.raises(CountMismatch, match=r"61,520 MACs for 69,712: 'attention.core' has 0 for 8,192 .*bmm 8,192"):
        confirm_macs(wrong, anatomy.graph, independent_macs(anatomy.network, example))


def test_a_pattern_counts_as_dense_where_the_network_is_counted() -> None:
    network, example = build("padded")
    graph = trace(network, example)
    layout = read_layout(network, graph, example)
    sparse = replace(layout, layers=(*layout.layers[:-1], replace(layout.layers[-1], pattern="2:4")))
    confirm_macs(sparse, graph, independent_macs(network, example))


def test_what_has_no_formula_is_named() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(11, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.fft.rfft(x).abs())
            return out

    assert dissect(Spectral().eval(), torch.zeros(1, 20)).uncounted == ("aten._fft_r2c",)
    assert dissect(*build("attention module")).uncounted == ()


def test_counting_puts_the_switches_of_torch_back() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        dissect(*build("encoder"))
        with pytest.raises(ZeroDivisionError), counting():
            _ = 1 / 0
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_recurrent_layers_are_counted_alike_with_and_without_fused_kernels() -> None:
    network, example = build("lstm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a switch for other hardware
        with torch.backends.mkldnn.flags(enabled=False), counting() as apart:
            network(example)
    with counting() as fused:
        network(example)
    assert apart.take() == fused.take() > 0


def test_layouts_of_before_read_back() -> None:
    layout = dissect(*build("fused attention")).family.dense
    data = layout.to_json()
    assert Layout.from_json(data) == layout
    for row in data["layers"]:
        del row["products"]
    assert not any(layer.products for layer in Layout.from_json(data).layers)
