"""A network's structure on disk: it comes back in another process, and a file can neither call nor choose code."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import amc
from amc.export.applied import WEIGHTS, write_applied
from amc.export.program import write_program
from amc.export.rebuild import OtherCode, load_network
from amc.export.structure import STRUCTURE, write_structure
from amc.tasks.models.digits import DigitsNet
from amc.tasks.task import load_task
from envs.space.policy import Policy, UnitPolicy, structure_fingerprint, weights_fingerprint
from envs.units.anatomy import dissect

CODE = """
import enum
import torch
from torch import nn

class Kind(enum.Enum):
    PLAIN = 1

class Config:
    def __init__(self, width):
        self.width, self.kind = width, Kind.PLAIN

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.config = Config(width)
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(width, 4)
        self.tied = nn.Linear(4, width)
        self.tied.weight = self.first.weight
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)
        self.activation = torch.nn.functional.gelu
        self.options = {"shape": torch.Size([1, 2]), "type": torch.float32, "low": float("-inf")}

    def forward(self, x):
        return self.second(self.activation(self.first(x) + self.tied(x))) * self.scale
"""


def written(network: nn.Module, folder: Path) -> Path:
    """A folder with a network's weights and structure."""
    folder.mkdir(exist_ok=True)
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS)
    write_structure(network, folder / STRUCTURE)
    return folder


