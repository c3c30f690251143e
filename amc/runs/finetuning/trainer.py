"""The loop: epochs of a schedule, the best one by validation, exact resume."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from agents.searcher import keyed_seed
from amc.runs.finetuning.batches import ALONE, Batches, World
from amc.runs.finetuning.losses import Untrainable, check_outputs, default_loss, total
from amc.runs.finetuning.masks import Masks, hold, impose, masks_of
from amc.runs.finetuning.optimization import averaged, learning_rate, make_optimizer
from amc.runs.finetuning.parameters import choose, merged, thaw
from amc.runs.finetuning.schedule import softly_kept, stages, zero_softly
from amc.runs.finetuning.settings import FinetuneConfig
from amc.runs.finetuning.start import initialized, placed, rewound, sliced
from amc.runs.finetuning.state import State, load_optimizer, optimizer_tensors, read_state
from amc.runs.finetuning.subject import CHECKED, Finetuned, Subject
from amc.scoring.backend import native_bf16
from amc.tasks.plugins import describe
from envs.network.copies import in_mode
from envs.network.inputs import Inputs, call, channels_last, mapped, rows, tensors
from envs.space.policy import Policy, UnitPolicy, tensors_fingerprint, weights_fingerprint

Told = Callable[[int, int, Mapping[str, Any]], None]
"""Called after each epoch with (epochs done, epochs in all, what the epoch came to)."""
Wrap = Callable[[nn.Module], nn.Module]
"""Makes a module that averages gradients over processes."""
SCORINGS = 20
"""Networks of a training that are scored on validation at most: of short epochs not every one is."""


def alone(network: nn.Module) -> nn.Module:
    """The network itself: one process averages nothing."""
    return network


def finetune(subject: Subject, config: FinetuneConfig, path: Path, told: Told | None = None) -> Finetuned:
    """Trains the found network; goes on where a state file says.

    Args:
        subject: What is trained.
        config: How.
        path: The state's file.
        told: Is told after each epoch.

    Raises:
        ValueError: If it cannot be trained, or the file belongs to another training; before any long work.
    """
    return _train(subject, config, path, told, ALONE, alone).finished()


def rehearse(subject: Subject, config: FinetuneConfig, path: Path) -> None:
    """Refuses what cannot be trained, by a step on copies: nothing is written, and torch draws afterwards as before.

    Args:
        subject: What will be trained.
        config: How.
        path: Where the state's file will be.

    Raises:
        ValueError: If it cannot be trained.
    """
    subject.check(config)
    with torch.random.fork_rng(devices=_devices(config)):  # dropout
        _Training(subject, config, path, World(0, config.workers), alone).rehearse()


def _devices(config: FinetuneConfig) -> list[int]:
    """Beside the CPU, where random numbers are drawn."""
    return [torch.cuda.current_device()] if config.device == "cuda" else []


def train_together(
    subject: Subject, config: FinetuneConfig, path: Path, told: Told | None, world: World, wrap: Wrap
) -> None:
    """`finetune` in one of several processes; the best network stands in the state's file.

    Args:
        subject: What is trained.
        config: How.
        path: The state's file; the first process writes it, the others read it.
        told: Is told after each epoch, in the first process.
        world: Who trains together.
        wrap: Makes a module that averages gradients over them.
    """
    _train(subject, config, path, told, world, wrap)


def _train(
    subject: Subject, config: FinetuneConfig, path: Path, told: Told | None, world: World, wrap: Wrap
) -> _Training:
    subject.check(config)
    torch.set_num_threads(config.threads)
    training = _Training(subject, config, path, world, wrap)
    training.resume()
    while training.epoch < config.epochs:
        training.one_epoch()
        if told is not None and world.rank == 0:
            told(training.epoch, config.epochs, training.lines[-1])
    return training


@dataclass
class _Position:
    """The network of the present stage, a plain one of its shapes, and what trains it."""

    stage: int
    plain: nn.Module
    network: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    masks: Masks


@dataclass
class _Training:
    """Training under way: the mutable part of `finetune`."""

    subject: Subject
    config: FinetuneConfig
    path: Path
    world: World
    wrap: Wrap
    epoch: int = 0
    lines: tuple[dict[str, Any], ...] = ()
    best: int = 0
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        task, config = self.subject.task, self.config
        self.dense = self._placed(in_mode(copy.deepcopy(task.network)))
        self.batches = Batches.of(config, self.subject.training, task.augment, self.world)
        self.policy = self.subject.policy
        self._turned = task.network if config.schedule == "one-shot" else self.policy.turned(task.network)
        self.stages = stages(config, self.policy, self._turned)
        self.loss = task.loss or default_loss
        self.fingerprint = self._fingerprint()
        self.at = self._begin()

    def resume(self) -> None:
        """Goes on from the state's file, where there is one."""
        state = read_state(self.path)
        if state is None:
            return
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"training goes on with its own settings and data, but {str(self.path)!r} was written by another one: "
                "put them back, or begin again with --fresh"
            )
        self.epoch, self.lines, self.best = state.epoch, state.lines, state.best
        self._choose_channels(state.kept)
        self.best_tensors = dict(state.tensors.get("best", {}))
        if self.epoch == self.config.epochs:
            return
        stage = self._stage_of(self.epoch - 1)
        while self.at.stage < stage:
            self.at = self._next(self.at)
        self.at.network.load_state_dict(state.tensors["network"])
        if self.at.average is not None:
            self.at.average.load_state_dict(state.tensors["average"])
        load_optimizer(self.at.optimizer, state.tensors)

    def rehearse(self) -> None:
        """A step on a few samples of the first batch, as training takes it; its network is good for nothing else then.

        Raises:
            ValueError: If it does not run.
        """
        inputs, targets = next(self.batches.epoch(0))
        few = min(CHECKED, len(targets))
        self.at.network.train()
        try:
            self._step(0, rows(inputs, 0, few), targets[:few])
        except Untrainable:
            raise
        except Exception as error:  # whatever the user's network raises, and what torch does on the way back
            raise ValueError(
                f"the network of task {self.subject.task.name!r} must run forward and backward in training mode, but a "
                f"step on {few} training samples raised {describe(error)}: let its forward compute what it does in "
                "evaluation, correct the loss, or choose other settings (a larger batch, precision fp32)"
            ) from error

    def one_epoch(self) -> None:
        """One pass over the samples, scored and written down."""
        if self._stage_of(self.epoch) != self.at.stage:
            self.at = self._next(self.at)
        began = time.perf_counter()
        loss = self._pass()
        self.epoch += 1
        self._written_down(loss, time.perf_counter() - began)

    def finished(self) -> Finetuned:
        """The best epoch's network."""
        network = self.policy.apply(self.subject.task.network, check_weights=False)
        network.load_state_dict(self.best_tensors)
        return Finetuned(network=in_mode(network), policy=self.policy, lines=self.lines, best=self.best)

    def _choose_channels(self, kept: Mapping[str, tuple[int, ...]]) -> None:
        """Takes other channels of the same number for the last stage, as the soft schedule found them."""
        if kept:
            units = tuple(UnitPolicy(unit=one.unit, indices=kept[one.unit.name]) for one in self.policy.units)
            self.policy = replace(self.policy, units=units)
            self.stages = (*self.stages[:-1], replace(self.stages[-1], kept=kept))

    def _stage_of(self, epoch: int) -> int:
        """The stage that an epoch (from 0) belongs to."""
        ends, total_epochs = [], 0
        for stage in self.stages:
            total_epochs += stage.epochs
            ends.append(total_epochs)
        return next(number for number, end in enumerate(ends) if epoch < end)

    def _begin(self) -> _Position:
        """The first stage's network."""
        subject, config = self.subject, self.config
        if config.schedule != "one-shot":
            return self._position(0, sliced(self._turned, self._turned, subject.policy, {}, self.stages[0].kept))
        if config.init == "scratch":
            return self._position(0, initialized(subject.network, config.seed))
        if subject.early is not None:
            return self._position(0, rewound(subject.policy, subject.early))
        return self._position(0, copy.deepcopy(subject.network))

    def _next(self, at: _Position) -> _Position:
        """The next stage's network, from the present one; moments begin anew, as their shapes change."""
        at.plain.load_state_dict(merged(at.network))
        if self.stages[at.stage].soft:
            self._choose_channels(softly_kept(at.plain, self.policy))
        before, after = (self.stages[number].kept for number in (at.stage, at.stage + 1))
        small = sliced(at.plain, self.subject.task.network, self.subject.policy, before, after)
        return self._position(at.stage + 1, small)

    def _position(self, number: int, network: nn.Module) -> _Position:
        config, stage = self.config, self.stages[number]
        impose(network, stage.patterns)
        masks, plain = masks_of(network, stage.patterns), copy.deepcopy(network)
        network = self._placed(network)
        masks = {name: mask.to(config.device) for name, mask in masks.items()}
        generator = torch.Generator().manual_seed(keyed_seed(config.seed, "finetune updates", number))
        if not any(parameter.requires_grad for parameter in self.dense.parameters()):
            thaw(network)  # frozen for inference
        parameters = choose(network, config, generator)
        return _Position(
            stage=number,
            plain=plain,
            network=network,
            wrapped=self.wrap(network),
            optimizer=make_optimizer(config, parameters),
            average=averaged(network, config.average),
            masks={} if config.parameters == "lora" else masks,  # low-rank updates are masked themselves
        )

    def _pass(self) -> float:
        """Trains one epoch; the mean loss."""
        config = self.config
        self.at.network.train()
        with torch.random.fork_rng(devices=_devices(config)):
            world = self.batches.world
            torch.manual_seed(keyed_seed(config.seed, "finetune dropout", self.epoch * world.size + world.rank))
            losses = [self._step(step, *batch) for step, batch in enumerate(self.batches.epoch(self.epoch))]
        if self.stages[self.at.stage].soft:
            zero_softly(self.at.network, self.policy)
        value = float(torch.stack(losses).mean())
        if value != value:
            raise ValueError(
                f"the loss must be a number, but in epoch {self.epoch + 1} it is {value}: lower the learning rate "
                f"({config.learning_rate}), or correct the task's loss"
            )
        return value

    def _step(self, step: int, inputs: Inputs, targets: Tensor) -> Tensor:
        """One step of the present epoch; its loss."""
        config, at = self.config, self.at
        for group in at.optimizer.param_groups:
            group["lr"] = self._rate(step)
        inputs, targets = self._inputs(inputs), targets.to(config.device)
        with self._arithmetic():
            outputs = call(at.wrapped, inputs)
            teacher = self._teacher(inputs)
        check_outputs(outputs)
        loss = total(config, self.loss, outputs.float(), targets, teacher)
        at.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        at.optimizer.step()
        hold(at.network, at.masks)
        if at.average is not None:
            at.average.update_parameters(at.network)
        return loss.detach()

    def _placed(self, network: nn.Module) -> nn.Module:
        return placed(network, self.config.device, channels_last=self.subject.channels_last)

    def _inputs(self, inputs: Inputs) -> Inputs:
        """A batch where the network is, in its layout: a `view` in its code can need contiguous images."""
        inputs = mapped(lambda tensor: tensor.to(self.config.device), inputs)
        return channels_last(inputs) if self.subject.channels_last else mapped(Tensor.contiguous, inputs)

    def _rate(self, step: int) -> float:
        """The learning rate of a step: a cosine over all epochs, or one for each stage of several epochs."""
        steps = self.batches.steps
        if self.config.schedule == "gradual":  # its stages are single epochs
            return learning_rate(self.config, self.epoch * steps + step, self.config.epochs * steps)
        before = sum(stage.epochs for stage in self.stages[: self.at.stage])
        return learning_rate(
            self.config, (self.epoch - before) * steps + step, self.stages[self.at.stage].epochs * steps
        )

    def _arithmetic(self) -> Any:
        auto = self.config.precision == "auto" and native_bf16(self.config.device)
        narrow = auto or self.config.precision == "bf16"
        return torch.autocast(self.config.device, dtype=torch.bfloat16) if narrow else nullcontext()

    def _teacher(self, inputs: Inputs) -> Tensor | None:
        if self.config.distillation == 0:
            return None
        with torch.no_grad():
            outputs: Tensor = call(self.dense, inputs)
        return outputs.float()

    def _candidate(self) -> nn.Module:
        """The network that this epoch would give, plain."""
        network = in_mode(copy.deepcopy(self.at.plain))
        network.load_state_dict(merged(self.at.network if self.at.average is None else self.at.average.module))
        return network

    def _written_down(self, loss: float, seconds: float) -> None:
        """Scores the epoch's network, keeps it if it is the best so far, and writes the state."""
        if self.world.rank != 0:
            return
        line: dict[str, Any] = {"epoch": self.epoch, "loss": loss}
        due = self.epoch % math.ceil(self.config.epochs / SCORINGS) == 0 or self.epoch == self.config.epochs
        if self.stages[self.at.stage].last and due:
            network = self._candidate()
            line["score"] = self.subject.score(network)
            earlier = [one["score"] for one in self.lines if "score" in one]
            if not earlier or line["score"] > max(earlier):
                self.best, self.best_tensors = self.epoch, dict(network.state_dict())
        self.lines = (*self.lines, line)
        self._state().write(self.path)

    def _state(self) -> State:
        at = self.at
        return State(
            epoch=self.epoch,
            tensors={
                "network": at.network.state_dict(),
                "average": {} if at.average is None else at.average.state_dict(),
                "best": self.best_tensors,
                **optimizer_tensors(at.optimizer),
            },
            lines=self.lines,
            best=self.best,
            kept=self.policy.kept() if self.policy is not self.subject.policy else {},
            fingerprint=self.fingerprint,
        )

    def _fingerprint(self) -> str:
        """SHA-256 over settings, weights, policy and the first samples: what a resumed training must share."""
        task, policy = self.subject.task, self.subject.policy
        training = self.subject.training
        inputs, targets = training.batch(range(min(4, len(training))))
        parts = [
            self.config.model_dump_json(),
            weights_fingerprint(task.network),
            weights_fingerprint(self.subject.network),
            "" if self.subject.early is None else weights_fingerprint(self.subject.early),
            json.dumps(policy.to_json()["units"]),
            json.dumps(policy.to_json()["layers"]),
            str(len(training)),
            tensors_fingerprint([*tensors(inputs), targets]),
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()
