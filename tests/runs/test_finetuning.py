"""Training what was found: schedules reach the policy, zeros stay, a stopped training goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.runs.finetuning.settings import FinetuneConfig
from amc.runs.finetuning.subject import Finetuned, Subject
from amc.runs.finetuning.trainer import finetune, rehearse
from amc.runs.finetuning.workers import finetune_on_workers
from amc.tasks.models.digits import DigitsNet
from amc.tasks.splits import ArraySplit, subset
from amc.tasks.task import Task, load_task
from envs.space.patterns import verify_network
from envs.space.policy import LayerPolicy, Policy, UnitPolicy, structure_fingerprint, weights_fingerprint
from envs.units.anatomy import dissect

SPARSE = {"stage2.0.conv2": "unstructured:0.5", "stage3.1.conv2": "2:4"}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Random networks have the same weights in every run: of a few hidden units all can be dead by chance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


@pytest.fixture(scope="module")
def policy(task: Task) -> Policy:
    """Three of four channels of every unit."""
    anatomy = dissect(task.network, task.example_input, None)
    return Policy(
        structure=structure_fingerprint(task.network),
        weights=weights_fingerprint(task.network),
        units=tuple(
            UnitPolicy(unit=unit, indices=tuple(k for k in range(unit.channels) if k % 4)) for unit in anatomy.units
        ),
    )


@pytest.fixture
def subject(task: Task, policy: Policy) -> Subject:
    return subject_of(task, policy)


def subject_of(task: Task, policy: Policy) -> Subject:
    inputs, targets = task.validation.batch(range(200))

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(inputs).argmax(1) == targets).float().mean())

    return Subject(task=task, policy=policy, network=policy.apply(task.network), score=score, channels_last=True)


def settings(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"epochs": 3, "learning_rate": 0.02, "average": 0.9, **changes})


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_makes_the_found_network_better(subject: Subject, tmp_path: Path) -> None:
    trained = finetune(subject, settings(), tmp_path / "state")
    assert subject.score(trained.network) == max(line["score"] for line in trained.lines)
    assert subject.score(trained.network) > subject.score(subject.network) + 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "iterative", "steps": 2},
        {"schedule": "gradual"},
        {"schedule": "soft"},
        {"init": "scratch"},
        pytest.param({"parameters": "norms"}, marks=pytest.mark.slow),
        pytest.param({"parameters": "lora"}, marks=pytest.mark.slow),
        {"schedule": "iterative", "steps": 2, "parameters": "lora"},
        {"optimizer": "adamw", "distillation": 0.0, "average": 0.0},
    ],
    ids=str,
)
def test_a_stopped_training_goes_on_to_the_same_bytes(
    subject: Subject, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = settings(batch=64, **changes)
    subject = replace(subject, task=three_batches(subject.task))
    whole = finetune(subject, config, tmp_path / "whole")
    for stop in range(1, config.epochs):
        with pytest.raises(Stopped):
            finetune(subject, config, tmp_path / "cut", stopping(stop))
    resumed = finetune(subject, config, tmp_path / "cut")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "cut").read_bytes()
    assert same(whole.network, resumed.network)
    assert {name: len(kept) for name, kept in whole.policy.kept().items()} == subject.policy.widths()
    assert not any("parametrizations" in name for name in whole.network.state_dict())


def remade(task: Task, **training: Any) -> Task:
    """The same task with other training samples, or none."""
    return Task(
        network=task.network,
        example_input=task.example_input,
        calibration=task.calibration,
        validation=task.validation,
        test=task.test,
        **training,
    )


def three_batches(task: Task) -> Task:
    return remade(task, training=subset(task.calibration, range(192)), augment=task.augment)


class Stopped(Exception):
    pass


def stopping(after: int) -> Callable[..., None]:
    def told(done: int, total: int, line: object) -> None:
        if done == after:
            raise Stopped

    return told


@pytest.mark.parametrize("parameters", ["all", "lora"])
def test_zeros_of_patterns_stay(task: Task, policy: Policy, parameters: str, tmp_path: Path) -> None:
    layers = tuple(LayerPolicy(name=name, pattern=pattern) for name, pattern in SPARSE.items())
    whole_groups = tuple(replace(one, indices=tuple(range(one.unit.channels))) for one in policy.units)
    sparse = replace(policy, units=whole_groups, layers=layers)
    subject = subject_of(task, sparse)
    before = {name: subject.network.get_submodule(name).get_parameter("weight").clone() for name in SPARSE}
    trained = finetune(subject, settings(parameters=parameters, epochs=1), tmp_path / "state").network
    verify_network(trained, sparse.patterns())
    for name, weight in before.items():
        after = trained.get_submodule(name).get_parameter("weight")
        assert not torch.equal(after, weight)
        assert bool((after[weight == 0] == 0).all())


def test_only_what_was_asked_for_is_trained(subject: Subject, tmp_path: Path) -> None:
    trained = finetune(subject, settings(parameters="norms", epochs=1), tmp_path / "state").network
    changed = {
        name
        for (name, before), after in zip(subject.network.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert changed
    assert all("bn" in name or name.endswith("bias") or "stem.1" in name or "shortcut.1" in name for name in changed)


def test_rewinding_begins_with_the_early_weights(task: Task, policy: Policy, tmp_path: Path) -> None:
    early = DigitsNet()
    subject = replace(subject_of(task, policy), early=early)
    config = settings(init="rewind", epochs=1, learning_rate=1e-9, average=0.0)
    trained = finetune(subject, config, tmp_path / "state").network
    expected = policy.apply(early, check_weights=False)
    torch.testing.assert_close(trained.get_parameter("classifier.weight"), expected.get_parameter("classifier.weight"))


def test_targets_that_are_numbers_are_fitted(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(256, 6, generator=generator)
    y = torch.stack([x.sum(1), x[:, 0] * x[:, 1]], dim=1)
    split = ArraySplit(x.numpy(), y.numpy())
    task = Task(
        network=network,
        example_input=x[:1],
        calibration=split,
        validation=split,
        test=split,
        training=split,
        metric=lambda outputs, targets: 1 / (1 + (outputs - targets).square().mean(1)),
    )
    units = dissect(network, x[:1], None).units
    policy = Policy(
        structure=structure_fingerprint(network),
        weights=weights_fingerprint(network),
        units=tuple(UnitPolicy(unit=unit, indices=tuple(range(unit.channels // 2))) for unit in units),
    )

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            return -float((network(x) - y).square().mean())

    subject = Subject(task=task, policy=policy, network=policy.apply(network), score=error, channels_last=True)
    trained = finetune(subject, settings(distillation=0.0, epochs=8, batch=32), tmp_path / "state")
    assert error(trained.network) > 0.5 * error(subject.network)


class Viewing(nn.Module):
    """Flattens by `view`, which channels-last maps forbid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.out = nn.Conv2d(2, 8, 3), nn.Linear(128, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x).relu()
        return self.out(self.wide(maps.view(len(x), -1)).relu())  # type: ignore[no-any-return]


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4))


