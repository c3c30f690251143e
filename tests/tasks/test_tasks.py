import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.checks import check_task
from amc.tasks.metrics import top1
from amc.tasks.models.digits import WEIGHTS, DigitsNet
from amc.tasks.models.resnet_cifar import resnet20, resnet56
from amc.tasks.splits import ArraySplit
from amc.tasks.task import Task, load_task

DATA = Path(__file__).parents[3] / "shared" / "data"
DOCS = Path(__file__).parents[2] / "docs"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no CIFAR-10 files in ../shared/data")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def pair(count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 3


def make(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "name": "small",
        "network": network(),
        "example_input": torch.zeros(1, 1, 4, 4),
        "calibration": pair(20),
        "validation": pair(21),
        "test": pair(22),
    }
    return Task(**(fields | changes))


# The metric


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_top1_scores_one_exactly_where_the_largest_output_is_the_class(rows: list[tuple[int, int]]) -> None:
    largest, targets = torch.tensor(rows).T
    scores = top1(torch.nn.functional.one_hot(largest, 5).float(), targets)
    assert scores.tolist() == [float(a == b) for a, b in rows]


def test_top1_scores_zero_where_outputs_are_not_finite() -> None:
    assert top1(torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]), torch.tensor([0, 0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("target", [-1, 3])
def test_top1_refuses_a_class_outside_the_outputs(target: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= class < 3 must hold .* but got class={target}"):
        top1(torch.zeros(2, 3), torch.tensor([0, target]))


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3).long()])
def test_top1_refuses_targets_that_are_not_one_class_per_sample(targets: Tensor) -> None:
    with pytest.raises(ValueError, match="top1 needs outputs"):
        top1(torch.zeros(2, 3), targets)


# The task


def test_a_task_puts_its_network_into_eval_mode() -> None:
    assert not make(network=network().train()).network.training


