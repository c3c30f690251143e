"""What may be set of compression. Imports no torch: a configuration is read without it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from envs.compression.names import SELECTIONS
from envs.importance.scores import IMPORTANCES
from envs.lookup import OneOf
from envs.repair.repairs import REPAIRS

ROWS, QUICK_ROWS = 32_000, 4_000
"""Rows of a fit (images x positions) where positions are not set, of full and of quick repair."""


class CompressionConfig(BaseModel):
    """How channels are chosen and weights repaired."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    importance: Annotated[str, OneOf(IMPORTANCES, objects=True)] = Field("obs", description="channel score")
    repair: Annotated[str, OneOf(REPAIRS, objects=True)] = Field(
        "sequential", description="closed-form refit of what stays"
    )
    images: int = Field(2000, ge=16, description="calibration images wanted (fewer if memory_gb allows no more)")
    positions: int | None = Field(
        None, ge=1, description=f"output positions sampled per image; left out: as many as make {ROWS:,} rows and fit"
    )
    quick_images: int = Field(500, ge=16, description="calibration images of sequential repair during the search")
    quick_positions: int | None = Field(
        None,
        ge=1,
        description=f"output positions per image during the search; left out: as many as make {QUICK_ROWS:,} rows",
    )
    ridge: float | None = Field(
        None, gt=0, description="penalty relative to the Gram matrix's mean diagonal; left out: chosen for each fit"
    )
    producers: bool = Field(
        True, description="sequential repair refits every layer whose input drifted, not only consumers"
    )
    selection: Annotated[str, OneOf(SELECTIONS)] = Field("magnitude", description="which weights go under a pattern")
    reestimate_images: int = Field(0, ge=0, description="images to re-estimate batch norm on, 0: keep statistics")
    memory_gb: float = Field(1.0, gt=0, description="bound on activations and rows held by repair, GB")


class CompressionSettings(CompressionConfig):
    """What a compressor is made with: what may be set of it, and what seed, memory and device of a run say.

    Attributes:
        importance: Name, or an `envs.importance.importance.Importance`.
        repair: Name, or a class of `envs.repair.repair.Repair`.
        seed: Seed of the calibration draw and of random scores.
        narrow_targets: Keep the dense network's outputs at the sampled positions in bfloat16.
        keep_targets: Keep those of full repair; otherwise the dense network walks beside each of them.
        device: Where statistics, importance, selection and repair are computed: "cpu" or "cuda".
    """

    importance: Annotated[Any, OneOf(IMPORTANCES, objects=True)] = "obs"
    repair: Annotated[Any, OneOf(REPAIRS, objects=True)] = "sequential"
    seed: int = 0
    narrow_targets: bool = False
    keep_targets: bool = True
    device: str = "cpu"
