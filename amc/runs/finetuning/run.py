"""Fine-tuning of a run on disk: begun, gone on with, looked at on test samples once, written down."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from amc.config.own_code import KEYS, confirm_code
from amc.config.search import SearchConfig
from amc.export.applied import FINETUNING, POLICY, WEIGHTS, load_applied, read_policy, write_network
from amc.export.interface import write_interface
from amc.problem.given.objects import NO_OBJECTS, Objects
from amc.problem.setup import Setup, set_up
from amc.reporting.html import write_report
from amc.runs.ending import report_data
from amc.runs.finetuning.settings import FinetuneConfig, finetune_config, read_settings
from amc.runs.finetuning.subject import Finetuned, Subject
from amc.runs.finetuning.trainer import finetune, rehearse
from amc.runs.finetuning.workers import finetune_on_workers
from amc.runs.folder import CONFIG, REPORT, RunFolder
from amc.runs.opening import reopened
from amc.runs.runner import Screen
from amc.scoring.paired import resampled, standard_error
from amc.search.result import FINETUNED
from amc.storage.files import move_aside, write_text
from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.checks import check_training

STATE, SETTINGS = "state.safetensors", "settings.toml"
"""In the folder of the fine-tuned network: where training stands, and what it was begun with."""


def finetune_run(
    path: Path,
    settings: Mapping[str, Any],
    screen: Screen,
    objects: Objects = NO_OBJECTS,
    *,
    given: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> Mapping[str, Any]:
    """Trains the network that a run has found, or goes on where that stopped.

    Args:
        path: The run folder.
        settings: Fields of `FinetuneConfig` that are set; none where training goes on as it was begun.
        screen: Is told how far it is.
        objects: What the run's configuration names in parentheses.
        given: Task and reward as the user names them: the folder's own code runs only if it is among them. None: the
            caller trusts the folder.
        fresh: Move an earlier training aside, and begin again.

    Returns:
        The content of `result.json`, with the fine-tuned network in it.

    Raises:
        ValueError: If the run has not ended, cannot be trained, or was trained with other settings; before long work.
    """
    with reopened(path) as folder:
        config, record = folder.config(), folder.result()
        if record is None:
            raise ValueError(
                f"only a run that has ended can be fine-tuned, but {str(path)!r} has not: `amc resume {path}` first"
            )
        if given is not None:
            confirm_code(config.model_dump(include=set(KEYS)), given, str(path / CONFIG))
        home = path / FINETUNING
        stored = None if fresh else _stored(home, settings)
        setup = set_up(config, screen.step, objects)
        if FINETUNED not in record or stored is None or not (home / WEIGHTS).exists():
            with _standing(path):
                tuned = _Finetuning(folder, setup, record, screen).run(settings, stored, fresh=fresh)
        else:
            tuned = record
        if not (path / REPORT).exists():
            _report(folder, setup, config, tuned)
    return tuned


def _stored(home: Path, settings: Mapping[str, Any]) -> FinetuneConfig | None:
    """What an earlier training was begun with.

    Raises:
        ValueError: If other settings are asked for now.
    """
    if not (home / SETTINGS).exists():
        return None
    stored = read_settings(home / SETTINGS)
    wanted = stored.model_copy(update=finetune_config(settings, 1).model_dump(include=set(settings)))
    for name in settings:
        if getattr(wanted, name) != getattr(stored, name):
            raise ValueError(
                f"training goes on with the settings that it was begun with, but in {str(home)!r} {name} is "
                f"{getattr(stored, name)}, not {getattr(wanted, name)}: leave it out, or begin again with --fresh"
            )
    return stored


@contextmanager
def _standing(path: Path) -> Iterator[None]:
    """Adds to what ends training early how to go on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(f"every epoch that has ended is saved in {path / FINETUNING}: `amc finetune {path}` goes on")
        raise


def _report(folder: RunFolder, setup: Setup, config: SearchConfig, record: Mapping[str, Any]) -> None:
    """Writes the report again, with the fine-tuned network in it."""
    snapshot = folder.snapshot()
    if snapshot is not None:
        write_report(folder.path / REPORT, report_data(setup, config, record, snapshot.episodes))


@dataclass(frozen=True, slots=True)
class _Finetuning:
    """Training of one run.

    Attributes:
        folder: The run.
        setup: What was searched on.
        record: The content of its `result.json`.
        screen: Is told how far it is.
    """

    folder: RunFolder
    setup: Setup
    record: Mapping[str, Any]
    screen: Screen

    def run(
        self, settings: Mapping[str, Any], stored: FinetuneConfig | None, *, fresh: bool = False
    ) -> Mapping[str, Any]:
        """Trains, scores once on test samples, writes; the content of the result.

        With `fresh` an earlier training goes aside, once it is known that this one can begin.
        """
        path, task, home = self.folder.path, self.setup.task, self.folder.path / FINETUNING
        check_training(task)
        samples = len(task.training) if task.training is not None else 0
        config = stored or finetune_config(settings, samples)
        subject = Subject(
            task=task,
            policy=read_policy(path / POLICY),
            network=load_applied(task.network, path),
            score=self._validation,
            channels_last=self.setup.anatomy.graph.channels_last,
            early=None if config.early is None else self._early(config.early),
        )
        rehearse(subject, config, home / STATE)
        if fresh and home.exists():
            move_aside(home)
        home.mkdir(exist_ok=True)
        write_text(home / SETTINGS, config.to_toml())
        self.screen.step("fine-tuning", 0, config.epochs)
        train = finetune if config.workers == 1 else finetune_on_workers
        trained = train(subject, config, home / STATE, self._told)
        write_interface(task, home)
        write_network(trained.policy, trained.network, home)
        return self.folder.add_finetuned(self._entry(trained, config))

    def _early(self, path: Path) -> nn.Module:
        early = copy.deepcopy(self.setup.task.network)
        load_checkpoint(early, path)
        return early

    def _validation(self, network: nn.Module) -> float:
        validation = self.setup.task.validation
        return self.setup.scorer(network, validation, range(len(validation))).signed

    def _told(self, done: int, total: int, line: Mapping[str, Any]) -> None:
        self.screen.step("fine-tuning", done, total)

    def _entry(self, trained: Finetuned, config: FinetuneConfig) -> dict[str, Any]:
        """What the result says of the fine-tuned network: its shapes, and so its costs, are those of found.

        Raises:
            ValueError: If they are not.
        """
        found = safetensors.torch.load_file(self.folder.path / WEIGHTS)
        state = trained.network.state_dict()
        if {name: tensor.shape for name, tensor in found.items()} != {name: one.shape for name, one in state.items()}:
            raise ValueError("training must leave every shape as the policy has it, but did not")
        task, known = self.setup.task, self.record["found"]
        splits = {"validation": task.validation, "test": task.test}
        scores = {name: self.setup.scorer(trained.network, split, range(len(split))) for name, split in splits.items()}
        mean = task.metric.is_mean
        return {
            task.metric.measure.name: {name: score.value for name, score in scores.items()},
            "standard_error": {
                name: standard_error(score, None if mean else resampled(score, name)) for name, score in scores.items()
            },
            "costs": known["costs"],
            "choices": known["choices"],
            "epoch": trained.best,
            "settings": config.model_dump(mode="json", exclude_none=True),
        }
