"""The configuration of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from amc.config.keys import explain
from amc.config.parts import Part
from hw_profiles.documents import MAX_TOML_BYTES, parse_toml, read_text

Init = Literal["inherited", "scratch", "rewind"]
Parameters = Literal["all", "norms", "lora"]
Schedule = Literal["one-shot", "iterative", "gradual", "soft"]


class FinetuneConfig(Part):
    """How the found network is trained."""

    epochs: int = Field(
        10, ge=1, description="passes over the training split; by default more than 10 where they make few steps"
    )
    init: Init = Field(
        "inherited",
        description="weights to begin with: the found network's, random ones, or those of an early checkpoint",
    )
    early: Path | None = Field(None, description="checkpoint of the dense network to rewind to")
    parameters: Parameters = Field(
        "all", description="what is trained: everything, normalization and biases, or low-rank updates beside them"
    )
    rank: int = Field(4, ge=1, description="rank of the low-rank updates")
    schedule: Schedule = Field(
        "one-shot",
        description="how the channels go: at once, in steps, on a cubic curve, or softly (they may come back)",
    )
    steps: int = Field(3, ge=2, description="steps of the iterative schedule")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimizer")
    learning_rate: float = Field(0.01, gt=0, description="highest learning rate; it falls to 0 on a cosine")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises to it")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD (Nesterov)")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    batch: int = Field(128, ge=1, description="samples per step, over all workers together")
    distillation: float = Field(0.5, ge=0, le=1, description="share of the loss that compares with the dense network")
    temperature: float = Field(4.0, gt=0, description="temperature of distillation between class scores")
    average: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights per step, 0: no average")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of forward and backward; auto: bf16 where the device has instructions for it"
    )
    seed: int = Field(0, ge=0, description="seed of order, augmentation and random weights")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it trains")
    threads: int = Field(1, ge=1, description="threads of torch; another number rounds differently")
    workers: int = Field(1, ge=1, description="processes; more than one train on Ray Train")

    @model_validator(mode="after")
    def _fits_together(self) -> FinetuneConfig:
        if self.schedule == "soft" and self.parameters == "lora":
            raise ValueError("the soft schedule zeroes weights, which low-rank updates cannot: train all parameters")
        if self.schedule != "one-shot" and self.init != "inherited":
            raise ValueError(
                f"schedule {self.schedule!r} prunes the trained network step by step, but init is {self.init!r}: "
                "use init inherited, or schedule one-shot"
            )
        if self.epochs < self.stages_needed:
            raise ValueError(
                f"schedule {self.schedule!r} takes {self.stages_needed} epochs or more, but got {self.epochs}"
            )
        return self

    def to_toml(self) -> str:
        """All settings as TOML; reading them back gives equal ones."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @property
    def stages_needed(self) -> int:
        """Epochs that the schedule takes at least."""
        return {"iterative": self.steps, "gradual": 2, "soft": 2}.get(self.schedule, 1)


ENOUGH_STEPS, MOST_EPOCHS = 100, 100
"""Steps that training takes at least where epochs are left open, and the epochs that these may become at most."""


def finetune_config(given: Mapping[str, Any], samples: int) -> FinetuneConfig:
    """The complete settings.

    Args:
        given: Those that were set.
        samples: In the training split; the fewer, the more epochs, where their number is left open.

    Raises:
        ValueError: If one is not allowed; one line.
    """
    config = _checked(given)
    if "epochs" in given:
        return config
    steps = max(1, samples // config.batch)
    epochs = min(MOST_EPOCHS, max(config.epochs, -(-ENOUGH_STEPS // steps)))
    return config.model_copy(update={"epochs": epochs})


def read_settings(path: Path) -> FinetuneConfig:
    """Reads the settings that a training was begun with.

    Raises:
        ValueError: If the file is damaged.
    """
    text = read_text(path, "settings of fine-tuning", "TOML file", MAX_TOML_BYTES)
    return _checked(parse_toml(text, str(path), "settings of fine-tuning"))


def _checked(values: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return FinetuneConfig(**values)
    except ValidationError as error:
        raise ValueError(explain(error, FinetuneConfig)) from error