def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network.eval()(inputs)
    return found


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (DigitsNet, (2, 1, 16, 16)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), (2, 3, 8)),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.PReLU(), nn.Flatten(), nn.LazyLinear(2)), (2, 3, 8)),
    ],
)
def test_a_network_comes_back_plain_and_trainable(
    make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    network = make()
    expected = outputs(network, inputs)
    again = load_network(written(network, tmp_path / "small"))
    assert type(again) is type(network)
    assert torch.equal(outputs(again, inputs), expected)
    again(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_recurrent_networks_come_back(tmp_path: Path) -> None:
    network, inputs = nn.LSTM(3, 4), torch.randn(2, 1, 3)
    again = load_network(written(network, tmp_path / "small"))
    assert torch.equal(again(inputs)[0], network(inputs)[0])


def test_another_process_needs_the_code_alone(tmp_path: Path) -> None:
    (tmp_path / "mycode.py").write_text(CODE)
    script = """
        import sys
        import torch
        from pathlib import Path
        {imports}
        torch.manual_seed(0)
        x = torch.ones(2, 4)
        {make}
        print(float(net(x).sum()), net.tied.weight is net.first.weight, net.config.width, net.config.kind.name)
    """
    save = "import mycode; net = mycode.Net(6); import tests_helper; tests_helper.written(net, Path('small'))"
    helper = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_structure import written"
    (tmp_path / "tests_helper.py").write_text(helper)
    load = "from amc.export.rebuild import load_network; net = load_network(Path('small'))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script).format(imports="", make=make)],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for make in (save, load)
    ]
    assert printed[0] == printed[1]
    assert "True 6 PLAIN" in printed[0]


def test_other_code_is_refused_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changing_code.py").write_text(CODE)
    import changing_code  # type: ignore[import-not-found]

    folder = written(changing_code.Net(6), tmp_path / "small")
    del sys.modules["changing_code"]
    (tmp_path / "changing_code.py").write_text(CODE + "\nraise SystemExit('executed')\n")
    with pytest.raises(OtherCode, match="has changed since"):
        load_network(folder)
    (tmp_path / "changing_code.py").unlink()
    with pytest.raises(OtherCode, match="no module 'changing_code'"):
        load_network(folder)


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The folder with another description."""
    with safe_open(folder / STRUCTURE, framework="pt") as file:
        header = json.loads(file.metadata()["structure"])
    change(header)
    safetensors.torch.save_file({}, folder / STRUCTURE, metadata={"structure": json.dumps(header)})
    return folder


def at_root(**entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["objects"][header["root"]].update(entry)


def attribute(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["objects"][header["root"]]["attributes"].update(extra=value)


@pytest.mark.parametrize(
    "change",
    [
        at_root(**{"class": "os:system"}),
        at_root(**{"class": "torch:load"}),
        at_root(**{"class": "torch.nn.functional:relu"}),
        attribute({"name": "os:system"}),
        attribute({"name": "builtins:eval"}),
        attribute({"name": "torch:load"}),
        attribute({"name": "torch.hub:load"}),
        attribute({"name": "torch.nn.functional:torch"}),
        attribute({"name": "torch.nn.functional:torch.load"}),
        attribute({"name": "torch:os.system"}),
        attribute({"partial": [{"name": "subprocess:run"}, {"list": ["true"]}, {"dict": []}]}),
        attribute({"object": 10**6}),
        attribute({"float": "text"}),
        attribute({"nonsense": 1}),
        attribute({"number": ["object", 1]}),
        attribute({"number": ["float64", "1"]}),
        attribute({"namedtuple": ["os:system", ["true"]]}),
        attribute({"namedtuple": ["torch.nn.modules.linear:Linear", [1]]}),
        attribute({"enum": ["os:system", "x"]}),
        attribute({"dtype": "load"}),
        lambda header: header.update(root=-(10**9)),
        lambda header: header.update(schema_version=99),
        lambda header: header.pop("objects"),
        lambda header: header["sources"].update({"os": "0"}),
    ],
)
def test_a_file_can_name_neither_functions_nor_other_classes(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    folder = edited(written(nn.Sequential(nn.Linear(2, 2)), tmp_path / "small"), change)
    with pytest.raises(ValueError, match=r"readable|must be"):
        load_network(folder)


def test_damaged_and_missing_files_are_one_line(tmp_path: Path) -> None:
    folder = written(nn.Linear(2, 2), tmp_path / "small")
    (folder / STRUCTURE).write_bytes((folder / STRUCTURE).read_bytes()[:-5])
    with pytest.raises(ValueError, match="readable weights"):
        load_network(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="holds no network"):
        load_network(folder)


def test_what_cannot_be_described_says_why_when_it_is_loaded(tmp_path: Path) -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    local = nn.Sequential(type("Local", (nn.Identity,), {})())
    compiled: Any = torch.compile(nn.Linear(2, 2), backend="eager")
    for network, reason in (
        (hooked, "hooks"),
        (local, "cannot be imported"),
        (compiled, "the network is a OptimizedModule.*search its `_orig_mod`"),
        (nn.Sequential(compiled), "0 is a OptimizedModule.*search its `_orig_mod`"),
    ):
        with pytest.raises(OtherCode, match=reason):
            load_network(written(network, tmp_path / "small"))


def test_an_applied_policy_is_loaded_without_the_dense_network(tmp_path: Path) -> None:
    task = load_task("digits")
    units = dissect(task.network, task.example_input, None).units
    policy = Policy(
        structure=structure_fingerprint(task.network),
        weights=weights_fingerprint(task.network),
        units=tuple(UnitPolicy(unit=unit, indices=tuple(range(unit.channels // 2))) for unit in units),
    )
    small = policy.apply(task.network)
    write_applied(policy, small, tmp_path / "small")
    inputs = torch.ones(2, 1, 16, 16)
    assert torch.equal(outputs(amc.load(tmp_path / "small"), inputs), outputs(small, inputs))
    assert torch.equal(outputs(amc.load(tmp_path / "small", DigitsNet()), inputs), outputs(small, inputs))
    with pytest.raises(ValueError, match="holds no network"):
        amc.load(tmp_path)


def test_functions_of_torch_may_be_attributes(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network.extra = [F.relu, torch.sigmoid, F.gelu, functools.partial(F.leaky_relu, negative_slope=0.1)]  # type: ignore[assignment]
    again = load_network(written(network, tmp_path / "small"))
    values = torch.tensor([-1.0, 2.0])
    for before, after in zip(network.extra, again.extra, strict=True):  # type: ignore[arg-type]
        assert torch.equal(before(values), after(values))


KEPT = """
from collections import defaultdict, namedtuple
from typing import NamedTuple
from torch import nn

Widths = namedtuple("Widths", "narrow wide")

class Sizes(NamedTuple):
    width: int
    inner: Widths

class Options(dict):
    __getattr__ = dict.__getitem__

class Name(str):
    pass

class Pair(tuple):
    pass

class Slotted:
    __slots__ = ("__dict__", "width")

class Net(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.linear, self.extra = nn.Linear(2, 2), extra
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with a network that holds what it is given."""
    (tmp_path / "kept_code.py").write_text(KEPT)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("kept_code")
    del sys.modules["kept_code"]


@pytest.mark.parametrize(
    "make",
    [
        lambda kept: kept.Widths(3, 4.5),
        lambda kept: kept.Sizes(3, kept.Widths(1, (2,))),
        lambda kept: [kept.Sizes(3, kept.Widths(1, None))],
        lambda kept: OrderedDict(b=1, a=OrderedDict()),
        lambda kept: {"a": frozenset({1, "b"}), "b": {2}},
        lambda kept: np.sqrt(8),
        lambda kept: [
            np.float32(0.1),
            np.float16(0.1),
            np.int64(-(2**62)),
            np.uint8(3),
            np.bool_(True),
            np.float64("nan"),
        ],
    ],
)
def test_attributes_keep_their_types(make: Callable[[Any], Any], kept: Any, tmp_path: Path) -> None:
    value = make(kept)
    again = load_network(written(kept.Net(value), tmp_path / "small")).extra
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda kept: kept.Options(width=3),
        lambda kept: kept.Name("three"),
        lambda kept: kept.Pair((1, 2)),
        lambda kept: kept.Slotted(),
        lambda kept: np.complex64(1j),
        lambda kept: np.str_("text"),
        lambda kept: np.ones(2),
        lambda kept: kept.defaultdict(int),
        lambda kept: [torch.zeros(2).as_subclass(type("Own", (Tensor,), {}))],
    ],
)
def test_a_type_that_would_not_come_back_is_never_replaced(
    make: Callable[[Any], Any], kept: Any, tmp_path: Path
) -> None:
    folder = written(kept.Net(make(kept)), tmp_path / "small")
    with pytest.raises(OtherCode, match=r"the network\.extra.* no file without code can hold.*network=\.\.\."):
        load_network(folder)


def test_code_from_elsewhere_is_no_damage(kept: Any, tmp_path: Path) -> None:
    """The writer accepts what the reader does, and says what helps: to apply the policy again would not."""
    (tmp_path / "beside.py").write_text("class Config:\n    pass\n\nfrom enum import Enum\nKind = Enum('Kind', 'A')\n")
    beside = importlib.import_module("beside")
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    for network, name in (
        (kept.Net(beside.Config()), r"network\.extra is beside\.Config"),
        (kept.Net([beside.Kind.A]), r"network\.extra\[0\] is beside\.Kind"),
        (nn.Sequential(torch.ao.quantization.QuantStub()), r"0 is torch\.ao\.quantization"),
        (average, r"the network is torch\.optim\.swa_utils\.AveragedModel"),
        (kept.Net(torch.einsum), r"network\.extra is torch\.functional\.einsum"),
    ):
        with pytest.raises(OtherCode, match=rf"{name}.*network=\.\.\."):
            load_network(written(network, tmp_path / "small"))
    del sys.modules["beside"]


def test_a_folder_that_names_code_from_elsewhere_says_what_helps(tmp_path: Path) -> None:
    folder = written(nn.Sequential(nn.Linear(2, 2)), tmp_path / "small")
    for name in ("torch.functional:einsum", "torch.nn.modules.linear:Gone"):
        with pytest.raises(OtherCode, match=r"must be of torch\.nn .*network=\.\.\."):
            load_network(edited(folder, attribute({"name": name})))


def test_tensors_and_modules_in_a_list_are_told_apart(kept: Any, tmp_path: Path) -> None:
    network = kept.Net([torch.zeros(2), torch.ones(2), nn.Linear(2, 2), nn.Linear(2, 2)])
    network.tied = [network.linear.weight, nn.Parameter(torch.ones(1), requires_grad=False)]
    again: Any = load_network(written(network, tmp_path / "small"))
    for before, after in zip(network.extra[:2], again.extra[:2], strict=True):
        assert torch.equal(before, after)
    for before, after in zip(network.extra[2:], again.extra[2:], strict=True):
        assert torch.equal(before.weight, after.weight)
    assert again.tied[0] is again.linear.weight
    assert isinstance(again.tied[1], nn.Parameter)
    assert not again.tied[1].requires_grad


@pytest.mark.slow
def test_a_program_runs_without_the_package(tmp_path: Path) -> None:
    network, inputs = DigitsNet(), torch.ones(4, 1, 16, 16)
    write_program(network, inputs[:1], tmp_path / "small.pt2")
    script = (
        "import sys, torch; net = torch.export.load('small.pt2').module(); "
        "print(float(net(torch.ones(4, 1, 16, 16)).sum()), 'amc' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(printed[0]) == pytest.approx(float(outputs(network, inputs).sum()), abs=1e-4)
    assert printed[1] == "False"
