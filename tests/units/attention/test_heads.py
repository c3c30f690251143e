"""Attention: explicit modules compute the same, heads are units, and what comes out is a plain network."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.export.applied import load_applied, write_applied
from amc.runs.finetuning.start import sliced
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.importance.scores import IMPORTANCES
from envs.network.attention import Attention
from envs.network.graph import trace
from envs.regression.heard import heard_positions
from envs.regression.statistics import Sampling
from envs.space.policy import Policy, PolicyMismatch, UnitPolicy
from envs.space.policy_file import FormEntry
from envs.space.rules import Rules
from envs.units.anatomy import Anatomy, dissect
from envs.units.attention.decided import Decided
from envs.units.attention.explicit import Form, explicit, made_explicit
from envs.units.attention.linear import transposed_layers
from envs.units.slicing import slice_network


def _forms() -> Any:
    """A file beside this one; tests are no package."""
    specification = importlib.util.spec_from_file_location(
        "zoo_attention", Path(__file__).parents[1] / "zoo_attention.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


ZOO = _forms()


def built(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = ZOO.NETWORKS[name][0]().eval()
    return network


def inputs(count: int = 3) -> Tensor:
    return torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(1))


@cache
def read(name: str, attention: Decided = "heads") -> Anatomy:
    return dissect(built(name), inputs()[:1], inputs(), attention)


def compressor(anatomy: Anatomy, repair: str = "none", importance: str = "obs") -> Compressor:
    settings = CompressionSettings(repair=repair, positions=6, quick_positions=6, importance=importance)
    family, units = anatomy.family, anatomy.units
    chunks = torch.split(inputs(32), 8)
    return Compressor(anatomy.network, anatomy.graph, family, units, chunks, settings, forms=anatomy.forms)


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True] * 2, [False] * 6])},
    "added": {"attn_mask": torch.randn(6, 6, generator=torch.Generator().manual_seed(2))},
    "causal": {"attn_mask": torch.ones(6, 6).triu(1).bool()},
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "options",
    [{"batch_first": True}, {"bias": False}, {"kdim": 5, "vdim": 7, "batch_first": True}],
    ids=["first", "second", "other widths"],
)
def test_explicit_attention_gives_what_torchs_own_gives(options: dict[str, Any], masks: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(8, 2, **options).eval()
    x, k, v = (torch.randn(2, 6, width) for width in (8, own.kdim, own.vdim))
    given = [y if own.batch_first else y.transpose(0, 1) for y in (x, k, v)]
    expected = own(*given, need_weights=False, **masks)[0]
    assert torch.allclose(explicit(own, Form(module="any"))(*given, **masks)[0], expected, atol=1e-5)


KINDS = {
    "attention_interleaved": ("heads", 4, Attention),
    "attention_grouped": ("head groups", 2, Attention),
    "attention_shared": ("heads", 4, Attention),
    "attention_flexible": ("heads", 4, ZOO.Flexible),
}


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_one_unit_and_classes_stay_where_they_run_with_fewer(name: str) -> None:
    anatomy = read(name)
    kind, count, owner = KINDS[name]
    heads = [unit for unit in anatomy.units if unit.kind == kind]
    assert [unit.channels for unit in heads] == [count, count]
    assert all(type(block.attention) is owner for block in anatomy.network.blocks)  # type: ignore[union-attr]
    kept = {unit.name: [0] for unit in heads}
    small = slice_network(anatomy.network, anatomy.units, kept)
    assert small(inputs()).shape == (3, 5)


def test_a_single_head_keeps_the_scale_that_it_was_trained_with() -> None:
    anatomy = read("attention_single")
    unit = anatomy.units[0]
    assert [member.role for member in unit.members] == ["factor", "factor"]
    small = slice_network(anatomy.network, anatomy.units, {unit.name: [0, 3]})
    x = torch.randn(2, 6, 16)
    attention, dense = small.blocks[0].attention, built("attention_single").blocks[0].attention  # type: ignore[index, union-attr]
    q, k, v = (layer(x) for layer in (dense.q, dense.k, dense.v))
    mixed = F.scaled_dot_product_attention(q[..., [0, 3]], k[..., [0, 3]], v, scale=16**-0.5)
    assert torch.allclose(attention(x), dense.out(mixed), atol=1e-6)


def test_a_policy_gives_the_same_widths_on_fresh_weights_and_a_plain_network() -> None:
    anatomy = read("attention_interleaved")
    policy = compressor(anatomy).policy({unit.name: -(-unit.channels // 2) for unit in anatomy.units})
    again = Policy.from_json(policy.to_json())
    assert again == policy
    fresh = built("attention_interleaved", seed=1)
    with pytest.warns(UserWarning, match="other weights"):
        small = again.apply(fresh)
    expected = slice_network(made_explicit(fresh, anatomy.forms), anatomy.units, policy.kept())
    assert torch.equal(small(inputs()), expected(inputs()))
    attention, x = small.blocks[0].attention, torch.randn(2, 6, 16)  # type: ignore[index, union-attr]
    assert attention.num_heads == 2
    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):  # our own
        assert torch.equal(twin(x), attention(x))
    small.train()(inputs()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_an_applied_policy_is_read_again_into_the_original_network(tmp_path: Path) -> None:
    made = compressor(read("attention_batched"), "layerwise")
    policy = made.policy({unit.name: -(-unit.channels // 2) for unit in made.units})
    small = made.compress(policy).network
    write_applied(policy, small, tmp_path)
    again = load_applied(built("attention_batched", seed=1), tmp_path)
    assert torch.equal(again(inputs()), small(inputs()))


def test_explicit_attention_keeps_the_dropout_of_training() -> None:
    attention = read("attention_batched").network.blocks[1].attention  # type: ignore[index, union-attr]
    assert (attention.core.dropout, attention.dropout.p) == (0.1, 0.2)


def test_a_policy_with_attention_refuses_a_network_without_it() -> None:
    policy = compressor(read("attention_interleaved")).policy({})
    with pytest.raises(PolicyMismatch, match="explicit attention needs the modules"):
        policy.apply(nn.Linear(3, 3))


def test_explicit_attention_refuses_a_mask_that_it_was_not_found_with() -> None:
    blocks: Any = read("attention_summed").network.blocks
    attention = blocks[0].attention
    x = torch.randn(2, 6, 16)
    assert torch.equal(attention(x, None), attention(x))
    with pytest.raises(ValueError, match="takes the arguments that it was found with"):
        attention(x, mask=torch.ones(6, 6))


class Masked(nn.Module):
    """Head counts are sizes of its own, and a mask says what is seen."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self.says, self.heads, self.embed = says, 4, nn.Linear(5, 16)
        self.attention, self.head = ZOO.Summed(16, 4), nn.Linear(16, 5)
        self.attention.forward = self.attend

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        attention: Any = self.attention
        b, n, c = x.shape
        q, k, v = (
            layer(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
            for layer in (attention.q, attention.k, attention.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=SAYS[self.says][1](mask))
        out: Tensor = attention.out(y.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        y = self.embed(x)
        logits: Tensor = self.head((y + self.attention(y, mask=SAYS[self.says][0](keys))).mean(dim=1))
        return logits


SAYS: dict[str, tuple[Any, Any]] = {
    "seen": (lambda keys: (keys > 0)[:, None, None], lambda mask: mask),
    "hidden": (lambda keys: (keys == 0)[:, None, None], lambda mask: ~mask),
    "keys": (lambda keys: keys, lambda mask: (mask > 0)[:, None, None]),
}


@pytest.mark.parametrize("says", SAYS)
def test_masks_are_passed_through(says: str) -> None:
    torch.manual_seed(0)
    network, keys = Masked(says).eval(), torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
    anatomy = dissect(network, (inputs()[:1], keys[:1]), (inputs(), keys))
    assert [form.mask for form in anatomy.forms] == [says]
    assert [unit.name for unit in anatomy.units if unit.kind == "heads"] == ["attention.q_proj"]
    assert torch.allclose(anatomy.network(inputs(), keys), network(inputs(), keys), atol=1e-6)
    again = FormEntry.model_validate(anatomy.forms[0].to_json()).form()
    assert again == anatomy.forms[0]


class Tupled(Masked):
    """Attention gives a tuple, of which the caller takes what lies behind the first."""

    def attend(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:  # type: ignore[override]
        return (super().attend(x, mask),)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        y = self.embed(x)
        found = self.attention(y, mask=SAYS[self.says][0](keys))
        more = (y + found[0],) + found[1:]  # noqa: RUF005  # a list would hide what a tensor in its place does
        logits: Tensor = self.head(more[0].mean(dim=1))
        return logits


def test_attention_that_gives_a_tuple_is_not_made_explicit_as_a_tensor() -> None:
    torch.manual_seed(0)
    keys = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
    anatomy = dissect(Tupled("keys").eval(), (inputs()[:1], keys[:1]), (inputs(), keys))
    assert not anatomy.forms
    assert anatomy.network(inputs(), keys).shape == (3, 5)


class Normalized(ZOO.Rotary):  # type: ignore[misc, name-defined]
    """Normalizes queries over all heads: with fewer of them it is another function."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x) for layer in (self.q, self.k, self.v))
        q, k, v = (one.view(b, n, self.heads, self.size).transpose(1, 2) for one in (F.normalize(q, dim=-1), k, v))
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def test_attention_of_another_formula_stays_with_the_reason() -> None:
    torch.manual_seed(0)
    anatomy = dissect(ZOO.Transformer(lambda width, heads: Normalized(width, heads, heads)).eval(), inputs()[:1])
    assert not anatomy.forms
    assert not any(unit.kind != "channels" for unit in anatomy.units)
    reasons = {entry.name: entry.reason for entry in anatomy.fixed}
    assert "does not run without its channels" in reasons["blocks.0.attention.q"]


def test_as_many_query_heads_go_from_each_group() -> None:
    anatomy = read("attention_rotary", "queries")
    unit = anatomy.units[0]
    assert (unit.kind, unit.channels, unit.granule, unit.shares) == ("heads", 4, 2, ((0, 1), (2, 3)))
    assert Rules().widths(unit) == [2, 4]
    policy = compressor(anatomy).policy({unit.name: 2})
    attention: Any = policy.apply(built("attention_rotary")).blocks[0].attention  # type: ignore[index, union-attr]
    assert (attention.heads, attention.groups, attention.repeats) == (2, 2, 1)
    assert Policy.from_json(policy.to_json()) == policy
    with pytest.raises(ValueError, match="equally many channels must stay of every share"):
        UnitPolicy(unit=unit, indices=(0, 1))
    assert {entry.name for entry in anatomy.fixed if "query heads share" in entry.reason} == {
        f"blocks.{block}.attention.{layer}" for block in range(2) for layer in "kv"
    }


def test_query_heads_that_share_keys_in_turns_are_found_by_behaviour() -> None:
    torch.manual_seed(0)
    network = ZOO.Transformer(InTurns).eval()
    unit = dissect(network, inputs()[:1], inputs(), "queries").units[0]
    assert unit.shares == ((0, 2), (1, 3))


class InTurns(ZOO.Rotary):  # type: ignore[misc, name-defined]
    """Every second query head reads the same keys."""

    def repeated(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.repeats, 1, 1)


def test_widths_of_several_heads_keep_their_scale_and_their_number() -> None:
    anatomy = read("attention_summed", "widths")
    queries, values = anatomy.units[:2]
    assert [(unit.channels, unit.granule) for unit in (queries, values)] == [(16, 4), (16, 4)]
    policy = compressor(anatomy).policy({queries.name: 8, values.name: 4})
    again = Policy.from_json(policy.to_json())
    dense: Any = built("attention_summed").blocks[0].attention  # type: ignore[index, union-attr]
    small: Any = again.apply(built("attention_summed")).blocks[0].attention  # type: ignore[index, union-attr]
    assert (small.num_heads, small.q_proj.out_features, small.v_proj.out_features) == (4, 8, 4)
    x = torch.randn(2, 6, 16)
    q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (small.q_proj, small.k_proj, small.v_proj))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=dense.q.out_features**-0.5 * 2).transpose(1, 2).flatten(2)
    assert torch.allclose(small(x), small.out_proj(mixed), atol=1e-6)


def test_widths_of_values_are_decided_where_queries_and_keys_are_rotated() -> None:
    anatomy = read("attention_rotary", "widths")
    values = anatomy.units[0]
    assert (values.name, values.channels, values.granule, values.principal) == ("blocks.0.attention.v", 8, 2, True)
    assert "the same channels of keys" in {entry.name: entry.reason for entry in anatomy.fixed}["blocks.0.attention.q"]
    policy = compressor(anatomy).policy({values.name: 4})
    small: Any = Policy.from_json(policy.to_json()).apply(built("attention_rotary"))
    attention = small.blocks[0].attention
    assert (attention.v.out_features, attention.out.in_features) == (4, 8)
    assert attention.resized_class is ZOO.Rotary
    assert small(inputs()).shape == built("attention_rotary")(inputs()).shape


def test_layers_whose_weight_lies_the_other_way_round_become_linear(tmp_path: Path) -> None:
    anatomy, dense = read("attention_transposed"), built("attention_transposed")
    layer: Any = anatomy.network.get_submodule("blocks.0.attention.qkv")
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, dense.blocks[0].attention.qkv.weight.T)  # type: ignore[index, union-attr]
    made = compressor(anatomy, "layerwise")
    policy = made.policy({unit.name: -(-unit.channels // 2) for unit in made.units})
    small = made.compress(policy).network
    write_applied(policy, small, tmp_path)
    again = load_applied(built("attention_transposed", seed=1), tmp_path)
    assert torch.equal(again(inputs()), small(inputs()))
    small.train()(inputs()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_layer_that_computes_something_else_is_not_made_linear() -> None:
    layer = ZOO.Conv1D(4, 4)
    layer.forward = lambda x: x @ layer.weight.T + layer.bias
    assert transposed_layers(nn.Sequential(ZOO.Conv1D(4, 3), layer)) == ["0"]


def test_a_layer_that_writes_a_gate_and_what_is_gated_is_one_unit() -> None:
    unit = next(unit for unit in read("attention_transposed").units if unit.name == "blocks.0.gate_up")
    assert (unit.channels, [member.positions[1] for member in unit.members]) == (24, [(1, 25), (1,)])


def test_stages_of_pruning_cut_the_tables_that_were_trained() -> None:
    anatomy = read("attention_relative")
    policy = compressor(anatomy).policy({})
    before, after = ({unit.name: kept for unit in anatomy.units} for kept in ((0, 2, 3), (0, 3)))
    stage: Any = copy.deepcopy(slice_network(anatomy.network, anatomy.units, before))
    with torch.no_grad():
        stage.blocks[0].attention.bias.weight += 1
    small: Any = sliced(stage, anatomy.network, policy, before, after)
    assert torch.equal(small.blocks[0].attention.bias.weight, stage.blocks[0].attention.bias.weight[:, [0, 2]])
    assert small.blocks[0].attention.heads == 2
    assert small(inputs()).shape == (3, 5)


def test_a_policy_refuses_a_network_without_its_numbers() -> None:
    policy = compressor(read("attention_sloped")).policy({})
    other = built("attention_sloped")
    del other.blocks[0].attention.heads  # type: ignore[index, union-attr]
    with pytest.raises(PolicyMismatch, match=r"'blocks\.0\.attention\.heads' does not fit"):
        policy.apply(other)


def test_rounding_counts_the_channels_of_heads() -> None:
    anatomy = read("attention_interleaved")
    unit = next(unit for unit in anatomy.units if unit.kind == "heads")
    assert Rules(round_to=8).widths(unit) == [2, 4]
    assert Rules(round_to=4).widths(unit) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "attention"),
    [("attention_single", "heads"), ("attention_grouped", "heads"), ("attention_summed", "widths")],
)
def test_repair_brings_attention_closer_to_the_dense_network(name: str, attention: Decided) -> None:
    anatomy = read(name, attention)
    kept = {unit.name: -(-unit.steps // 2) * unit.granule for unit in anatomy.units if "attention" in unit.name}
    errors = {}
    for repair in ("none", "layerwise", "sequential"):
        made = compressor(anatomy, repair)
        with torch.no_grad():
            small = made.compress(made.policy(kept)).network
            errors[repair] = float((small(inputs(32)) - anatomy.network(inputs(32))).square().mean())
    assert errors["sequential"] < errors["layerwise"] < errors["none"]


@pytest.mark.parametrize("importance", [name for name in IMPORTANCES if name != "bn_scale"])
def test_every_importance_orders_heads_and_the_widths_of_single_ones(importance: str) -> None:
    for name in ("attention_single", "attention_grouped"):
        anatomy = read(name)
        orders = compressor(anatomy, importance=importance).orders
        assert {unit.name: sorted(orders[unit.name]) for unit in anatomy.units} == {
            unit.name: list(range(unit.channels)) for unit in anatomy.units
        }


class FirstToken(nn.Module):
    """A transformer's block and a head on its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = ZOO.Block(16, ZOO.Single(16, 1), True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(x)[:, 0])
        return logits


def test_only_positions_that_reach_the_output_are_heard() -> None:
    network, x = FirstToken().eval(), torch.randn(1, 4, 16)
    heard = heard_positions(network, trace(network, x), x)
    behind = ("attention.q", "attention.out", "gate", "up", "down")
    assert {name: places.tolist() for name, places in heard.items()} == {f"block.{name}": [0] for name in behind}
    sampling = Sampling(positions=3, heard=heard)
    drawn = sampling.draw(network.block.down, "block.down", torch.zeros(2, 4, 16), 0, 0)
    assert (drawn.image.tolist(), drawn.place.tolist()) == ([0, 1], [0, 0])


class Rounded(FirstToken):
    """The same with whole numbers in the place of logits, which have no gradient, of all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(self.head(self.block(x)))


def test_positions_without_a_gradient_are_heard_where_the_output_depends_on_them() -> None:
    network, x = Rounded().eval(), torch.randn(1, 4, 16)
    assert heard_positions(network, trace(network, x), x) == {}
    assert all(parameter.grad is None for parameter in network.parameters())
