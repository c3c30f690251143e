"""Any network: every kind goes through inspection, searches, an independent recount and export to ONNX. The quick
suite takes one network of each kind at the tight budget and exports every second one; the slow tests take all networks
at all budgets and export all.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc.config.search import load_config
from amc.export.onnx import write_onnx
from amc.problem.inspection import Inspection, inspection, weighted_layers
from amc.problem.prepare import prepare
from amc.problem.setup import Setup, set_up
from amc.reporting.inspection_view import inspection_tables
from amc.search.loop import search
from amc.tasks.metrics import top1
from amc.tasks.task import Task
from envs.network.copies import copy_network
from envs.units.anatomy import dissect
from envs.units.attention.decided import Decided
from envs.units.slicing import Kept, silence, slice_network

SAMPLES, BUDGETS = 24, (0.7, 0.3)
"""Samples per split; budgets on the way from the lowest reachable MACs to the dense network's."""

QUICK = {
    "agent": "knapsack",
    "backend.name": "fp32",
    "reward_images": 16,
    "knapsack.widths": 2,
    "knapsack.images": 16,
    "knapsack.damages": ["logits"],
    "knapsack.audition_images": 16,
    "compression.images": 24,
    "compression.positions": 8,
    "compression.quick_images": 24,
    "compression.quick_positions": 4,
}


def _module(name: str) -> Any:
    """A file beside this one; tests are no package."""
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


MODULES = [_module(name) for name in ("zoo_convolutional", "zoo_sequence", "zoo_attention", "zoo_odd", "zoo_channels")]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    name: entry for module in MODULES for name, entry in module.NETWORKS.items()
}
WORDS: dict[str, int] = {name: count for module in MODULES for name, count in getattr(module, "WORDS", {}).items()}

VARIANTS = {
    "vgg": "flattened",
    "resnet_projection": "preactivation",
    "inception": "dilated",
    "mobilenet_v1": "efficientnet",
    "mobilenet_v2": "efficientnet",
    "mobilenet_v3": "efficientnet",
    "instance_norm": "group_norm",
    "prelu": "plain",
    "autoencoder": "super_resolution",
    "ghostnet": "densenet",
    "res2net": "shufflenet",
    "wavenet": "tcn",
    "gru": "lstm",
    "spectral_norm": "weight_norm",
    "sliced": "shufflenet",
    "shuffled": "shufflenet",
    "flipped": "permuted",
    "repeated": "doubled",
    "cumulated": "permuted",
    "softmax_channels": "normalized",
    "local_response": "normalized",
    "unshuffled": "super_resolution",
    "buffered": "padded",
    "rep": "preactivation",
    "vit_scaled_dot": "vit_fused",
    "vit_modular": "vit_separate",
    "attention_summed": "vit_separate",
    "attention_batched": "vit_separate",
    "attention_interleaved": "vit_fused",
    "attention_crossed": "vit_encoder",
    "cross_attention": "vit_encoder",
    "attention_shared": "attention_grouped",
    "attention_flexible": "attention_rotary",
    "attention_sloped": "attention_rotary",
    "attention_relative": "attention_rotary",
    "attention_transposed": "attention_rotary",
}
"""Networks that only the slow tests play -> the one of their kind that the quick suite plays."""

REPRESENTATIVES = [name for name in NETWORKS if name not in VARIANTS]
"""One network of each kind."""

UNEXPORTED = frozenset({"fourier"})
"""Networks with operators that torch.onnx does not know."""

EXPORTED = frozenset(REPRESENTATIVES[::2]) - UNEXPORTED
"""Every second one."""

WHOLE = frozenset(
    {
        "plain",
        "vgg",
        "resnet_projection",
        "preactivation",
        "densenet",
        "inception",
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilenet_v3",
        "resnext",
        "unet",
        "conv1d",
        "conv3d",
        "dilated",
        "instance_norm",
        "prelu",
        "super_resolution",
        "autoencoder",
        "ghostnet",
        "tcn",
        "squeezed",
        "in_place",
        "frames",
    }
)
"""Networks of which everything but the layer that writes the output can be pruned."""


