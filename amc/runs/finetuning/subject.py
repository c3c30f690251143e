"""What is trained, checked before any work; and what training came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.searcher import keyed_seed
from amc.runs.finetuning.losses import default_loss
from amc.runs.finetuning.settings import FinetuneConfig
from amc.scoring.scorer import read
from amc.tasks.plugins import describe
from amc.tasks.splits import Split
from amc.tasks.task import Task
from envs.network.inputs import call
from envs.space.policy import Policy

Score = Callable[[nn.Module], float]
"""A network's score on the validation split, higher is better."""
CHECKED = 8
"""Training samples that the loss is tried on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is trained.

    Attributes:
        task: With a training split; its network is the dense one, the teacher.
        policy: What was found.
        network: The network found, repaired.
        score: Of a network on validation.
        channels_last: Whether the dense network runs on channels-last images, as its graph says.
        early: The dense network with the weights of an early checkpoint, for init rewind.
    """

    task: Task
    policy: Policy
    network: nn.Module
    score: Score
    channels_last: bool
    early: nn.Module | None = None

    @property
    def training(self) -> Split:
        """The samples that are trained on.

        Raises:
            ValueError: If the task has none.
        """
        if self.task.training is None:
            raise ValueError(
                f"fine-tuning needs training samples, but task {self.task.name!r} has none: give it training=(x, y)"
            )
        return self.task.training

    def check(self, config: FinetuneConfig) -> None:
        """Refuses what cannot be trained, before work starts.

        Raises:
            ValueError: Without training samples, without a CUDA device or an early checkpoint that the configuration
                needs, or if the loss does not fit.
        """
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs a CUDA device, but torch sees none here: use --device cpu")
        self._check_loss(config.seed)
        if (config.init == "rewind") != (self.early is not None):
            raise ValueError(
                f"an early checkpoint belongs to init rewind and to it alone, but init is {config.init!r} and "
                f"{'one' if self.early is not None else 'none'} was given: add --early FILE or choose another init"
            )

    def _check_loss(self, seed: int) -> None:
        """Refuses a loss, or an augmentation, that fails on a few training samples."""
        inputs, targets = read(self.training, range(min(CHECKED, len(self.training))))
        if self.task.augment is not None:
            inputs = self.task.augment(inputs, torch.Generator().manual_seed(keyed_seed(seed, "finetune check", 0)))
        with torch.no_grad():
            outputs = call(self.task.network, inputs)
        try:
            value = (self.task.loss or default_loss)(outputs.clone().requires_grad_(), targets)
        except Exception as error:  # whatever a user's function raises
            raise ValueError(
                f"training needs a loss of outputs {list(outputs.shape)} and targets {list(targets.shape)}, but it "
                f"raised {describe(error)}: give the task loss=function(outputs, targets)"
            ) from error
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad or not bool(value.isfinite()):
            raise ValueError(
                f"a loss must be one finite number that outputs can be trained by, but the task's is {_said(value)} on "
                f"{len(targets)} training samples: correct loss=function(outputs, targets)"
            )


def _said(value: object) -> str:
    """A loss in words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.ndim:
        return f"of shape {list(value.shape)}"
    return str(float(value)) if value.requires_grad else f"{float(value)} without a gradient"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finetuned:
    """What training came to.

    Attributes:
        network: The best epoch's network, plain, on the CPU.
        policy: Its channels; another one than before only after the soft schedule.
        lines: What every epoch came to.
        best: The epoch that was chosen, from 1.
    """

    network: nn.Module
    policy: Policy
    lines: tuple[dict[str, Any], ...]
    best: int
