"""Parts of a configuration that several rooms of `amc` read. What lower floors can be told stands there, in `settings`
modules: `agents.settings`, `envs.compression.settings`, `envs.space.settings`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from envs.compression.names import DAMAGES
from envs.lookup import OneOf


class Part(BaseModel):
    """A frozen part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KnapsackConfig(Part):
    """How damage per width is measured."""

    damages: tuple[Annotated[str, OneOf(DAMAGES)], ...] = Field(
        ("logits", "kl", "kl1"),
        min_length=1,
        description="what is measured: a solution for each, and the audition chooses",
    )
    images: int = Field(512, ge=16, description="calibration images per variant")
    widths: int = Field(10, ge=2, le=10_000, description="widths measured per unit, others are interpolated")
    rounds: int | None = Field(
        None,
        ge=1,
        le=100,
        description="solutions in a row, on curves corrected around the one before; left out: 1, over a range 2",
    )
    audition_images: int = Field(2000, ge=16, description="unseen calibration images that judge the solutions")


class BackendConfig(Part):
    """The arithmetic that scores policies during a search; a run writes down what `auto` chose, and why."""

    name: Literal["auto", "bf16", "fp32", "eager"] = Field(
        "auto", description="arithmetic that scores policies; fp32 and bf16 fold normalization"
    )
    difference: float | None = Field(None, ge=0, description="written by the run: maximum difference of accuracy")
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
    """Where episodes are played; no part of what determines a search."""

    workers: int = Field(0, ge=0, description="Ray workers, 0: this process (or, with an address, one per CPU)")
    address: str | None = Field(
        None, description="address of a Ray cluster (auto, HOST:6379); left out: Ray on this machine"
    )
    gpus: float = Field(0.0, ge=0, description="GPUs of each worker")
    limit_seconds: float = Field(3600.0, gt=0, description="an evaluation on a worker that takes longer has failed")
    retries: int = Field(2, ge=0, description="how often a failed evaluation is tried again")

    @property
    def wanted(self) -> bool:
        """Whether any workers are wanted."""
        return self.workers > 0 or self.address is not None
