"""Networks of several inputs, of texts of different lengths, and of outputs that are no tensor: the whole chain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
from amc.config.search import SearchConfig
from amc.export.onnx import verify_onnx, write_onnx
from amc.problem.inspection import inspection
from amc.runs.library import search
from amc.tasks.checks import check_task
from envs.network.graph import trace
from envs.network.inputs import Inputs
from envs.network.outputs import selecting, unselected
from envs.units.anatomy import dissect

WORDS, WIDTH = 30, 8


@dataclass
class Read:
    """What a reader returns."""

    logits: Tensor
    states: Tensor


class Reader(nn.Module):
    """Embeds words and places, attends to those that are no padding, and scores their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(40, WIDTH)
        self.norm, self.key, self.value = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow, self.head = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None, places: Tensor | None = None) -> Read:
        if mask is None:
            mask = torch.ones_like(ids)
        if places is None:
            places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.places(places)
        y = self.norm(x)
        x = x + F.scaled_dot_product_attention(y, self.key(y), self.value(y), attn_mask=(mask > 0).unsqueeze(1))
        x = x + self.narrow(F.gelu(self.wide(x)))
        kept = mask.unsqueeze(-1).to(x.dtype)
        return Read(self.head((x * kept).sum(1) / kept.sum(1)), x)


class Pair(nn.Module):
    """Compares two vectors: both are encoded at once, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 20), nn.Linear(20, 5)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, tuple[Tensor, ...]]:
        codes = self.narrow(torch.relu(self.wide(torch.cat([first, second])))).chunk(2)
        return {"scores": (F.cosine_similarity(*codes),)}


def padded(items: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of (words, class), as long as its longest."""
    ids = nn.utils.rnn.pad_sequence([item[0] for item in items], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(item[0]) for item in items], batch_first=True)
    return {"ids": ids, "mask": mask}, torch.tensor([item[1] for item in items])