def test_a_task_converts_its_data_to_splits() -> None:
    task = make(calibration=TensorDataset(*pair()))
    assert task.calibration.batch([0])[0].shape == (1, 1, 4, 4)
    assert isinstance(task.validation, ArraySplit)


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"network": lambda x: x}, "network must be an nn.Module, but got function"),
        ({"example_input": torch.zeros(2, 1, 4, 4)}, r"must be a tensor \[1, ...\], .* but got \[2, 1, 4, 4\]"),
        ({"example_input": np.zeros((1, 1, 4, 4))}, "but got ndarray"),
        ({"test": None}, "data must be a pair"),
    ],
)
def test_a_task_of_wrong_parts_is_refused(change: dict[str, Any], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        make(**change)


# The door


def test_a_good_task_passes_the_door() -> None:
    check_task(make())


def test_a_good_task_of_a_dataset_passes_the_door() -> None:
    check_task(make(validation=TensorDataset(*pair())))


def broken_network() -> nn.Module:
    broken = network()
    next(broken.parameters()).data[0] = torch.nan
    return broken


class Restless(nn.Module):
    """Adds noise, in evaluation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y + torch.randn(y.shape)


class Crash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such feature")


class Overflow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 0.0


def spread() -> nn.Module:
    """As it comes out of the constructor where there is a CUDA device."""
    parallel = nn.DataParallel(network())
    parallel.device_ids = [0]
    return parallel


class Many(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3].mean(dim=0, keepdim=True)


def with_input(value: float, row: int) -> tuple[Tensor, Tensor]:
    x, y = pair()
    x[row, 0, 0, 0] = value
    return x, y


def with_target(value: float, row: int) -> tuple[Tensor, Tensor]:
    x, y = pair()
    y = y if float(value).is_integer() else y.float()
    y[row] = value
    return x, y


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"network": broken_network()}, r"weights must be finite, but the network .* 0.weight"),
        ({"network": Crash()}, "must run on its example input .* raised KeyError: 'no such feature'"),
        ({"network": network().to("meta")}, "weights must have values, but .* meta tensors"),
        (
            {"network": spread()},
            r"must run on the CPU, but is a DataParallel over devices \[0\]: pass `network.module`",
        ),
        ({"network": Overflow()}, "finite values, but on its example input it returned NaN or infinity"),
        ({"network": Restless()}, r"must give the same outputs for the same inputs, but two passes .* differ"),
        ({"network": Many()}, "must return one tensor .* it returned tuple"),
        ({"network": Mean()}, r"one output per sample, but 4 samples gave outputs \[1, 3\]"),
        ({"example_input": torch.zeros(1, 3, 4, 4)}, r"must run on its example input \[1, 3, 4, 4\]"),
        ({"calibration": pair(15)}, "at least 16 samples, but calibration holds 15"),
        ({"test": pair(0)}, "at least 16 samples, but test holds 0"),
        ({"test": (torch.zeros(20, 1, 8, 8), pair()[1])}, r"shape \[1, 4, 4\], but test has \[1, 8, 8\]"),
        ({"validation": with_input(torch.nan, 0)}, "inputs must be finite, but validation"),
        ({"calibration": with_input(torch.inf, 19)}, "inputs must be finite, but calibration"),
        ({"test": with_target(3, 19)}, "test: 0 <= class < 3 .* class=3"),
        ({"calibration": with_target(-1, 0)}, "calibration: 0 <= class < 3 .* class=-1"),
        ({"validation": with_target(0.5, 0)}, "one integer class per sample, but validation has torch.float32"),
        ({"validation": TensorDataset(*with_target(7, 2))}, "validation: 0 <= class < 3 .* class=7"),
        ({"test": [("a.png", 1)] * 20}, "test must give samples 0 to 15, but raised ValueError"),
        ({"metric": lambda o, t: torch.tensor(0.5)}, r"one score per sample, \[4\], but .* returned \[\]"),
        (
            {"metric": lambda o, t: torch.full((len(o),), torch.nan)},
            "must return numbers, but returned NaN for some",
        ),
        ({"metric": lambda o, t: o[:, 0] * 0 + 2}, r"one score in \[0, 1\]"),
        ({"metric": lambda o, t: 1 / 0}, "the metric 'metric' must score .* raised ZeroDivisionError"),
    ],
)
def test_the_door_refuses_in_one_line(change: dict[str, Any], law: str) -> None:
    with pytest.raises(ValueError, match=law) as refusal:
        check_task(make(**change))
    assert "\n" not in str(refusal.value)


def test_another_metric_may_have_other_targets() -> None:
    def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(-(outputs - targets).abs().mean(dim=1))

    targets = torch.rand(20, 3)
    data = {role: (pair()[0], targets) for role in ("calibration", "validation", "test")}
    check_task(make(metric=closeness, **data))


# Inputs that are no float32 images


class Reader(nn.Module):
    """Reads indices of 7 words, as an encoder does."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4, dtype=dtype), nn.Linear(4, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(x).mean(dim=1))
        return logits


def sentences(count: int = 20, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(7, (count, 5), generator=generator).to(dtype), torch.arange(count) % 3


def reading(**changes: Any) -> Task:
    data = {role: sentences() for role in ("calibration", "validation", "test")}
    example = torch.zeros(1, 5, dtype=torch.int64)
    return make(**({"network": Reader(), "example_input": example, **data} | changes))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_indices_reach_the_network_as_the_example_input_has_them(dtype: torch.dtype) -> None:
    task = reading(validation=sentences(dtype=dtype), test=TensorDataset(*sentences(dtype=dtype)))
    check_task(task)
    for split in (task.validation, task.test):
        inputs, _ = split.batch(range(20))
        assert inputs.dtype == torch.int64
        assert inputs.equal(sentences()[0])


def test_pixels_and_precisions_become_the_example_inputs_type() -> None:
    task = make(validation=(pair()[0].to(torch.uint8), pair()[1]), test=(pair()[0].double(), pair()[1]))
    assert {split.batch([0])[0].dtype for split in (task.validation, task.test)} == {torch.float32}
    half = make(example_input=torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16), network=network().to(torch.bfloat16))
    check_task(half)
    assert half.calibration.batch([0])[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (
            {"test": (sentences()[0].float(), sentences()[1])},
            r"must be torch.int64 as the example input is, .*, but test has torch.float32: give the data a transform",
        ),
        (
            {"calibration": ArraySplit(*sentences(), transform=lambda x: x / 2)},
            r"but calibration has torch.float32 after its transform of \[5\] torch.int64: correct the transform",
        ),
        (
            {"example_input": torch.zeros(1, 5)},
            r"run on its example input \[1, 5\] torch.float32 from 0 to 0, .*: correct the example input",
        ),
        (
            {"validation": (sentences()[0] + 3, sentences()[1])},
            r"four validation samples \[4, 5\] torch.int64 from 3 to 9, .* raised IndexError: .*: it runs on",
        ),
    ],
)
def test_the_door_blames_the_side_that_is_wrong(change: dict[str, Any], law: str) -> None:
    with pytest.raises(ValueError, match=law) as refusal:
        check_task(reading(**change))
    assert "\n" not in str(refusal.value)


