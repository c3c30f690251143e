"""Attention whose forward holds numbers in its code: they follow the heads once the forward is recorded."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from amc.export.applied import WEIGHTS
from amc.export.rebuild import load_network
from amc.export.structure import STRUCTURE, write_structure
from envs.network.tracing.resized import Resized
from envs.space.policy_file import FormEntry
from envs.units.anatomy import Anatomy, dissect
from envs.units.attention.explicit import made_explicit
from envs.units.slicing import slice_network

pytestmark = pytest.mark.xdist_group("resized")  # one process reads the networks that its tests share

WIDTH = 16


def inputs(count: int = 3) -> Tensor:
    return torch.randn(count, 6, WIDTH, generator=torch.Generator("cpu").manual_seed(1), device="cpu")


def rotated(x: Tensor) -> Tensor:
    """Neighbours turned by their position (Su et al., RoFormer, 2021), in the way of Llama's published code."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] / 100 ** torch.linspace(0, 1, x.shape[-1] // 2)
    a, b = pairs.unbind(-1)
    return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten(-2)


class FromWidth(nn.Module):
    """`c // self.heads` of the width that stays; queries and keys normalized, and scaled head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.rand(self.heads, 1, 1) + 1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(rotated(q), dim=-1) * self.scale, F.normalize(rotated(k), dim=-1)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return out


class Written(nn.Module):
    """Four heads that share two pairs of keys and values, all in the code; parts as slices."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        both = self.kv(x)
        k, v = (part.view(b, n, 2, 4).transpose(1, 2) for part in (both[..., :8], both[..., 8:]))
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        y = F.scaled_dot_product_attention(rotated(q), rotated(k), v, enable_gqa=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, n, 16))
        return out


class Tabled(FromWidth):
    """Reads a table as long as the tokens: torch.fx records buffers in a second attempt only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.table  # type: ignore[assignment]
        b, n, c = x.shape
        k, q, v = (part.reshape(b, n, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q * self.scale, rotated(k), v).transpose(1, 2)
        out: Tensor = self.out(y.reshape(b, n, c)) + table[:n]
        return out


class Merged(nn.Module):
    """Heads merged with the batch, split by sizes and multiplied by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 48), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        parts = (part.view(b, n, 4, 4).transpose(1, 2).reshape(b * 4, n, 4) for part in self.qkv(x).split(16, dim=-1))
        q, k, v = parts
        y = torch.bmm((torch.bmm(rotated(q), rotated(k).transpose(1, 2)) / 2).softmax(-1), v)
        out: Tensor = self.out(y.view(b, 4, n, 4).permute(0, 2, 1, 3).reshape(b, n, 16))
        return out


CLASSES: dict[str, tuple[type[nn.Module], str, int]] = {
    "from width": (FromWidth, "heads", 4),
    "written": (Written, "head groups", 2),
    "merged": (Merged, "heads", 4),
    "tabled": (Tabled, "heads", 4),
}


