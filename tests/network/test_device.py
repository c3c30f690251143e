"""Everything is computed where `device` says: no tensor is made elsewhere, and a GPU finds what the CPU finds."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from amc.config.search import SearchConfig
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.profiling.runtimes import make_runtime
from amc.profiling.setting import Setting
from amc.search.loop import search
from amc.search.result import SearchResult
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.network.inference import placed
from envs.space.policy import Policy, weights_fingerprint

if TYPE_CHECKING:
    from tests.conftest import Specimen

ROOT = Path(__file__).resolve().parents[2]
READ = [
    *sorted((ROOT / "envs").rglob("*.py")),
    *sorted((ROOT / "amc" / "scoring").glob("*.py")),
    *sorted((ROOT / "amc" / "problem").glob("*.py")),
    *(
        ROOT / "amc" / f"{name}.py"
        for name in (
            *("pool/parcel", "search/starts", "search/tools"),
            *("search/allocation/audition", "search/allocation/curves"),
        )
    ),
]
CONSTRUCTORS = {
    "arange",
    "as_tensor",
    "empty",
    "empty_strided",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "scalar_tensor",
    "tensor",
    "zeros",
}
ALLOWED = {
    ("envs/units/verification/trial.py", "draw"): "drawn by a generator of the CPU, and turned into Python numbers",
    ("envs/units/verification/trial.py", "_shaken"): "drawn on the CPU, then moved to the tensor that is shaken",
}
"""(file, function) whose tensors need no `device=`, and why."""

Zoo = Callable[[str], "Specimen"]


def homeless(source: str) -> Iterator[tuple[str, int]]:
    """(function, line) of every call of a constructor of torch's without `device=`."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        made = ast.unparse(call.func).removeprefix("torch.") if ast.unparse(call.func).startswith("torch.") else ""
        if made in CONSTRUCTORS and "device" not in {keyword.arg for keyword in call.keywords}:
            around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or f.lineno)]
            outermost = min(around, key=lambda f: f.lineno).name if around else ""
            yield outermost, call.lineno


def test_every_tensor_is_made_on_a_device_that_is_named() -> None:
    found = {(str(path.relative_to(ROOT)), *place) for path in READ for place in homeless(path.read_text())}
    assert not [f"{file}:{line}" for file, function, line in sorted(found) if (file, function) not in ALLOWED]
    assert {(file, function) for file, function, _ in found} == set(ALLOWED), "the list allows more than there is"


def test_a_tensor_without_a_device_is_found() -> None:
    code = "def f(x):\n    a = torch.zeros(3)\n    return torch.eye(3, device=x.device) + a\n"
    assert list(homeless(code)) == [("f", 2)]


def test_a_network_that_is_in_place_is_not_copied() -> None:
    network = nn.Linear(2, 2)
    assert placed(network, "cpu") is network


# The default device is one on which nothing can be computed: a tensor that does not say where it is, is noticed.


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch's default device belongs to a thread; nothing is remembered."""
    monkeypatch.setenv("AMC_THREADS", "1")
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))


KINDS: dict[str, dict[str, Any]] = {
    "sequential": {"importance": "obs", "repair": "sequential"},
    "layerwise": {"importance": "taylor", "repair": "layerwise"},
    "fluctuation": {"importance": "fluctuation", "repair": "none"},
    "fpgm": {"importance": "fpgm", "repair": "layerwise", "reestimate_images": 16},
    "random": {"importance": "random", "repair": "sequential"},
    "l1": {"importance": "l1", "repair": "none"},
}
"""How networks are compressed here, by label."""


def chunks_of(specimen: Specimen) -> list[Tensor]:
    return [specimen.inputs(32, seed=seed) for seed in range(3)]


def compressor_of(specimen: Specimen, chunks: list[Tensor], device: str = "cpu", **settings: Any) -> Compressor:
    anatomy = specimen.anatomy
    layers = [layer.name for layer in anatomy.family.dense.layers if layer.has_weight]
    options = CompressionSettings(selection="sparsegpt", device=device, **settings)
    return Compressor(specimen.network, anatomy.graph, anatomy.family, anatomy.units, chunks, options, sparse=layers)


