"""Networks that torch.fx cannot trace are traced by torch.export, in the same form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
from amc.pool.parcel import pack, unpack
from amc.runs.library import search
from envs.network.copies import same_output
from envs.network.graph import trace
from envs.network.inputs import Inputs, call
from envs.network.interpreter import Interpreter
from envs.network.kinds import plain_name
from envs.network.outputs import selecting
from envs.network.tracing.sizes import matched
from envs.units.anatomy import dissect
from envs.units.slicing import slice_network

WORDS, WIDTH, HEAD = 40, 16, 4


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al., RoFormer, 2021) of x [B, H, N, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class OddAttention(nn.Module):
    """Self-attention with rotary positions and normalized queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.q_norm, self.k_norm, self.out = nn.RMSNorm(HEAD), nn.RMSNorm(HEAD), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, angles: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, HEAD)
        q = turned(self.q_norm(self.q(x).view(shape)).transpose(1, 2), angles)
        k = turned(self.k_norm(self.k(x).view(shape)).transpose(1, 2), angles)
        mixed = F.scaled_dot_product_attention(q, k, self.v(x).view(shape).transpose(1, 2), attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return out


class OddBlock(nn.Module):
    """Attention, and a feed-forward part with squared ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.second = nn.RMSNorm(WIDTH), OddAttention(), nn.RMSNorm(WIDTH)
        self.wide, self.narrow, self.scale = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, **rest: Any) -> Tensor:
        x = x + self.attention(self.first(x), **rest)
        wide = F.dropout(F.relu(self.wide(self.second(x))).square(), 0.1, self.training)
        out: Tensor = x + self.scale * self.narrow(wide)
        return out


class OddEncoder(nn.Module):
    """Scores a text; its control flow looks at sizes and at what is given, never at values."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(WORDS, WIDTH), nn.ModuleList([OddBlock()])
        self.head = nn.Linear(WIDTH, 3)
        self.frequencies: Tensor
        self.register_buffer("frequencies", 100.0 ** -torch.arange(0, 1, 2 / HEAD), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        if not isinstance(ids, Tensor):  # as records of torch.fx are not
            raise TypeError("no tensor")
        angles = torch.arange(ids.shape[1], device=ids.device).float()[:, None] * self.frequencies
        rest = {"angles": torch.cat([angles, angles], dim=-1)}
        if isinstance(mask, Tensor):
            rest["mask"] = mask[:, None, None, :].bool().expand(-1, -1, ids.size(1), -1)
        x = self.words(ids)
        for block in self.blocks:
            x = block(x, **rest)
        return {"logits": self.head(x[:, 0])}


def text(batch: int = 1, length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch + length)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[batch // 2 :, length - 2 :] = 0
    return {"ids": torch.randint(1, WORDS, (batch, length), generator=generator), "mask": mask}


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return selecting(OddEncoder().eval(), "logits")


def agrees(program: Any, network: nn.Module, inputs: Inputs) -> bool:
    with torch.no_grad():
        return same_output(call(network, inputs), Interpreter(program.nodes).output(network, inputs), 1e-5)


def test_an_odd_encoder_is_traced_for_any_batch_length_and_mask_and_its_heads_and_neurons_are_units(
    encoder: nn.Module,
) -> None:
    anatomy = dissect(encoder, text(), text(3, 9))
    program = unpack(pack(anatomy.graph)).require_program()  # as it arrives at workers
    assert all(agrees(program, encoder, text(*sizes)) for sizes in ((1, 7), (4, 12), (2, 3)))
    units = [(unit.name, unit.kind) for unit in anatomy.units]
    assert units == [("blocks.0.attention.q", "heads"), ("blocks.0.wide", "channels")]
    called = {node.target for node in program.nodes if node.op == "call_module"}
    assert called >= {"words", "blocks.0.attention.q_norm", "blocks.0.narrow", "head"}
    assert not any(word in plain_name(n.target) for n in program.nodes for word in ("dropout", "assert", "embedding"))
    owners = {node.function: node.owner for node in anatomy.graph.nodes}
    assert owners["scaleddotproductattention"] == "blocks.0.attention"


class Mixed(nn.Module):
    """Layers called twice, with several outputs, by keyword; tensors of all kinds; values written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Linear(6, 6), nn.Linear(2, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.scale, self.kept = nn.Parameter(torch.rand(6)), torch.rand(6)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not isinstance(x, Tensor):  # as records of torch.fx are not
            raise TypeError("no tensor")
        y = self.twice(torch.relu(self.twice(x))) * self.scale + self.kept + torch.tensor([1.0, 2, 3, 4, 5, 6])
        with torch.autocast("cpu", enabled=False):
            z = torch.zeros(x.shape[0], x.shape[1], 6, device=x.device)
        mixed, weights = self.attention(y, key=y, value=x)
        z[:, 1:] = mixed[:, :-1]
        return z, [weights, z.add_(1)[:, -1]]


def test_layers_called_twice_or_with_structures_and_tensors_of_all_kinds_are_what_they_were() -> None:
    torch.manual_seed(0)
    network, x = Mixed().eval(), torch.randn(1, 5, 6)
    graph = trace(network, x, torch.randn(3, 8, 6))
    assert graph.calls() == {"twice": 2, "attention": 1}, graph.reason
    other = Mixed().eval()  # other parameters: none may stand in the program
    other.kept = network.kept
    assert agrees(graph.program, other, torch.randn(2, 4, 6))


class Widths(nn.Module):
    """Asks tensors for their widths, in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        batch, length, width = y.shape
        if not isinstance(y, Tensor):  # as records of torch.fx are not
            raise TypeError("no tensor")
        y = torch.relu(self.second(y.reshape(batch * length, width)))
        y = y.view(batch, length, y.shape[1])
        y = y[:, :, None].expand(batch, length, 2, y.shape[2]).transpose(1, 2).reshape(batch * 2, length, y.shape[2])
        return self.third(y)[:batch]  # type: ignore[no-any-return]


def test_a_program_follows_widths_and_serves_the_pruned_network_too() -> None:
    torch.manual_seed(0)
    network, x = Widths().eval(), torch.randn(1, 5, 6)
    small: Any
    anatomy = dissect(network, x)
    small = slice_network(network, anatomy.units, {unit.name: [0, 2, 3] for unit in anatomy.units})
    assert [layer.out_features for layer in (small.first, small.second)] == [3, 3]
    assert agrees(anatomy.graph.program, small, torch.randn(2, 4, 6))
    assert trace(small, x, like=anatomy.graph).program is anatomy.graph.program
    small.second = nn.Sequential(small.second)
    assert trace(small, x, like=anatomy.graph).calls()["second.0"] == 1


class Fused(nn.Module):
    """Splits what one layer writes into parts of a size that it holds as a number."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.three, self.out = size, nn.Linear(6, 3 * size), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):  # as records of torch.fx are not
            raise TypeError("no tensor")
        first, second, third = self.three(x).split(self.size, dim=-1)
        return self.out(first * second + third)  # type: ignore[no-any-return]


def test_a_program_follows_the_sizes_of_equal_parts() -> None:
    torch.manual_seed(0)
    graph = trace(Fused(8).eval(), torch.randn(1, 5, 6))
    assert agrees(graph.program, Fused(4).eval(), torch.randn(2, 4, 6))


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ([2, 3, 8], [2, 3, 2, 4], [([0], [0]), ([1], [1]), ([2], [2, 3])]),
        ([2, 3, 2, 4], [2, 3, 8], [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        ([6, 4], [3, 8], [([0, 1], [0, 1])]),
    ],
)
def test_axes_that_hold_the_same_elements_are_matched(before: list[int], after: list[int], groups: Any) -> None:
    assert list(matched(before, after)) == groups


def test_what_depends_on_values_is_not_traced_and_both_say_why() -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    graph = trace(Deciding(), torch.ones(1, 3))
    assert not graph.traced
    assert graph.reason.startswith("TraceError: ")
    assert "; GuardOnDataDependentSymNode: " in graph.reason


# Hugging Face


def padded(items: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    ids = nn.utils.rnn.pad_sequence([ids for ids, _ in items], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids, _ in items], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor([target for _, target in items])


def pictures(items: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    return {"pixel_values": torch.stack([image for image, _ in items])}, torch.tensor([target for _, target in items])


def last(returned: Any) -> Tensor:
    return returned.logits[:, -1]  # type: ignore[no-any-return]


def first(returned: Any) -> Tensor:
    return returned.logits  # type: ignore[no-any-return]


def huggingface(family: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    sizes |= {"intermediate_size": 48, "vocab_size": WORDS, "max_position_embeddings": 40}
    if family == "DistilBert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": WORDS, "num_labels": 3}
    if family == "Llama":
        sizes |= {"num_key_value_heads": 2}
    if family == "ViT":
        sizes |= {"image_size": 16, "patch_size": 4}
    if family == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": WORDS}
        sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    if family == "OPT":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    config = getattr(transformers, f"{family}Config")(**sizes)
    heads = {"Llama": "ForCausalLM", "GPT2": "LMHeadModel", "OPT": "ForCausalLM", "ViT": "ForImageClassification"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = getattr(transformers, family + heads.get(family, "ForSequenceClassification"))(
            config
        ).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(4)  # Hugging Face begins with small weights, under which all outputs are the same
    return network


def items(family: str, count: int = 48) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    if family == "ViT":
        return [(torch.randn(3, 16, 16, generator=generator), k % 3) for k in range(count)]
    return [(torch.randint(1, WORDS, (4 + k % 6,), generator=generator), k % 3) for k in range(count)]


@pytest.mark.slow
def test_a_mask_that_only_padded_texts_bring_does_not_end_an_inspection() -> None:
    samples = items("MPNet")
    anatomy = dissect(selecting(huggingface("MPNet"), first), padded(samples[1:2])[0], padded(samples[:7])[0])
    assert not anatomy.forms
    assert {unit.kind for unit in anatomy.units} == {"channels"}  # one bias of positions serves the heads of all layers


@pytest.mark.slow
def test_gpt2_is_traced_with_its_tied_embedding() -> None:
    network, samples = selecting(huggingface("GPT2"), last), items("GPT2")
    graph = trace(network, padded(samples[:1])[0], padded(samples[:7])[0])
    assert agrees(graph.program, network, padded(samples[3:5])[0]), graph.reason
    assert graph.calls()["transformer.wte"] == graph.calls()["lm_head"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("family", ["Bert", "DistilBert", "GPT2", "Llama", "OPT", "ViT"])
def test_networks_of_hugging_face_are_traced_searched_repaired_exported_and_loaded(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    network, collate = huggingface(family), pictures if family == "ViT" else padded
    samples, output = items(family), last if family in ("GPT2", "Llama", "OPT") else first
    example, several = collate(samples[1:2])[0], collate(samples[:7])[0]
    anatomy = dissect(selecting(network, output), example, several)
    graph = anatomy.graph
    assert graph.traced, graph.reason
    assert agrees(graph.program, selecting(network, output), several)
    kinds = {unit.kind for unit in anatomy.units}
    assert kinds == {"channels", "head groups" if family == "Llama" else "heads"}
    task = amc.Task(
        network=network,
        example_input=example,
        calibration=samples[:16],
        validation=samples[16:32],
        test=samples[32:],
        collate=collate,
        output=output,
    )
    small: dict[str, Any] = {"searcher": "knapsack", "knapsack": {"widths": 3}, "progress": False}
    result = search(task, budgets={"macs": 0.6}, out=tmp_path / "run", **small)
    dense, found = result.reports["dense"], result.reports["found"]
    assert found.costs["macs"] <= 0.6 * dense.costs["macs"]
    assert type(result.network) is type(network)
    assert amc.export_onnx(result.network, tmp_path / "small.onnx", task) < 1e-4
    loaded = amc.load(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(output(loaded(**several)), output(result.network(**several)))


class Split(nn.Module):
    """Queries, keys and values of one layer, taken apart by a number; sizes that torch.fx cannot iterate over."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.qkv, self.out = WIDTH, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:-1], -1, HEAD)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).split(self.size, dim=-1))
        return q * q.abs(), k, v

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.parts(x), is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return out


def test_numbers_that_a_module_holds_are_read_off_the_network_that_a_program_runs_on() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, WIDTH), Split(), nn.Linear(WIDTH, 3)).eval(), torch.randn(3, 6, 5)
    anatomy = dissect(network, x[:1], x)
    unit = next(unit for unit in anatomy.units if unit.kind == "heads")
    assert [attribute.name for attribute in unit.attributes] == ["1.size"]
    small = slice_network(anatomy.network, anatomy.units, {unit.name: [1, 3]})
    assert agrees(anatomy.graph.require_program(), small, x)


class Turning(Split):
    """Rotates neighbouring channels (as in GPT-J), which are taken by slices with a step."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:-1], -1, HEAD)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = (torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2) + part for part in (q, k))
        return q, k, v


def test_slices_with_a_step_keep_it_in_a_program() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, WIDTH), Turning(), nn.Linear(WIDTH, 3)).eval(), torch.randn(3, 6, 5)
    graph = trace(network, x[:1], x)
    assert agrees(graph.program, network, x), graph.reason
    assert [unit.channels for unit in dissect(network, x[:1], x).units if unit.kind == "heads"] == [WIDTH // HEAD]
