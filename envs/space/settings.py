"""What may be set of the rules. Imports no torch: a configuration is read without it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.units.attention.decided import Decision

KERNEL_WIDTH, MIN_ROUNDED = 8, 96
"""Channels that the kernels of runtimes compute together (onnxruntime: 8 with AVX2, 16 with AVX-512), and the narrowest
unit whose widths keep to that unasked: there it costs no accuracy (experiments/results/rounding.md).
"""


class RulesConfig(BaseModel):
    """What may be chosen at all; `envs.space.rules.Rules` applies it to units."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    round_to: int | None = Field(
        None,
        ge=1,
        description="kept channels are a multiple of this, or all; left out: "
        f"of {KERNEL_WIDTH} in units of {MIN_ROUNDED} channels and more, unless a profile tells what widths cost",
    )
    min_ratio: float = Field(0.0, ge=0, le=1, description="minimum of the preserve ratio")
    max_ratio: float = Field(1.0, gt=0, le=1, description="maximum of the preserve ratio")
    attention: Decision = Field(
        "auto",
        description='what is decided about attention with several heads: "heads" (groups that share keys and values '
        'go whole), "queries" (as many query heads of every such group), "widths" (the same of every head), or "auto" '
        "(widths where all heads have principal channels, else heads)",
    )
    skip: tuple[str, ...] = Field((), description="patterns (as in a shell) of layer names that stay dense")

    @model_validator(mode="after")
    def _leave_something(self) -> Self:
        if self.min_ratio > self.max_ratio:
            raise ValueError(
                f"`min_ratio <= max_ratio` must hold, but got min_ratio={self.min_ratio}, max_ratio={self.max_ratio}: "
                "write fractions of kept channels"
            )
        return self