def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.exp(-(outputs - targets).flatten(1).square().mean(dim=1))


def randomized(network: nn.Module) -> nn.Module:
    """Normalization statistics and affine parameters that are not trivial; eval mode."""
    for module in network.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            nn.init.normal_(module.running_mean, 0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # type: ignore[arg-type]
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                nn.init.normal_(module.bias, 0, 0.3)  # type: ignore[arg-type]
    return network.eval()


def task_of(name: str) -> Task:
    """A network with random weights and data on which it is perfect; another metric where it scores no classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build, shape = NETWORKS[name]
        network = randomized(build())
        x = torch.randint(WORDS[name], (3 * SAMPLES, *shape)) if name in WORDS else torch.randn(3 * SAMPLES, *shape)
    with torch.no_grad():
        outputs = network(x)
    classes = outputs.ndim == 2
    y = outputs.argmax(dim=1) if classes else outputs
    parts: dict[str, Any] = {
        role: (x[k * SAMPLES : (k + 1) * SAMPLES], y[k * SAMPLES : (k + 1) * SAMPLES])
        for k, role in enumerate(("calibration", "validation", "test"))
    }
    return Task(name=name, network=network, example_input=x[:1], metric=top1 if classes else closeness, **parts)


@pytest.fixture(autouse=True)
def countable() -> Iterator[None]:
    """FlopCounterMode sees neither fused attention nor recurrent layers of oneDNN."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)


def _product(first: Tensor, *others: Any, **options: Any) -> int:
    return 2 * int(first.numel())


PRODUCTS: dict[Any, Any] = {torch.ops.aten.mv: _product, torch.ops.aten.dot: _product, torch.ops.aten.vdot: _product}
"""What torch has no formula for: products of a matrix or a vector and a vector, as in spectral normalization."""


def counted(network: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one sample, by torch's own counter."""
    network = copy.deepcopy(network).requires_grad_(False)
    counter = FlopCounterMode(display=False, custom_mapping=PRODUCTS)
    with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # oneDNN's switch warns of Intel GPUs
        with torch.backends.mkldnn.flags(enabled=False), counter:
            network(example)
    return int(counter.get_total_flops()) // 2


def check_inspection(found: Inspection, network: nn.Module, example: Tensor) -> None:
    """Every layer with a weight is in a unit or stays for a reason that is true, and is listed once."""
    layers = weighted_layers(network)
    held = {layer for unit in found.units for layer in (*unit.writes, *unit.carries)}
    stays = [stay.layer for stay in found.stays]
    assert Counter(stays) == Counter(layer for layer in layers if layer not in held) + Counter(set(stays) - set(layers))
    for stay in found.stays:
        assert stay.reason.strip()
        assert "network's output" not in stay.reason or writes_outputs(network, stay.layer, example), stay
    assert found.units
    json.dumps(found.to_json())
    file = io.StringIO()
    Console(file=file, width=80).print(inspection_tables(found))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    assert all(layer in "".join(file.getvalue().split()) for layer in layers)
    assert all(f"{unit.channels} {unit.kind}" in file.getvalue() for unit in found.units if unit.kind != "channels")


def writes_outputs(network: nn.Module, layer: str, example: Tensor) -> bool:
    """Whether no output depends on two channels of a layer, by gradients of some of the outputs."""
    taken: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        taken.append(output)
        return output.clone()

    module = network.get_submodule(layer)
    axis = -1 if isinstance(module, nn.Linear) else 1
    handle = module.register_forward_hook(hook)
    outputs = network(example).flatten()
    handle.remove()
    for index in range(0, len(outputs), max(1, len(outputs) // 8)):
        for gradient in torch.autograd.grad(outputs[index], taken, retain_graph=True, allow_unused=True):
            channels = 0 if gradient is None else int(gradient.movedim(axis, -1).flatten(0, -2).any(dim=0).sum())
            if channels > 1:
                return False
    return True


def check_silence(setup: Setup, kept: Kept, inputs: Tensor) -> None:
    """Removing the channels gives what the network's own forward gives without reading them."""
    units = [unit for unit in setup.anatomy.units if unit.name in kept]
    assert all(len({len(set(share).intersection(kept[unit.name])) for share in unit.shares}) <= 1 for unit in units)
    silent = copy_network(setup.task.network)
    for unit in units:
        silence(silent, unit, sorted(set(range(unit.channels)) - set(kept[unit.name])))
    with torch.no_grad():
        expected, got = silent(inputs), slice_network(setup.task.network, units, kept)(inputs)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1e-6)


def test_every_kind_of_network_is_played_quickly() -> None:
    assert VARIANTS.keys() <= NETWORKS.keys()
    assert set(VARIANTS.values()) <= set(REPRESENTATIVES)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_any_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, task = check_network(name, BUDGETS[-1:], tmp_path, monkeypatch)
    if name in EXPORTED:
        write_onnx(small, task.example_input, task.test.batch(range(4))[0], tmp_path / "found.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_at_every_budget_and_in_onnx(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, task = check_network(name, BUDGETS, tmp_path, monkeypatch)
    if name not in UNEXPORTED:
        write_onnx(small, task.example_input, task.test.batch(range(4))[0], tmp_path / "found.onnx")


@pytest.mark.parametrize(
    ("name", "attention"),
    [("attention_rotary", "queries"), pytest.param("attention_batched", "widths", marks=pytest.mark.slow)],
)
def test_what_is_decided_about_attention(
    name: str, attention: Decided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, task = check_network(name, BUDGETS[-1:], tmp_path, monkeypatch, attention)
    write_onnx(small, task.example_input, task.test.batch(range(4))[0], tmp_path / "found.onnx")


def check_network(
    name: str,
    budgets: Sequence[float],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    attention: Decided = "heads",
) -> tuple[nn.Module, Task]:
    """Inspects a network and searches it at some budgets; the network found at the last of them, and its task."""
    task = task_of(name)
    example = task.example_input
    assert isinstance(example, Tensor)
    monkeypatch.setenv("AMC_CACHE", str(folder))
    monkeypatch.setitem(sys.modules, "specimens", SimpleNamespace(make_task=lambda: task))
    anatomy = dissect(task.network, example, None, attention)
    for module in ("amc.problem.inspection", "amc.problem.setup"):  # half of the time: once is enough
        monkeypatch.setattr(f"{module}.dissect", lambda *_, **__: anatomy)
    values = {"task": "specimens:make_task", "rules.attention": attention}
    found = inspection(task, load_config(None, values))
    check_inspection(found, anatomy.network, example)
    assert len(found.stays) == 1 or name not in WHOLE
    macs = next(cost for cost in found.costs if cost.name == "macs")
    dense, inputs = counted(task.network, example), task.test.batch(range(4))[0]
    assert macs.dense == dense
    for budget in budgets:
        share = macs.share + budget * (1 - macs.share)
        setup = set_up(load_config(None, {**values, "constraint": {"macs": share}, **QUICK}))
        result = search(prepare(setup))
        small, costs = result.networks["found"], result.reports["found"].costs
        assert result.reports["dense"].costs["macs"] == dense
        assert costs["macs"] == counted(small, example) <= share * dense
        check_silence(setup, result.policy.kept(), inputs)
    return small, task


@pytest.mark.parametrize(("name", "hidden"), [("vit_separate", "fc1"), ("vit_modular", "fc1"), ("decoder", "gate")])
def test_the_units_of_a_transformer_are_the_hidden_channels_of_its_blocks(name: str, hidden: str) -> None:
    task = task_of(name)
    units = [unit for unit in dissect(task.network, task.example_input).units if unit.kind == "channels"]
    assert {unit.name: (unit.channels, unit.granule) for unit in units} == {
        f"blocks.{block}.{hidden}": (32, 1) for block in range(2)
    }