class Network(nn.Module):
    """Two blocks around a shortcut, and a classifier."""

    def __init__(self, kind: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


@cache
def read(name: str) -> Anatomy:
    torch.manual_seed(0)
    return dissect(Network(CLASSES[name][0]).eval(), inputs(1), inputs())


def half(anatomy: Anatomy) -> nn.Module:
    return slice_network(
        anatomy.network, anatomy.units, {unit.name: range(unit.channels // 2) for unit in anatomy.units}
    )


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_in_the_code_follow_the_heads(name: str) -> None:
    anatomy = read(name)
    _, kind, count = CLASSES[name]
    assert [(unit.kind, unit.channels) for unit in anatomy.units if unit.name != "head"] == [(kind, count)] * 2
    small: Any = half(anatomy)
    assert small.blocks[0].out.in_features == 8
    assert small(inputs(2)).shape == (2, 5)


@pytest.mark.parametrize("name", CLASSES)
def test_the_policy_makes_the_same_network_of_other_weights(name: str) -> None:
    anatomy = read(name)
    forms = [FormEntry.model_validate(form.to_json()).form() for form in anatomy.forms]
    assert forms == list(anatomy.forms)
    torch.manual_seed(1)
    other = Network(CLASSES[name][0]).eval()
    explicit = made_explicit(other, forms)
    assert torch.allclose(explicit(inputs()), other(inputs()), atol=1e-5)
    assert explicit.state_dict().keys() == other.state_dict().keys()


def test_it_trains_and_drops_only_in_training() -> None:
    small = half(read("from width")).train()
    before = small(inputs()).sum()
    before.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.slow
def test_stored_networks_are_the_same_in_another_process(tmp_path: Path) -> None:
    for name in CLASSES:
        small, home = half(read(name)), tmp_path / name
        home.mkdir()
        save_model(small, str(home / WEIGHTS))
        write_structure(small, home / STRUCTURE)
        assert torch.equal(load_network(home)(inputs()), small(inputs()))
        torch.save(small(inputs()), home / "expected.pt")
    torch.save(inputs(), tmp_path / "inputs.pt")
    code = f"""
import torch
from pathlib import Path
from amc.export.rebuild import load_network
x = torch.load(Path({str(tmp_path)!r}) / "inputs.pt")
for name in {list(CLASSES)}:
    home = Path({str(tmp_path)!r}) / name
    network = load_network(home)
    program = torch.export.export(network, (x,), strict=False).module()
    assert torch.allclose(program(x), torch.load(home / "expected.pt"), atol=1e-6), name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[3])


class Checked(Network):
    """Looks at the class of its input, which torch.fx has no program for."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("no tensor")
        return super().forward(x)


@pytest.mark.parametrize(
    "name", ["merged", *(pytest.param(name, marks=pytest.mark.slow) for name in CLASSES if name != "merged")]
)
def test_heads_follow_in_networks_that_torch_export_traces_too(name: str) -> None:
    torch.manual_seed(0)
    kind, what, count = CLASSES[name]
    anatomy = dissect(Checked(kind).eval(), inputs(1), inputs())
    assert [(unit.kind, unit.channels) for unit in anatomy.units if unit.name != "head"] == [(what, count)] * 2
    assert half(anatomy)(inputs(2)).shape == (2, 5)


class Strange(FromWidth):
    """Does what no recorded forward does again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.how == "length" and x.shape[1] > 8:
            return y.cumsum(dim=1)
        if self.how == "single" and self.training and x.shape[0] < 2:
            raise ValueError("needs several samples in training")
        if self.how == "random" and self.training:
            return y * torch.bernoulli(torch.full((WIDTH,), 0.5))
        if self.how == "drawn" and self.training and random.random() < 0.5:
            return y * 0
        if self.how == "counting" and self.training:
            self.seen.add_(1)  # type: ignore[operator]
        if self.how == "no gradient":
            with torch.no_grad():
                return self.out(y)  # type: ignore[no-any-return]
        if self.how == "in place" and self.training:
            y.mul_(0.5)
        if self.how == "keeping":
            self.last = y
        if self.how == "shaping" and self.training:
            return y.view(*y.shape[:2], WIDTH)
        return y


@pytest.mark.parametrize(
    "how", ["single", "random", "drawn", "counting", "no gradient", "in place", "keeping", "shaping"]
)
def test_what_a_recorded_forward_would_not_do_again_stays_in_its_class(how: str) -> None:
    torch.manual_seed(0)
    anatomy = dissect(Network(partial(Strange, how)).eval(), inputs(1), inputs())
    assert not anatomy.forms
    assert not any(unit.kind == "heads" for unit in anatomy.units)


def test_a_forward_that_asks_for_sizes_does_so_with_fewer_heads_too() -> None:
    torch.manual_seed(0)
    dense = Network(partial(Strange, "length")).eval()
    anatomy = dissect(dense, inputs(1), inputs())
    assert [unit.kind for unit in anatomy.units if unit.name != "head"] == ["heads"] * 2
    short, long = inputs(), torch.cat([inputs(), inputs() + 1], dim=1)
    for x in (short, long, short[:1]):
        assert torch.allclose(anatomy.network(x), dense(x), atol=1e-5)
    small: Any = half(anatomy)
    module, x = small.blocks[0], torch.randn(1, 9, WIDTH)
    summed = module(x)
    module.how = ""
    assert torch.allclose(summed, module(x).cumsum(dim=1), atol=1e-5)
    assert module.out.in_features == WIDTH // 2


class Described(FromWidth):
    """Says how wide it is, which the network reads; the mask is an argument that may be missing."""

    @property
    def width(self) -> int:
        return self.out.out_features

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            mask = mask.view(x.shape[0], 1, -1)[..., : x.shape[1]]
            x = x * mask.transpose(1, 2)
        return super().forward(x)


class Reading(nn.Module):
    """One block, called with a mask or without."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Described(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.block(x, mask).mean(1) / self.block.width)
        return logits


def test_properties_are_there_and_a_mask_may_be_missing() -> None:
    torch.manual_seed(0)
    network, mask = Reading().eval(), torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2, [1.0] * 6])
    anatomy = dissect(network, (inputs(1), mask[:1]), (inputs(), mask))
    assert [unit.kind for unit in anatomy.units] == ["heads"]
    small = half(anatomy)
    assert torch.allclose(small(inputs(), torch.ones_like(mask)), small(inputs()), atol=1e-6)
    assert small.double()(inputs().double()).dtype == torch.float64


def test_threads_may_be_the_first_to_call_it() -> None:
    small = half(read("from width"))
    expected = small(inputs())
    for _ in range(5):
        fresh = pickle.loads(pickle.dumps(small))  # without what was recorded
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _, network=fresh: network(inputs()), range(8)))
        assert all(torch.equal(result, expected) for result in results)


def test_layers_keep_their_names() -> None:
    anatomy = read("from width")
    block: Any = anatomy.network.get_submodule("blocks.0")
    assert isinstance(block, Resized)
    assert block.resized_class is FromWidth
    assert {name for name, _ in block.named_parameters()} == {name for name, _ in FromWidth().named_parameters()}