def halved(compressor: Compressor, patterns: dict[str, str] | None = None) -> Policy:
    kept = {unit.name: unit.granule * ((len(unit.granules) + 1) // 2) for unit in compressor.units}
    return compressor.policy(kept, patterns)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["grouped"])
def test_compression_makes_nothing_on_the_default_device(kind: str, name: str, zoo: Zoo) -> None:
    specimen, found = zoo(name), list[str]()
    chunks = chunks_of(specimen)
    last = [layer.name for layer in specimen.anatomy.family.dense.layers if layer.has_weight][-1]
    for default in (nullcontext(), torch.device("meta")):
        with default:
            compressor = compressor_of(specimen, chunks, **KINDS[kind])
            small = compressor.compress(halved(compressor, {last: "unstructured:0.5"})).network
        found.append(weights_fingerprint(small))
    assert found[0] == found[1]


QUICK: dict[str, Any] = {
    "task": "digits",
    "constraint": {"macs": 0.3},
    "reward_images": 200,
    "episodes": 6,
    "warmup": 3,
    "confirm": 2,
    "compression": {"images": 128, "positions": 16},
    "knapsack": {"images": 64, "widths": 4},
    "backend": {"name": "fp32"},
}


def searched(**changes: Any) -> SearchResult:
    return search(prepare(set_up(SearchConfig(**{**QUICK, **changes}))))


# On a GPU

OUTPUTS = 2e-3
"""Largest difference of outputs relative to the largest: float32 sums in another order, through a fit."""
ACCURACY = {"knapsack": 0.02, "ddpg": 0.05}
"""Largest difference of accuracy: a solution of equal curves; a learner whose roundings part after some steps."""


def outputs_of(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = placed(network, "cpu")(inputs)
    return outputs


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["residual", "grouped", "mobile_v2", "chain"])
def test_compression_on_a_gpu_is_that_on_the_cpu(kind: str, name: str, zoo: Zoo) -> None:
    specimen = zoo(name)
    here, there = (compressor_of(specimen, chunks_of(specimen), device, **KINDS[kind]) for device in ("cpu", "cuda"))
    policy = halved(here)
    for unit, other in zip(policy.units, halved(there).units, strict=True):
        assert len(set(unit.indices) ^ set(other.indices)) <= 2 * unit.unit.granule  # one close call at most
    moved = there.compress(policy).network
    assert all(tensor.is_cuda for tensor in moved.state_dict().values())
    expected, got = (outputs_of(network, specimen.inputs(64, 9)) for network in (here.compress(policy).network, moved))
    assert float((got - expected).abs().max()) <= OUTPUTS * float(expected.abs().max())


@pytest.mark.cuda
def test_sparsegpt_on_a_gpu_is_that_on_the_cpu(zoo: Zoo) -> None:
    specimen = zoo("residual")
    name = [layer.name for layer in specimen.anatomy.family.dense.layers if layer.has_weight][-2]
    masks, errors = [], []
    for device in ("cpu", "cuda"):
        compressor = compressor_of(specimen, chunks_of(specimen), device, importance="l1", repair="sequential")
        small = placed(compressor.compress(compressor.policy({}, {name: "unstructured:0.5"})).network, "cpu")
        masks.append(small.get_submodule(name).get_parameter("weight") != 0)
        inputs = specimen.inputs(64, 9)
        errors.append(float((outputs_of(small, inputs) - outputs_of(specimen.network, inputs)).square().sum()))
    assert float((masks[0] == masks[1]).double().mean()) >= 0.99
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.cuda
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("agent", ["knapsack", "ddpg"])
def test_a_search_on_a_gpu_finds_what_the_cpu_finds(agent: str) -> None:
    results = {device: searched(agent=agent, device=device) for device in ("cpu", "cuda")}
    for device, result in results.items():
        print(f"{agent} on {device}: widths {result.reports['found'].key}, {result.reports['found'].accuracy}")
    for name, report in results["cpu"].reports.items():
        for split, accuracy in report.accuracy.items():
            other = results["cuda"].reports[name].accuracy[split]
            assert abs(other - accuracy) <= ACCURACY[agent], f"{name}, {split}"
    assert all(not tensor.is_cuda for tensor in results["cuda"].networks["found"].state_dict().values())


@pytest.mark.cuda
@pytest.mark.usefixtures("one_thread")
def test_a_search_on_a_gpu_repeats() -> None:
    first, second = (searched(agent="knapsack", device="cuda") for _ in range(2))
    assert first.reports == second.reports


@pytest.mark.cuda
def test_timing_on_a_gpu_leaves_the_network_where_it_is(zoo: Zoo) -> None:
    specimen = zoo("chain")
    make_runtime(Setting(runtime="torch")).network(specimen.network, specimen.example)
    assert all(not tensor.is_cuda for tensor in specimen.network.state_dict().values())
