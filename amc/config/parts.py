"""The parts of a configuration: what each part of a search may be told."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from envs.compression.damage import DAMAGES
from envs.compression.preparation import CompressionSettings, Repair
from envs.compression.sparsify import SELECTIONS
from envs.importance.scores import IMPORTANCES
from envs.space.rules import Rules


class Part(BaseModel):
    """A frozen part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RulesConfig(Part):
    """What may be chosen at all."""

    round_to: int | None = Field(
        None,
        ge=1,
        description="kept channels are a multiple of this, or all; left out: of 8 in units of 96 channels "
        "and more, unless a profile tells what widths cost",
    )
    min_ratio: float = Field(0.0, ge=0, le=1, description="smallest preserve ratio")
    max_ratio: float = Field(1.0, gt=0, le=1, description="largest preserve ratio")
    skip: tuple[str, ...] = Field((), description="layer name patterns that stay dense")

    def rules(self, *, profiled: bool = False) -> Rules:
        """The rules of the environment; with a profile every width stands for itself, unless rounding is asked for."""
        rules = Rules(**self.model_dump())
        return replace(rules, round_to=1) if profiled and rules.round_to is None else rules


class CompressionConfig(Part):
    """How channels are chosen and weights repaired."""

    importance: str = Field("obs", description=f"channel score: {', '.join(IMPORTANCES)}")
    repair: Repair = Field("sequential", description="closed-form refit of what stays")
    images: int = Field(2000, ge=16, description="calibration images")
    positions: int | None = Field(
        None, ge=1, description="output positions sampled per image; left out: as many as make 32,000 rows and fit"
    )
    quick_images: int = Field(500, ge=16, description="calibration images of sequential repair during the search")
    quick_positions: int | None = Field(
        None, ge=1, description="output positions per image during the search; left out: as many as make 4,000 rows"
    )
    ridge: float | None = Field(
        None, gt=0, description="penalty relative to the Gram matrix's mean diagonal; left out: chosen for each fit"
    )
    producers: bool = Field(True, description="sequential repair refits every layer whose input drifted")
    selection: str = Field("magnitude", description=f"which weights go under a pattern: {', '.join(SELECTIONS)}")
    reestimate_images: int = Field(0, ge=0, description="images to re-estimate batch norm on, 0: keep statistics")
    memory_gb: float = Field(1.0, gt=0, description="bound on activations and rows held by repair, GB")

    @field_validator("importance", "selection")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        known = IMPORTANCES if info.field_name == "importance" else SELECTIONS
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}, but got {value!r}")
        return value

    def settings(self, seed: int) -> CompressionSettings:
        """The settings of the compressor."""
        return CompressionSettings(**self.model_dump(), seed=seed)


class KnapsackConfig(Part):
    """How damage per width is measured."""

    damages: tuple[str, ...] = Field(
        ("logits", "kl", "kl1"), min_length=1, description=f"what is measured: {', '.join(DAMAGES)}"
    )
    images: int = Field(512, ge=16, description="calibration images per variant")
    widths: int = Field(10, ge=2, description="widths measured per unit, others are interpolated")
    audition_images: int = Field(2000, ge=16, description="unseen calibration images that judge the solutions")

    @field_validator("damages")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in DAMAGES:
                raise ValueError(f"must be among {', '.join(DAMAGES)}, but got {name!r}")
        return value


class BackendConfig(Part):
    """The arithmetic that scores policies during a search; a run writes down what `auto` chose, and why."""

    name: Literal["auto", "bf16", "fp32", "eager"] = Field("auto", description="fp32 and bf16 fold normalization")
    difference: float | None = Field(None, ge=0, description="written by the run: largest difference of accuracy")
    half_repair: bool | None = Field(
        None, description="quick repair in bfloat16; written by the run where it is as good"
    )


class SavingsConfig(Part):
    """Fewer evaluations and images for the same decision; nothing is saved unless asked for."""

    images: int | None = Field(
        None, ge=100, description="reward images for every policy; the others only for those that may be among the best"
    )
    error: float = Field(0.01, gt=0, lt=0.5, description="probability of giving up a policy as good as the last best")
    patience: int | None = Field(None, ge=1, description="end after so many rounds in a row without a better policy")


class WorkersConfig(Part):
    """Who plays the episodes; no part of what determines a search."""

    workers: int = Field(0, ge=0, description="Ray workers, 0: this process (or, with an address, one per CPU)")
    address: str | None = Field(None, description="Ray cluster, None: Ray on this machine")
    gpus: float = Field(0.0, ge=0, description="GPUs per worker")
    limit_seconds: float = Field(3600.0, gt=0, description="an evaluation on a worker that takes longer has failed")
    retries: int = Field(2, ge=0, description="how often a failed evaluation is tried again")

    @property
    def wanted(self) -> bool:
        """Whether any workers are wanted."""
        return self.workers > 0 or self.address is not None
