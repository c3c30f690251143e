"""Sparsity patterns of a weight: dense, N:M (at most N of M consecutive inputs), unstructured (a share of all weights).

Names and arithmetic only: which weights go, and whether they are gone, is in `envs/space/patterns.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

MAX_GROUP = 4096
PARTS = 1_000_000
"""Densities are whole millionths, so that a count of weights is the same wherever it is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Which weights may differ from zero.

    Attributes:
        keep: N of N:M, or the density in millionths.
        group: M of N:M; 0 for an unstructured pattern, 1 for dense.
    """

    keep: int
    group: int

    @property
    def dense(self) -> bool:
        """Whether every weight may stay."""
        return self.group == 1

    @property
    def structured(self) -> bool:
        """Whether it is N:M."""
        return self.group > 1

    @property
    def density(self) -> float:
        """Share of the weights that may stay, in (0, 1]."""
        return self.keep / (self.group or PARTS)

    def allowed(self, weights: int) -> int:
        """How many of so many weights may differ from zero, rounded down."""
        return weights * self.keep // (self.group or PARTS)

    @property
    def code(self) -> int:
        """The pattern as one integer, 0 for dense: what a batch of variants holds for each operator."""
        if self.dense:
            return 0
        return self.keep * MAX_GROUP + self.group if self.structured else -self.keep

    def __str__(self) -> str:
        """As in `policy.json`: dense, 2:4, unstructured:0.2."""
        if self.dense:
            return "dense"
        return f"{self.keep}:{self.group}" if self.structured else f"unstructured:{self.density:g}"


DENSE: Final = Pattern(keep=1, group=1)


def unstructured(density: float) -> Pattern:
    """The pattern that keeps a share of a layer's weights, rounded to millionths.

    Raises:
        ValueError: If the density is not in (0, 1).
    """
    keep = round(density * PARTS) if 0 < density < 1 else 0
    if not 0 < keep < PARTS:
        raise ValueError(
            f"an unstructured density must be in (0, 1), but got {density:g}: write dense to keep all weights"
        )
    return Pattern(keep=keep, group=0)


def parse_pattern(text: str) -> Pattern:
    """Reads "dense", "N:M" or "unstructured:DENSITY".

    Raises:
        ValueError: If it is none of them, or its numbers cannot be.
    """
    if text == "dense":
        return DENSE
    kind, _, value = text.partition(":")
    try:
        if kind == "unstructured":
            return unstructured(float(value))
        keep, group = int(kind), int(value)
    except ValueError as error:
        if kind == "unstructured" and "density" in str(error):
            raise
        raise ValueError(
            f"a pattern must read dense, N:M or unstructured:DENSITY, but got {text!r}: write for example 2:4"
        ) from error
    if not 0 < keep < group <= MAX_GROUP // 2:
        raise ValueError(f"`0 < N < M <= {MAX_GROUP // 2}` must hold for a pattern N:M, but got {text!r}")
    return Pattern(keep=keep, group=group)


def nonzeros(weights: IntArray, codes: IntArray) -> IntArray:
    """How many of so many weights may differ from zero: exact for N:M, rounded down for a density.

    Args:
        weights: Numbers of weights, any shape.
        codes: `Pattern.code` of each, of the same shape.
    """
    structured = codes > 0
    numerator = np.where(structured, codes // MAX_GROUP, np.where(codes < 0, -codes, 1))
    denominator = np.where(structured, codes % MAX_GROUP, np.where(codes < 0, PARTS, 1))
    return np.asarray(weights * numerator // denominator, dtype=np.int64)
