"""Heads of classes that run with fewer once numbers and tables that they hold are changed, or that write to a cache."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.units.anatomy import dissect
from envs.units.slicing import slice_network
from tests.units.attention.test_heads import ZOO, built, inputs, read

ATTRIBUTES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "attention_rotary": ("head groups", 2, {"heads": 2, "groups": 1, "repeats": 2}),
    "attention_sloped": ("heads", 4, {"heads": 2, "slopes": (2,)}),
    "attention_relative": ("heads", 4, {"heads": 2, "bias.weight": (7, 2), "bias.embedding_dim": 2}),
    "attention_transposed": ("heads", 4, {"split": 8, "bias": (2, 1, 1)}),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_numbers_and_tables_of_a_class_go_with_its_heads(name: str) -> None:
    anatomy = read(name)
    kind, count, expected = ATTRIBUTES[name]
    heads = [unit for unit in anatomy.units if unit.kind == kind]
    assert [unit.channels for unit in heads] == [count, count]
    small = slice_network(anatomy.network, anatomy.units, {unit.name: [0, 1][: count // 2] for unit in heads})
    attention = small.blocks[1].attention  # type: ignore[index, union-attr]
    assert type(attention) is type(built(name).blocks[1].attention)  # type: ignore[index, union-attr]
    found = {path: attrgetter(path)(attention) for path in expected}
    assert {path: tuple(one.shape) if isinstance(one, Tensor) else one for path, one in found.items()} == expected
    assert small(inputs()).shape == (3, 5)


class Caching(nn.Module):
    """Keys and values are kept between calls in an object that is passed along, as language models do; rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(5, 16), ZOO.Rotary(16, 4, 4), nn.Linear(16, 5)
        self.attention.forward = self.attend

    def attend(self, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
        attention: Any = self.attention
        b, n, _ = x.shape
        q, k, v = (
            layer(x).view(b, n, attention.heads, attention.size).transpose(1, 2)
            for layer in (attention.q, attention.k, attention.v)
        )
        for name, new in (("keys", attention.rotated(k)), ("values", v)):
            cache[name] = torch.cat([cache[name], new], dim=2) if name in cache else new
        y = F.scaled_dot_product_attention(attention.rotated(q), cache["keys"], cache["values"])
        out: Tensor = attention.out(y.transpose(1, 2).reshape(b, n, attention.heads * attention.size))
        return out

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        logits: Tensor = self.head((y + self.attention(y, cache={})).mean(dim=1))
        return logits


def test_a_cache_that_attention_writes_to_hides_no_heads() -> None:
    torch.manual_seed(0)
    anatomy = dissect(Caching().eval(), inputs()[:1], inputs())
    (unit,) = (unit for unit in anatomy.units if unit.kind == "heads")
    assert unit.channels == 4
    assert {one.name for one in unit.attributes} == {"attention.heads"}


class OneLayer(nn.Module):
    """One layer writes queries, and fewer keys and values: parts one after the other, or group by group."""

    def __init__(self, width: int, heads: int, groups: int, in_turns: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.in_turns = heads, groups, width // heads, in_turns
        self.qkv, self.proj = nn.Linear(width, (heads + 2 * groups) * self.size), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if self.in_turns:
            parts = self.qkv(x).view(b, n, self.groups, -1, self.size)
            q, k, v = (part.flatten(2, 3) for part in (parts[..., :-2, :], parts[..., -2:-1, :], parts[..., -1:, :]))
        else:
            fewer = self.groups * self.size
            q, k, v = self.qkv(x).split([self.heads * self.size, fewer, fewer], dim=-1)
            q, k, v = (part.view(b, n, -1, self.size) for part in (q, k, v))
        q, k, v = (part.transpose(1, 2) for part in (q * q.abs(), k, v))  # no formula of ours
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return out


@pytest.mark.parametrize("in_turns", [False, True], ids=["parts", "in turns"])
@pytest.mark.parametrize(("groups", "kind", "channels"), [(2, "head groups", 2), (1, "heads", 4)])
def test_one_layer_that_writes_fewer_keys_than_queries(groups: int, kind: str, channels: int, in_turns: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), OneLayer(16, 4, groups, in_turns), nn.Linear(16, 5)).eval()
    anatomy = dissect(network, inputs()[:1], inputs())
    (unit,) = (unit for unit in anatomy.units if unit.name == "1.qkv")
    assert (unit.kind, unit.channels) == (kind, channels)
    small: Any = slice_network(anatomy.network, anatomy.units, {unit.name: [0]})
    assert small[1].qkv.out_features == (2 + 2 if groups == 2 else 1 + 2) * 4
    assert small(inputs()).shape == (3, 6, 5)


class Gated(OneLayer):
    """What the heads give is multiplied with gates of the tokens: one for each channel, or for each head."""

    def __init__(self, width: int, heads: int, gates: int) -> None:
        super().__init__(width, heads, heads, in_turns=False)
        self.gate, self.each = nn.Linear(width, gates), gates // heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, -1, self.size).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q * q.abs(), k, v).transpose(1, 2)
        gates = self.gate(x).sigmoid().view(b, n, -1, self.each)
        out: Tensor = self.proj((y * gates).reshape(b, n, -1))
        return out


@pytest.mark.parametrize("gates", [4, 16])
def test_gates_go_with_the_heads_that_they_open(gates: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), Gated(16, 4, gates), nn.Linear(16, 5)).eval()
    anatomy = dissect(network, inputs()[:1], inputs())
    (unit,) = (unit for unit in anatomy.units if unit.name == "1.qkv")
    assert (unit.kind, unit.channels) == ("heads", 4)
    small: Any = slice_network(anatomy.network, anatomy.units, {unit.name: [0, 3]})
    assert small[1].gate.out_features == gates // 2
    assert small(inputs()).shape == (3, 6, 5)