# Checkpoints


def saved(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def doubled() -> dict[str, Tensor]:
    return {key: value * 2 if value.is_floating_point() else value for key, value in network().state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"module." + key: value for key, value in state.items()},
        lambda state: {"state_dict": {"module." + key: value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
def test_a_torch_state_dict_is_loaded_however_wrapped(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    target = network()
    load_checkpoint(target, saved(tmp_path / "x.pth", wrap(doubled())))
    assert all(torch.equal(value, doubled()[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_a_safetensors_file_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "x.safetensors", doubled()).rename(tmp_path / name)
    target = network()
    load_checkpoint(target, path)
    assert all(torch.equal(value, doubled()[key]) for key, value in target.state_dict().items())


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    target = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    target[1].weight = target[0].weight
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_model(target, str(path))
    load_checkpoint(target, path)


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in doubled().items() if name != key}


@pytest.mark.parametrize(
    ("state", "law"),
    [
        (without("4.bias"), r"does not fit \(missing: 4.bias\)"),
        (doubled() | {"5.bias": torch.zeros(1)}, r"does not fit \(unexpected: 5.bias\)"),
        (doubled() | {"4.bias": torch.zeros(7)}, r"of another shape: 4.bias \[7\] instead of \[3\]"),
        (doubled() | {"4.bias": torch.zeros(3, dtype=torch.int8)}, "of another kind of number: 4.bias"),
        (doubled() | {"4.bias": torch.full((3,), torch.nan)}, "weights must be finite, but .* in 4.bias"),
        ({f"x{i}": torch.zeros(1) for i in range(9)}, "unexpected: x0, x1, x2 and 6 more"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(
    tmp_path: Path, state: dict[str, Tensor], law: str, suffix: str
) -> None:
    target = network()
    with pytest.raises(ValueError, match=law) as refusal:
        load_checkpoint(target, saved(tmp_path / f"x{suffix}", state))
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, network().state_dict()[key]) for key, value in target.state_dict().items())


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.target,)


def test_a_checkpoint_is_never_executed(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"weight": Payload(tmp_path / "executed")})
    with pytest.raises(ValueError, match="must be a safetensors file or a torch state dict"):
        load_checkpoint(network(), path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x10" + b"\0" * 7 + b"{", b"PK\x03\x04" + b"\0" * 50])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"is neither .*: re-save it with safetensors") as refusal:
        load_checkpoint(network(), tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = saved(tmp_path / name, doubled())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ValueError, match="is neither"):
        load_checkpoint(network(), path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": "b"}}, torch.zeros(3)])
def test_a_torch_file_of_anything_else_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match="is neither"):
        load_checkpoint(network(), saved(tmp_path / "x.pth", content))


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_missing_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be a file that can be read, .*: correct the path"):
        load_checkpoint(network(), tmp_path / name)


# The tasks that ship


def test_the_digits_task_passes_the_door() -> None:
    check_task(load_task("digits"))


@pytest.mark.parametrize("role", ["validation", "test"])
def test_the_digits_network_is_as_accurate_as_its_file_says(role: str) -> None:
    task = load_task("digits")
    split = getattr(task, role)
    inputs, targets = split.batch(range(len(split)))
    with torch.no_grad():
        accuracy = float(top1(task.network(inputs), targets).mean())
    with safe_open(WEIGHTS, "pt") as file:
        promised = json.loads(file.metadata()["training"])["accuracy"][role]
    assert accuracy >= 0.97
    assert accuracy == pytest.approx(promised, abs=0.002)  # one image of 600, for another processor's rounding


def test_the_digits_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000


@pytest.mark.parametrize("build", [DigitsNet, resnet20, resnet56])
def test_a_reference_network_can_be_traced(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    inputs = torch.rand(2, *((1, 16, 16) if isinstance(model, DigitsNet) else (3, 32, 32)))
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(inputs), model(inputs))


def test_the_digits_task_takes_other_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = DigitsNet().state_dict()
    task = load_task("digits", checkpoint=saved(tmp_path / "x.pth", other))
    assert torch.equal(task.network.state_dict()["classifier.weight"], other["classifier.weight"])


def test_the_digits_task_takes_no_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task 'digits' brings its own data"):
        load_task("digits", data=tmp_path)


def test_an_unknown_task_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of digits, cluttered-digits, cifar10-resnet20, .* but got 'imagenet'"):
        load_task("imagenet")


@pytest.mark.parametrize(("given", "missing"), [({}, "--data"), ({"data": DATA}, "--checkpoint")])
def test_a_cifar10_task_needs_data_and_checkpoint(given: dict[str, Path], missing: str) -> None:
    with pytest.raises(ValueError, match=f"but {missing} is missing: add {missing}"):
        load_task("cifar10-resnet20", **given)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("depth", [20, pytest.param(56, marks=pytest.mark.slow)])
def test_a_cifar10_network_classifies_the_validation_images(depth: int) -> None:
    name = f"cifar10-resnet{depth}"
    task = load_task(name, data=DATA, checkpoint=DATA / f"resnet{depth}_cifar10.safetensors")
    assert [len(split) for split in (task.calibration, task.validation, task.test)] == [50000, 5000, 5000]
    inputs, targets = task.validation.batch(range(256))
    with torch.no_grad():
        assert float(top1(task.network(inputs), targets).mean()) > 0.85


@pytest.mark.data
@needs_data
def test_a_cifar10_task_passes_the_door() -> None:
    check_task(load_task("cifar10-resnet20", data=DATA, checkpoint=DATA / "resnet20_cifar10.safetensors"))


# Anyone's own

MODULE = """
import torch
from torch import nn
from amc.tasks.task import Task

def build(**given):
    x, y = torch.zeros(60, 1, 4, 4), torch.arange(60) % 3
    part = lambda i: (x[i : i + 20], y[i : i + 20])
    return Task(name=f"own {sorted(given)}", network=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
                example_input=x[:1], calibration=part(0), validation=part(20), test=part(40))

def plain(): return build()
def takes(data=None, checkpoint=None): return build(data=data, checkpoint=checkpoint)
def needs(data): return build(data=data)
def empty(): return None
def fails(): return torch.zeros(2)[5]
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module of tasks in the current directory, with a name of its own for each test."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # so that the path is restored afterwards
    return name


def test_a_task_of_ones_own_is_loaded_from_the_current_directory(module: str) -> None:
    check_task(load_task(f"{module}:plain"))


def test_a_function_is_given_the_options_that_it_takes(module: str) -> None:
    task = load_task(f"{module}:takes", data=Path("d"), checkpoint=Path("no such file"))
    assert task.name == "own ['checkpoint', 'data']"


def test_a_checkpoint_that_the_function_does_not_take_is_loaded(module: str, tmp_path: Path) -> None:
    state = {"1.weight": torch.ones(3, 16), "1.bias": torch.ones(3)}
    task = load_task(f"{module}:plain", checkpoint=saved(tmp_path / "x.pth", state))
    assert torch.equal(task.network.state_dict()["1.weight"], state["1.weight"])


@pytest.mark.parametrize(
    ("function", "options", "law"),
    [
        ("plain", {"data": Path("d")}, "has no parameter 'data': leave --data out"),
        ("needs", {}, "needs --data, but none was given"),
        ("empty", {}, "must return a Task, but returned NoneType"),
        ("fails", {}, r"must return a Task, but raised IndexError: .*\(own_.*.py, line 16\)"),
        ("absent", {}, "has no function 'absent'"),
        ("number", {}, "has no function 'number'"),
    ],
)
def test_a_function_that_makes_no_task_is_refused(
    module: str, function: str, options: dict[str, Path], law: str
) -> None:
    with pytest.raises(ValueError, match=law) as refusal:
        load_task(f"{module}:{function}", **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("no_such_file.py:f", "write no_such_file:f"),
        (":f", "must name a module that can be imported"),
        ("wrong syntax:f", "must name a module that can be imported"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused(name: str, law: str) -> None:
    with pytest.raises(ValueError, match=law):
        load_task(name)


def test_a_module_that_fails_while_imported_is_refused_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_broken.py").write_text("import torch\nvalue = undefined\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"NameError: .* \(own_broken.py, line 2\)"):
        load_task("own_broken:make_task")


@pytest.mark.usefixtures("bare")
def test_the_documented_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "own_task.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    modules = [re.match(r"# (\w+)\.py\n", block) for block in blocks]
    assert len(blocks[0].splitlines()) <= 25
    for block, module in zip(blocks, modules, strict=True):
        if module is None:
            exec(compile(block, "own_task.md", "exec"), {})
        else:
            (tmp_path / f"{module[1]}.py").write_text(block)
            check_task(load_task(f"{module[1]}:make_task"))