@cache
def texts(count: int = 96) -> tuple[nn.Module, list[tuple[Tensor, int]]]:
    """A reader, and texts of 3 to 9 words with the class that it gives them."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = Reader().eval()
    lengths = torch.randint(3, 10, (count,), generator=generator).tolist()
    words = [torch.randint(1, WORDS, (length,), generator=generator) for length in lengths]
    with torch.no_grad():
        return reader, [(ids, int(reader(ids[None]).logits.argmax())) for ids in words]


EXAMPLE = {"ids": torch.ones(1, 6, dtype=torch.long), "mask": torch.ones(1, 6, dtype=torch.long)}
WHOLE = {"calibration": slice(0, 32), "validation": slice(32, 64), "test": slice(64, 96)}


def reading(**changes: Any) -> amc.Task:
    reader, items = texts()
    parts: dict[str, Any] = {name: items[part] for name, part in WHOLE.items()}
    given = {"network": reader, "example_input": EXAMPLE, "collate": padded, "output": "logits", **parts, **changes}
    return amc.Task(**given)


def close(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.exp(-(outputs - targets).abs())


def comparing() -> amc.Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, (a, b) = Pair().eval(), torch.randn(2, 96, 6)
    with torch.no_grad():
        y = network(a, b)["scores"][0]
    parts: dict[str, Any] = {name: ((a[part], b[part]), y[part]) for name, part in WHOLE.items()}
    return amc.Task(
        network=network,
        example_input=(a[:1], b[:1]),
        metric=close,
        output=lambda returned: returned["scores"][0],
        **parts,
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))


def searched(task: amc.Task, out: Path | None = None, **settings: Any) -> amc.Result:
    quick = {"searcher": "knapsack", "knapsack": {"widths": 3}, "progress": False, **settings}
    return search(task, budgets={"macs": 0.7}, out=out, **quick)


# The whole chain


@pytest.mark.usefixtures("bare")
def test_texts_of_different_lengths_are_searched_exported_and_read_at_any_length(tmp_path: Path) -> None:
    task = reading()
    result = searched(task)
    dense, found = result.reports["dense"], result.reports["found"]
    assert dense.accuracy["test"] == 1.0
    assert found.costs["macs"] <= 0.7 * dense.costs["macs"]
    assert type(result.network) is Reader
    assert result.network.wide.out_features < 24
    amc.export_onnx(result.network, tmp_path / "small.onnx", task)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert [(one.name, one.shape[0]) for one in session.get_inputs()] == [("ids", "batch"), ("mask", "batch")]
    inputs, _ = padded([(torch.arange(1, 15), 0), (torch.arange(1, 12), 0), (torch.arange(1, 4), 0)])
    got = session.run(None, {name: one.numpy() for name, one in inputs.items()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), result.network(**inputs).logits, atol=1e-5, rtol=1e-4)
    assert verify_onnx((tmp_path / "small.onnx").read_bytes(), selecting(result.network, "logits"), inputs) < 1e-5
    amc.save_program(result, tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2").module()
    assert isinstance(task.example_input, dict)
    same_length = {name: one.repeat(5, 1) for name, one in task.example_input.items()}
    with torch.no_grad():
        torch.testing.assert_close(program(**same_length), result.network(**same_length).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("bare")
def test_a_pair_of_inputs_and_a_nested_output_are_searched_by_a_learner(tmp_path: Path) -> None:
    task = comparing()
    result = searched(task, searcher="ddpg", episodes=6, warmup=2)
    assert result.reports["found"].costs["macs"] <= 0.7 * result.reports["dense"].costs["macs"]
    assert set(result.network(*task.example_input)) == {"scores"}
    assert amc.export_onnx(result.network, tmp_path / "pair.onnx", task) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "pair.onnx")
    assert [one.name for one in session.get_inputs()] == ["first", "second"]
    with pytest.raises(ValueError, match="must compute what the network does, but for a batch of 1 Guard failed"):
        amc.save_program(result, tmp_path / "pair.pt2")  # halves of a joined batch: torch.export takes 1 for special
    assert not (tmp_path / "pair.pt2").exists()


class Answering(nn.Module):
    """Weighs the words of one text by those of another, which may be of any other length."""

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.words, self.length = nn.Embedding(20, 8), length

    def forward(self, question: Tensor, text: Tensor) -> Tensor:
        asked, read = self.words(question), self.words(text)
        if self.length is not None:
            asked = asked.reshape(len(asked), self.length, 8)
        found: Tensor = (asked @ read.transpose(1, 2)).softmax(2) @ read
        return found


@pytest.mark.parametrize(("length", "free"), [(None, {"question", "text"}), (6, {"text"})])
def test_texts_of_two_lengths_are_left_open_each(
    length: int | None, free: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network, example = Answering(length).eval(), (torch.ones(1, 6).long(), torch.ones(1, 9).long())
    write_onnx(network, example, tuple(one.repeat(3, 1) for one in example), tmp_path / "two.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx")
    assert {one.name for one in session.get_inputs() if isinstance(one.shape[1], str)} == free
    others = (torch.randint(20, (2, 11 if length is None else 6)), torch.randint(20, (2, 4)))
    assert verify_onnx((tmp_path / "two.onnx").read_bytes(), network, others) < 1e-5
    assert ("takes question at the example's length of 6 alone" in caplog.text) == (length is not None)


@pytest.mark.slow
@pytest.mark.usefixtures("bare", "own_ray")
def test_workers_and_a_resumed_run_find_the_same_in_texts(tmp_path: Path) -> None:
    """Batches are padded by the chunk that they lie in, whoever scores it."""
    settings = {"searcher": "ddpg", "episodes": 8, "round_size": 4, "warmup": 4}
    results = [searched(reading(), tmp_path / str(workers), workers=workers, **settings) for workers in (0, 2)]
    lines = [(tmp_path / str(workers) / "episodes.jsonl").read_bytes() for workers in (0, 2)]
    assert lines[0] == lines[1]
    assert results[0].policy == results[1].policy
    again = searched(reading(), tmp_path / "0", **settings)
    assert again.policy == results[0].policy


# Tracing


@pytest.mark.parametrize("example", [EXAMPLE, (EXAMPLE["ids"],), EXAMPLE["ids"]], ids=["dict", "tuple", "tensor"])
def test_a_traced_reader_bakes_no_length_in(example: Inputs) -> None:
    reader = selecting(texts()[0], "logits")
    samples = {"ids": torch.randint(1, WORDS, (3, 11)), "mask": torch.ones(3, 11, dtype=torch.long)}
    given: Inputs = samples if isinstance(example, dict) else (samples["ids"],)
    graph = trace(reader, example, given if not isinstance(example, Tensor) else samples["ids"])
    assert graph.traced, graph.reason
    assert sum(node.kind == "input" for node in graph.nodes) == (2 if isinstance(example, dict) else 1)


def test_a_program_that_holds_for_one_length_only_is_not_used() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.0 if type(x) is Tensor and x.shape[1] > 4 else 2.0)

    assert trace(Halved(), torch.ones(1, 3), torch.ones(2, 4)).traced
    graph = trace(Halved(), torch.ones(1, 3), torch.ones(2, 6))
    assert not graph.traced
    assert "for inputs of shape [2, 6]" in graph.reason


def test_a_buffer_that_is_cut_to_the_length_is_traced() -> None:
    class Causal(nn.Module):
        past: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("past", torch.ones(20, 20).tril() > 0)

        def forward(self, x: Tensor) -> Tensor:
            length = x.shape[1]
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.past[:length, :length])

    graph = trace(Causal(), torch.randn(1, 5, 4), torch.randn(3, 9, 4))
    assert graph.traced, graph.reason


def test_units_of_a_reader_do_not_hold_the_embedding_and_say_why() -> None:
    reader, items = texts()
    anatomy = dissect(selecting(reader, "logits"), EXAMPLE, padded(items[:4])[0])
    assert "wide" in [unit.name for unit in anatomy.units]
    assert anatomy.family.dense.macs(anatomy.family.dense.widths()).sum() > 0
    reasons = {one.name: one.reason for one in anatomy.fixed}
    assert "its channels are those of the embedding 'words'" in reasons["narrow"]
    found = inspection(reading(), SearchConfig(task="reading", constraint={"macs": 0.7}))
    assert {"words", "places"} <= {stay.layer for stay in found.stays}
    params = next(cost for cost in found.costs if cost.name == "params")
    assert params.dense == sum(parameter.numel() for parameter in reader.parameters())


# Selecting outputs


def test_selecting_keeps_names_tensors_and_the_way_back() -> None:
    reader = texts()[0]
    twin = selecting(reader, lambda returned: returned.states[:, 0])
    assert twin(**EXAMPLE).shape == (1, WIDTH)
    assert dict(twin.named_parameters()).keys() == dict(reader.named_parameters()).keys()
    assert twin.get_parameter("head.weight") is reader.get_parameter("head.weight")
    assert type(twin).__name__ == "Reader"
    assert type(unselected(twin)) is Reader
    assert selecting(reader, None) is reader


@pytest.mark.parametrize(
    ("output", "law"),
    [
        ("scores", "output='scores' must name a field .* its Read has logits, states"),
        (0, "output=0 must name a field"),
        (None, "must return one tensor .* returned Read: .* by output="),
        (lambda returned: returned.logits * torch.nan, "NaN or infinity"),
    ],
)
def test_an_output_that_is_not_there_is_refused(output: Any, law: str) -> None:
    with pytest.raises(ValueError, match=law):
        check_task(reading(output=output))


# What does not fit is refused with one line


def without_mask(items: list[Any]) -> Any:
    inputs, targets = padded(items)
    return {"ids": inputs["ids"]}, targets


def now_and_then(items: list[Any]) -> Any:
    return padded(items) if len(items) > 1 else without_mask(items)


def broken(items: list[Any]) -> Any:
    raise KeyError("ids")


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"example_input": {"ids": EXAMPLE["ids"], "msk": EXAMPLE["mask"]}}, "must fit the network's forward.*'msk'"),
        ({"example_input": tuple(EXAMPLE.values()) * 2}, "must fit the network's forward.*too many"),
        ({"example_input": {}}, "must be a tensor .* a dict of nothing"),
        ({"example_input": {"ids": torch.ones(2, 6)}}, r"a dict of \[2, 6\]"),
        ({"collate": without_mask}, "names ids, mask, but one has names ids"),
        (
            {"collate": now_and_then, "example_input": {k: v[:, :3] for k, v in EXAMPLE.items()}},
            "but one has names ids",
        ),
        ({"collate": broken}, "collate must make a batch of 16 items, but raised KeyError"),
        ({"collate": lambda items: len(items)}, r"must return \(inputs, targets\), but returned int"),
        ({"collate": None}, "must be .*tensors|one shape, but got .* collate="),
        ({"test": (np.zeros((20, 6)), np.zeros(20))}, "collate= makes batches of a dataset's items"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes: dict[str, Any], law: str) -> None:
    with pytest.raises(ValueError, match=law) as refused:
        check_task(reading(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "dtype", "counts", "taken"),
    [
        ("attention_mask", torch.int64, None, True),
        ("mask", torch.bool, None, True),
        ("mask", torch.float32, None, True),
        ("kept", torch.int64, None, False),
        ("kept", torch.int64, "kept", True),
        ("kept", torch.int64, lambda inputs: inputs["kept"] > 0, True),
    ],
)
def test_tokens_that_count_are_said_by_an_input_or_a_function(
    name: str, dtype: torch.dtype, counts: Any, taken: bool
) -> None:
    class Named(nn.Module):
        def forward(self, ids: Tensor, **kept: Tensor) -> Tensor:
            return ids.float()

    mask = torch.tensor([[1, 1, 0]]).to(dtype)
    data = ({"ids": np.ones((16, 3), np.int64), name: mask.repeat(16, 1)}, np.zeros(16))
    example = {"ids": torch.ones(1, 3, dtype=torch.int64), name: mask}
    splits: dict[str, Any] = dict.fromkeys(("calibration", "validation", "test"), data)
    task = amc.Task(network=Named(), example_input=example, counts=counts, metric=close, **splits)
    assert (task.counts is not None) == taken
    assert task.counts is None or task.counts(example).tolist() == [[1, 1, 0]]
    assert task.of_network(Named()).counts is task.counts


@pytest.mark.parametrize(
    ("counts", "law"),
    [
        ("length", "counts must name an input, but there is no 'length'"),
        (lambda inputs: inputs["mask"].sum(), r"counts must give a mask \[B, T\]"),
        (lambda inputs: 2 * inputs["mask"], "1 where a token counts and 0 elsewhere"),
        (lambda inputs: inputs["nothing"], "counts must make a mask of inputs .*, but raised KeyError"),
        (3, "counts must be the name of an input or a function"),
    ],
)
def test_what_says_no_tokens_is_refused(counts: Any, law: str) -> None:
    with pytest.raises(ValueError, match=law):
        reading(counts=counts)


def test_a_network_of_one_length_is_refused_for_texts_of_many() -> None:
    class Fixed(Reader):
        def forward(self, ids: Tensor, mask: Tensor | None = None, places: Tensor | None = None) -> Read:
            return super().forward(ids, mask, torch.arange(6))

    with pytest.raises(ValueError, match=r"must run on the shortest of sixteen calibration samples .* take lengths"):
        check_task(reading(network=Fixed()))


def test_arrays_by_name_are_read_as_datasets_are() -> None:
    x = {"ids": np.arange(80, dtype=np.int32).reshape(20, 4) % WORDS, "mask": np.ones((20, 4), np.uint8)}
    task = reading(**dict.fromkeys(WHOLE, (x, np.zeros(20))), collate=None)
    inputs, targets = task.validation.batch([3, 0])
    assert {name: (one.dtype, tuple(one.shape)) for name, one in inputs.items()} == dict.fromkeys(
        x, (torch.int64, (2, 4))
    )
    assert targets.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"shape \[6\], but calibration has \[4\]"):
        check_task(task)
