"""A second device, pretended on the CPU: its tensors must not meet others, so what a GPU would refuse is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from amc.config.search import SearchConfig
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.search.loop import search
from amc.search.result import SearchResult
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.network.inference import placed
from envs.space.policy import weights_fingerprint

if TYPE_CHECKING:
    from tests.conftest import Specimen

ELSEWHERE = "meta"
"""Name of the pretended device: one that torch knows and that nobody here uses."""
MOVES = {"aten::_to_copy", "aten::copy_"}


class Moved(Tensor):
    """A tensor of the pretended device: `numbers` holds what it is."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Moved:
        made: Moved = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=torch.device(ELSEWHERE),
        )
        made.numbers = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.numbers.tolist()


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operator on the numbers, after a look at where its tensors are; scalars of the CPU may meet any."""
    name, wanted = func._schema.name, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [isinstance(tensor, Moved) for tensor in tensors]
    strangers = [tensor for tensor, moved in zip(tensors, there, strict=True) if not moved and tensor.ndim]
    if any(there) and strangers and name not in MOVES:
        raise AssertionError(f"{name} mixes devices: {[tuple(tensor.shape) for tensor in strangers]} are on the CPU")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    if first is not None and first.is_write:
        return args[0]
    moved = torch.device(wanted).type == ELSEWHERE if wanted is not None else any(there)
    return tree_map(lambda leaf: Moved(leaf) if moved and type(leaf) is Tensor else leaf, result)


def _values(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, Moved) else leaf


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operators that make tensors of nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """Sees what becomes a tensor without an operator: Python's numbers and lists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and str(kwargs.get("device")) == ELSEWHERE:
            return Moved(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        indexed = func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Moved)
        if indexed and isinstance(args[1], list):
            args = (args[0], Moved(torch.tensor(args[1], device="cpu")), *args[2:])
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What is pretended, is so in one thread; nothing is remembered."""
    monkeypatch.setenv("AMC_THREADS", "1")
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))


def on(device: str, function: Callable[[], Any]) -> Any:
    if device == "cpu":
        return function()
    with Operators(), Calls():  # type: ignore[no-untyped-call]
        return function()


def test_devices_that_meet_are_noticed() -> None:
    with Operators(), Calls():  # type: ignore[no-untyped-call]
        there = torch.ones(3, device=ELSEWHERE)
        assert (there + there).cpu().tolist() == [2, 2, 2]
        mistakes: tuple[Callable[[], Tensor], ...] = (
            lambda: there + torch.ones(3),
            lambda: there[torch.tensor([0])],
            lambda: torch.ones(3)[there > 0],
        )
        for mistake in mistakes:
            with pytest.raises(AssertionError, match="mixes devices"):
                mistake()


@pytest.mark.parametrize(
    ("importance", "repair"),
    [
        ("obs", "sequential"),
        ("taylor", "layerwise"),
        ("fluctuation", "none"),
        ("fpgm", "sequential"),
        ("random", "layerwise"),
        ("l1", "none"),
    ],
)
def test_compression_stays_where_it_is_told(importance: str, repair: Any, zoo: Callable[[str], Specimen]) -> None:
    specimen, found = zoo("residual"), []
    anatomy = specimen.anatomy
    layers = [layer.name for layer in anatomy.family.dense.layers if layer.has_weight]
    chunks = [specimen.inputs(16, seed=seed) for seed in range(2)]

    def compressed(device: str) -> str:
        settings = CompressionSettings(
            importance=importance, repair=repair, selection="sparsegpt", reestimate_images=16, device=device
        )
        compressor = Compressor(
            specimen.network, anatomy.graph, anatomy.family, anatomy.units, chunks, settings, sparse=layers
        )
        kept = {unit.name: unit.channels // 2 for unit in compressor.units}
        small = compressor.compress(compressor.policy(kept, {layers[-1]: "unstructured:0.5"})).network
        assert {tensor.device.type for tensor in small.state_dict().values()} == {device}
        return weights_fingerprint(placed(small, "cpu"))

    for device in ("cpu", ELSEWHERE):
        found.append(on(device, lambda device=device: compressed(device)))  # type: ignore[misc]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_search_stays_where_it_is_told_and_comes_back() -> None:
    config = SearchConfig(
        **{
            "task": "digits",
            "constraint": {"macs": 0.3},
            "agent": "knapsack",
            "reward_images": 100,
            "confirm": 1,
            "compression": {"images": 64},
            "knapsack": {"images": 32, "widths": 3},
            "backend": {"name": "fp32"},
        }
    )

    def searched(device: str) -> SearchResult:
        return search(prepare(set_up(config.model_copy(update={"device": device}))))

    here = on("cpu", lambda: searched("cpu"))
    there = on(ELSEWHERE, lambda: searched(ELSEWHERE))
    assert there.reports == here.reports
    found = there.networks["found"].state_dict()
    assert {tensor.device.type for tensor in found.values()} == {"cpu"}