def random_subject(network: nn.Module, *shape: int) -> Subject:
    """A network of four classes, pruned to half, on 32 random samples of a shape."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, *shape, generator=generator), torch.randint(4, (32,), generator=generator)
    split = ArraySplit(x.numpy(), y.numpy())
    task = Task(network=network, example_input=x[:1], calibration=split, validation=split, test=split, training=split)
    anatomy = dissect(network, x[:1], None)
    policy = Policy(
        structure=structure_fingerprint(network),
        weights=weights_fingerprint(network),
        units=tuple(UnitPolicy(unit=unit, indices=tuple(range(unit.channels // 2))) for unit in anatomy.units),
    )
    return Subject(
        task=task,
        policy=policy,
        network=policy.apply(network),
        score=lambda network: 0.0,
        channels_last=anatomy.graph.channels_last,
    )


@pytest.mark.parametrize(
    ("make", "shape"), [(Viewing, (2, 6, 6)), (volumes, (2, 4, 5, 5))], ids=["a view of maps", "volumes"]
)
def test_networks_that_do_not_run_channels_last_are_trained(
    make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    subject = random_subject(make(), *shape)
    assert not same(subject.network, finetune(subject, settings(epochs=1), tmp_path / "state").network)


def restless() -> nn.Sequential:
    """Drops out in training, and computes a weight from other parameters."""
    body = (nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU())
    return nn.Sequential(*body, nn.Dropout(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))


@pytest.mark.parametrize("parameters", ["all", "lora"])
def test_dropout_is_drawn_by_the_seed_and_computed_weights_stay_computed(parameters: str, tmp_path: Path) -> None:
    subject = random_subject(restless().eval(), 2, 6, 6)
    config = settings(epochs=2, batch=8, parameters=parameters)
    drawn = torch.get_rng_state()
    whole = finetune(subject, config, tmp_path / "whole")
    assert torch.get_rng_state().equal(drawn)
    torch.rand(3)
    with pytest.raises(Stopped):
        finetune(subject, config, tmp_path / "cut", stopping(1))
    assert same(whole.network, finetune(subject, config, tmp_path / "cut").network)
    assert whole.network.state_dict().keys() == subject.network.state_dict().keys()


def normalized() -> nn.Sequential:
    body = (nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def changed(subject: Subject, trained: nn.Module) -> set[str]:
    """The parameters that training has changed."""
    return {
        name for name, old in subject.network.named_parameters() if not torch.equal(old, trained.get_parameter(name))
    }


@pytest.mark.parametrize("parameters", ["all", "norms", "lora"])
def test_what_is_frozen_stays_as_it_is(parameters: str, tmp_path: Path) -> None:
    network = normalized()
    network[:2].requires_grad_(False)
    subject = random_subject(network, 2, 6, 6)
    trained = finetune(subject, settings(epochs=1, parameters=parameters), tmp_path / "state").network
    assert changed(subject, trained) == {"5.bias", "7.bias"} | (
        set() if parameters == "norms" else {"5.weight", "7.weight"}
    )


@pytest.mark.parametrize("parameters", ["all", "lora"])
def test_a_network_that_is_frozen_as_a_whole_is_trained_and_returned_frozen(parameters: str, tmp_path: Path) -> None:
    subject = random_subject(normalized().requires_grad_(False), 2, 6, 6)
    trained = finetune(subject, settings(epochs=1, parameters=parameters), tmp_path / "state").network
    assert changed(subject, trained) == {name for name, _ in trained.named_parameters()}
    assert not any(one.requires_grad for one in trained.parameters())


def test_training_without_anything_to_train_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    with pytest.raises(ValueError, match="parameters='norms' this network has none"):
        finetune(random_subject(network, 6), settings(parameters="norms"), tmp_path / "state")


class Odd(nn.Module):
    """Does in training mode what training does not stand."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.body, self.out = way, nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.way != "no gradient"):
            features = self.body(x)
            outputs = self.out(features)
        if self.training and self.way == "overwritten":
            features.zero_()
        return (outputs, features) if self.training and self.way == "auxiliary" else outputs


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (lambda: Odd("auxiliary"), {}, r"in training mode it returns a tuple of 2: .* heads switched off"),
        (lambda: Odd("no gradient"), {}, "carry none: take no_grad, inference_mode and detach out of its forward"),
        (lambda: Odd("overwritten"), {}, "a step on 8 training samples raised RuntimeError: .* inplace"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), {"batch": 1}, "a larger batch"),
        (lambda: Odd("not at all"), {"batch": 1, "workers": 2}, "every worker needs a sample"),
        (lambda: Odd("not at all"), {"device": "cuda"}, "needs a CUDA device"),
    ],
    ids=["auxiliary", "no gradient", "overwritten", "batch", "workers", "device"],
)
def test_what_does_not_train_is_found_by_one_step(
    make: Callable[[], nn.Module],
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=message) as refused:
        rehearse(random_subject(make(), 6), settings(**changes), tmp_path / "state")
    assert "\n" not in str(refused.value)


