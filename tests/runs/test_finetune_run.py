"""Fine-tuning of a run on disk: a row in its result, exact resume, what is refused, and reloading."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import amc
from amc.cli.commands import run_export
from amc.export.applied import FINETUNING, POLICY, WEIGHTS
from amc.export.stored import read_stored
from amc.runs.finetuning.run import SETTINGS, STATE, finetune_run
from amc.runs.runner import NoScreen
from amc.storage.files import read_json
from amc.tasks.task import Task
from tests.tasks.small import make_task, make_trainable

TASK = "tests.tasks.small:make_trainable"
QUICK: dict[str, Any] = {
    "budgets": {"macs": 0.5},
    "searcher": "uniform",
    "progress": False,
    "reward_images": 64,
    "confirm": 1,
    "compression": {"images": 64, "quick_images": 64},
}
GIVEN = {"task": TASK}


def screen() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of the small task, under a name that a folder can hold."""
    home = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(home / "cache"))
        patch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})  # three seconds
        amc.search(TASK, out=home / "run", **QUICK)
        yield home / "run"


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "run"))


@pytest.fixture(scope="module")
def trained(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after two epochs."""
    path = Path(shutil.copytree(searched, tmp_path_factory.mktemp("trained") / "run"))
    finetune_run(path, {"epochs": 2}, NoScreen(), given=GIVEN)
    return path


def test_the_fine_tuned_network_is_a_row_of_result_and_report(trained: Path) -> None:
    record = read_json(trained / "result.json", "a result")
    found, tuned = record["found"], record["fine-tuned"]
    task, network = make_task(), amc.load(trained)
    inputs, targets = task.test.batch(range(len(task.test)))
    with torch.no_grad():
        hits = network(inputs).argmax(1) == targets
    assert tuned["accuracy"]["test"] == pytest.approx(float(hits.float().mean()), abs=2e-3)
    assert tuned["costs"] == found["costs"]
    assert "fine-tuned<small>found, trained afterwards" in (trained / "report.html").read_text()
    console = screen()
    amc.resume(trained, task=TASK, progress=False).show(console)
    assert "fine-tuned" in shown(console)


def test_the_newest_network_is_loaded_unless_the_found_one_is_asked_for(trained: Path) -> None:
    tuned, found = amc.load(trained), amc.load(trained, which="found")
    result = amc.resume(trained, task=TASK, progress=False)
    assert same(tuned, result.networks["fine-tuned"])
    assert same(found, result.networks["found"])
    assert same(amc.load(trained, make_task().network), tuned)
    assert not same(tuned, found)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Interrupting(NoScreen):
    """Ctrl-C when the first epoch has ended."""

    def step(self, what: str, done: int, total: int) -> None:
        if what == "fine-tuning" and done == 1:
            raise KeyboardInterrupt


def test_a_stopped_training_goes_on_to_the_same_bytes(run: Path, trained: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        finetune_run(run, {"epochs": 2}, Interrupting(), given=GIVEN)
    assert "goes on" in stopped.value.__notes__[0]
    assert not (run / FINETUNING / WEIGHTS).exists()
    finetune_run(run, {}, NoScreen(), given=GIVEN)
    for name in (STATE, WEIGHTS, POLICY, SETTINGS):
        assert (run / FINETUNING / name).read_bytes() == (trained / FINETUNING / name).read_bytes()
    assert read_json(run / "result.json", "a result") == read_json(trained / "result.json", "a result")


def test_other_settings_need_a_fresh_start_which_keeps_the_old_one(run: Path) -> None:
    finetune_run(run, {"epochs": 1}, NoScreen(), given=GIVEN)
    with pytest.raises(ValueError, match="seed is 0, not 1"):
        finetune_run(run, {"seed": 1}, NoScreen(), given=GIVEN)
    old = (run / FINETUNING / WEIGHTS).read_bytes()
    finetune_run(run, {"epochs": 1, "seed": 1}, NoScreen(), given=GIVEN, fresh=True)
    assert (run / f"{FINETUNING}.1" / WEIGHTS).read_bytes() == old != (run / FINETUNING / WEIGHTS).read_bytes()


def test_a_report_that_is_missing_is_written_again_without_training(trained: Path) -> None:
    report = (trained / "report.html").read_text()
    (trained / "report.html").unlink()
    finetune_run(trained, {}, Interrupting(), given=GIVEN)
    assert (trained / "report.html").read_text() == report


def vector_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def with_training(**changes: Any) -> Task:
    """The small task with other training."""
    small = make_task()
    splits = {name: getattr(small, name) for name in ("calibration", "validation", "test")}
    return Task(network=small.network, example_input=small.example_input, name="small", **splits, **changes)


def noisy() -> Task:
    inputs, targets = make_task().calibration.batch(range(64))
    inputs[17] = float("nan")
    return with_training(training=(inputs.numpy(), targets.numpy()))


class Auxiliary(nn.Sequential):
    """Returns its input, too, but only in training mode."""

    def forward(self, x: Tensor) -> Any:
        outputs = x
        for module in self:
            outputs = module(outputs)
        return (outputs, x) if self.training else outputs


def auxiliary() -> Task:
    task = with_training(training=make_task().calibration)
    return replace(task, network=Auxiliary(*task.network.children()).eval())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (make_task, "fine-tuning needs training samples"),
        (lambda: with_training(training=make_task().calibration, loss=vector_loss), r"loss must be one finite number"),
        (lambda: with_training(training=make_task().calibration, loss=nn.NLLLoss2d), "it raised"),
        (noisy, "training sample 17 holds NaN"),
        (auxiliary, "one tensor in training mode as in evaluation"),
    ],
    ids=["no training", "a loss per sample", "no loss at all", "NaN", "other outputs in training"],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    make: Callable[[], Task], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})  # three seconds
    result = amc.search(make(), out=tmp_path / "run", **QUICK)
    with pytest.raises(ValueError, match=told):
        amc.finetune(result, epochs=1, progress=False)
    assert not (tmp_path / "run" / FINETUNING).exists()


def test_settings_that_do_not_fit_are_refused_before_they_are_written(run: Path) -> None:
    with pytest.raises(ValueError, match="every worker needs a sample"):
        finetune_run(run, {"epochs": 1, "batch": 1, "workers": 2}, NoScreen(), given=GIVEN)
    assert not (run / FINETUNING).exists()


def test_an_earlier_training_stays_where_it_is_if_a_fresh_one_is_refused(run: Path) -> None:
    (run / FINETUNING).mkdir()
    (run / FINETUNING / SETTINGS).write_text("epochs = 7")
    with pytest.raises(ValueError, match="every worker needs a sample"):
        finetune_run(run, {"epochs": 1, "batch": 1, "workers": 2}, NoScreen(), given=GIVEN, fresh=True)
    assert [one.name for one in (run / FINETUNING).iterdir()] == [SETTINGS]


def test_only_a_run_that_has_ended_is_trained_and_only_with_code_that_was_named(run: Path) -> None:
    with pytest.raises(ValueError, match="may not choose code"):
        finetune_run(run, {}, NoScreen(), given={})
    (run / "result.json").unlink()
    with pytest.raises(ValueError, match="only a run that has ended"):
        finetune_run(run, {}, NoScreen(), given=GIVEN)


def test_a_full_disk_ends_training_in_one_line_and_leaves_the_result(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "result.json").read_bytes()
    (run / FINETUNING).write_text("")  # stands where the folder must be made: the system refuses
    with pytest.raises(OSError, match=FINETUNING):
        finetune_run(run, {"epochs": 1}, NoScreen(), given=GIVEN)
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize(("which", "name"), [("found", "found"), ("newest", "fine-tuned")])
def test_the_stored_network_is_exported_without_the_task(trained: Path, tmp_path: Path, which: Any, name: str) -> None:
    console = screen()
    run_export(trained, GIVEN, tmp_path / "small.onnx", console, which=which)
    assert f"the network {name}; onnxruntime and torch agree" in shown(console)
    expected = amc.load(trained, which=which).eval()
    inputs = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    got = bare(ONNX, tmp_path / "small.onnx", inputs, tmp_path, "torch", "tests", "amc")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), expected(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_program_runs_with_torch_alone(trained: Path, tmp_path: Path) -> None:
    read_stored(trained).write(tmp_path / "small.pt2")
    inputs = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    got = bare(PROGRAM, tmp_path / "small.pt2", inputs, tmp_path, "tests", "amc")
    with torch.no_grad():
        expected = amc.load(trained).eval()(inputs)
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)


def test_a_form_that_there_is_not_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"NAME\.onnx, NAME\.pt2 or NAME\.txt"):
        read_stored(trained).write(tmp_path / "small.tflite")


@pytest.mark.parametrize(
    ("name", "which", "said"),
    [
        ("small.pt2", "found", r"made again from its policy is exported as NAME\.onnx"),
        ("small.onnx", "fine-tuned", "is exported as it is stored"),
    ],
)
def test_what_cannot_be_made_again_is_refused(trained: Path, tmp_path: Path, name: str, which: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_export(trained, GIVEN, tmp_path / name, screen(), which=which, again=True)


ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(path)
outputs = session.run(None, {session.get_inputs()[0].name: inputs})[0]
"""
PROGRAM = """
import torch
outputs = torch.export.load(path).module()(torch.from_numpy(inputs)).detach().numpy()
"""
BARE = """
import sys
sys.path[:] = [entry for entry in sys.path if "site-packages" not in entry] + [{packages!r}]
import importlib.abc

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Refusing())
import numpy
path, inputs = {path!r}, numpy.load({inputs!r})
{body}
numpy.save({outputs!r}, outputs)
"""


def bare(body: str, path: Path, inputs: Tensor, folder: Path, *absent: str) -> np.ndarray[Any, Any]:
    """Outputs of a file's network in an interpreter without the project, and without the packages named."""
    np.save(folder / "inputs.npy", inputs.numpy())
    script = BARE.format(
        packages=sysconfig.get_path("purelib"),
        absent=("envs", "agents", "hw_profiles", *absent),
        path=str(path),
        inputs=str(folder / "inputs.npy"),
        body=body,
        outputs=str(folder / "outputs.npy"),
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, cwd=folder)
    return np.load(folder / "outputs.npy")  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bytes(run: Path, searched: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amc.cli", "finetune", str(run), "--task", TASK, "--epochs", "30"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment)
    while not (run / FINETUNING / STATE).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, env=environment, check=True)
    whole = Path(shutil.copytree(searched, tmp_path / "whole"))
    finetune_run(whole, {"epochs": 30}, NoScreen(), given=GIVEN)
    for name in (STATE, WEIGHTS):
        assert (run / FINETUNING / name).read_bytes() == (whole / FINETUNING / name).read_bytes()


class Frozen(nn.Sequential):
    """Statistics stay as they are in training; its `train` returns nothing, as in much code that people have."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # torch's returns the module
        super().train(mode)
        for module in self:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def test_a_network_whose_train_returns_nothing_is_searched_loaded_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})  # three seconds
    small = make_trainable()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = (nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        network = Frozen(*features, nn.Linear(32, 10))
    splits = {role: getattr(small, role) for role in ("calibration", "validation", "test", "training")}
    task = amc.Task(name="frozen", network=network, example_input=small.example_input, **splits)
    settings: dict[str, Any] = {"knapsack": {"widths": 2, "images": 64}, "reward_images": 64, "progress": False}
    result = amc.search(task, {"macs": 0.7}, searcher="knapsack", out=tmp_path / "run", **settings)
    assert isinstance(amc.load(tmp_path / "run"), Frozen)
    trained = amc.finetune(result, epochs=1, progress=False)
    before, after = (dict(one.network.named_buffers())["1.running_mean"] for one in (result, trained))
    assert torch.equal(before, after)
