"""What may be set of compression. Imports no torch: a configuration is read without it.

Names of scores and selections stand here once more, because their registries hold functions on tensors; a test
says that the names are the same.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Importance = Literal["obs", "l1", "l2", "bn_scale", "fpgm", "taylor", "fluctuation", "random"]
"""Names of `envs.importance.scores.IMPORTANCES`."""
Repair = Literal["none", "layerwise", "sequential"]
Selection = Literal["magnitude", "wanda", "sparsegpt"]
"""Names of `envs.compression.sparsify.SELECTIONS`."""
Damage = Literal["kl", "kl1", "logits", "loss"]
"""Names of `envs.compression.damage.DAMAGES`."""

ROWS, QUICK_ROWS = 32_000, 4_000
"""Rows of a fit (images x positions) where positions are not set, of full and of quick repair."""


class CompressionConfig(BaseModel):
    """How channels are chosen and weights repaired."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    importance: Importance = Field("obs", description="channel score")
    repair: Repair = Field("sequential", description="closed-form refit of what stays")
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
    selection: Selection = Field("magnitude", description="which weights go under a pattern")
    reestimate_images: int = Field(0, ge=0, description="images to re-estimate batch norm on, 0: keep statistics")
    memory_gb: float = Field(1.0, gt=0, description="bound on activations and rows held by repair, GB")


class CompressionSettings(CompressionConfig):
    """What a compressor is made with: what may be set of it, and what seed, memory and device of a run say.

    Attributes:
        seed: Seed of the calibration draw and of random scores.
        narrow_targets: Keep the dense network's outputs at the sampled positions in bfloat16.
        device: Where statistics, importance, selection and repair are computed: "cpu" or "cuda".
    """

    seed: int = 0
    narrow_targets: bool = False
    device: str = "cpu"