def test_a_rehearsal_changes_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    subject = random_subject(network, 6)
    before = [weights_fingerprint(one) for one in (network, subject.network)]
    drawn = torch.random.get_rng_state()
    rehearse(subject, settings(), tmp_path / "state")
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert [weights_fingerprint(one) for one in (network, subject.network)] == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, task=remade(s.task)), "needs training samples"),
        (lambda s: replace(s, early=DigitsNet()), "belongs to init rewind"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work_starts(
    subject: Subject, change: Callable[[Subject], Subject], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(change(subject), settings(), tmp_path / "state")


def test_a_state_of_other_settings_is_refused(subject: Subject, tmp_path: Path) -> None:
    finetune(subject, settings(epochs=1), tmp_path / "state")
    with pytest.raises(ValueError, match="its own settings"):
        finetune(subject, settings(epochs=1, seed=1), tmp_path / "state")
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-20])
    with pytest.raises(ValueError, match="undamaged state"):
        finetune(subject, settings(epochs=1), tmp_path / "state")


def test_a_loss_that_is_no_number_ends_training_with_a_cure(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lower the learning rate"):
        finetune(subject, settings(learning_rate=1e12, average=0.0), tmp_path / "state")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # its own options, read by Ray Train
def test_two_workers_of_ray_train_share_the_batches(subject: Subject, tmp_path: Path) -> None:
    config = settings(workers=2, epochs=4)  # the mean of weights lags behind for two of them, on one process too
    trained: Finetuned = finetune_on_workers(subject, config, tmp_path / "state")
    assert len(trained.lines) == 4
    assert subject.score(trained.network) > subject.score(subject.network)
