"""Which shapes a device or library takes in which sparsity pattern: data in `rules/*.json`, each with its source.

A convolution is looked at as the matrix product that it becomes: outputs x (kernel positions x inputs per group).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from hw_profiles.documents import Open, one_line, parse_json, read_text, validated
from hw_profiles.layers import LayerShape, Layout, Widths
from hw_profiles.patterns import MAX_GROUP, parse_pattern

BoolArray = NDArray[np.bool_]
FOLDER = files("hw_profiles") / "rules"
Multiple = Annotated[int, Field(ge=1, le=2**31)]
PatternName = Annotated[str, AfterValidator(lambda text: str(parse_pattern(text)) and text)]
FIELDS = ("name", "source", "patterns", "skips", "kinds", "rows", "columns", "grouped")


class _Rules(Open):
    """Shape rules as they stand in a file."""

    name: str
    source: str
    patterns: Annotated[tuple[PatternName, ...], Field(strict=False)]
    skips: Annotated[tuple[str, ...], Field(strict=False)]
    kinds: Annotated[tuple[str, ...], Field(strict=False)]
    rows: Multiple
    columns: Multiple
    grouped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRules:
    """What one device or library takes.

    Attributes:
        name: Short name, as in `--constraint sparsity=2:4@NAME`.
        source: Where the numbers are from.
        patterns: Patterns that it takes.
        skips: Patterns whose zeros it does not multiply.
        kinds: Kinds of layers ("conv", "linear").
        rows: Outputs must be a multiple of this, and at least as many.
        columns: Inputs per group times kernel positions must be a multiple of this, and at least as many.
        grouped: Whether grouped convolutions are taken.
    """

    name: str
    source: str
    patterns: tuple[str, ...]
    skips: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: int
    columns: int
    grouped: bool

    def refusal(self, layer: LayerShape, pattern: str) -> str:
        """Why a layer of this shape cannot take the pattern here, or ''."""
        inputs = layer.in_channels // layer.groups
        columns = inputs * prod(layer.kernel)
        if pattern not in self.patterns:
            return f"{self.name} takes {', '.join(self.patterns)} only"
        if layer.kind not in self.kinds:
            return f"{self.name} takes {', '.join(self.kinds)} only"
        if layer.groups > 1 and not self.grouped:
            return f"{self.name} takes no grouped convolution"
        if layer.out_channels % self.rows:
            return f"it has {layer.out_channels} outputs, no multiple of the {self.rows} of {self.name}"
        if columns % self.columns:
            return f"it has {columns} columns, no multiple of the {self.columns} of {self.name}"
        return ""

    def accepts(self, layout: Layout, widths: Widths) -> BoolArray:
        """[K, N] bool: whether each operator of each variant has a shape that is taken, whatever the pattern."""
        columns = widths.inputs // widths.groups * layout.kernels()
        kinds = np.asarray([layer.kind in self.kinds for layer in layout.layers])
        fits = (widths.outputs % self.rows == 0) & (columns % self.columns == 0) & kinds
        return np.asarray(fits & (self.grouped | (widths.groups == 1)))


def misfits(layout: Layout, widths: Widths, rules: ShapeRules | None) -> BoolArray:
    """[K, N] bool: operators with an N:M pattern that their inputs, or the device, do not take."""
    if widths.patterns is None:
        return np.zeros(widths.inputs.shape, dtype=np.bool_)  # all are dense
    structured = widths.patterns > 0
    group = np.where(structured, widths.patterns % MAX_GROUP, 1)
    wrong = structured & (widths.inputs // widths.groups % group != 0)
    if rules is not None:
        taken = np.isin(widths.patterns, [parse_pattern(text).code for text in rules.patterns])
        wrong |= (widths.patterns != 0) & ~(taken & rules.accepts(layout, widths))
    return np.asarray(wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """Share of the multiply-accumulates in layers that are dense: what a coverage bounds."""

    name: str = "uncovered"
    unit: str = "share of MACs"

    def many(self, layout: Layout, widths: Widths) -> NDArray[np.float64]:
        """[K] shares in [0, 1]; every multiply-accumulate counts, skipped or not."""
        weights = widths.inputs * widths.outputs // widths.groups * layout.kernels() * layout.positions()
        dense = weights if widths.patterns is None else np.where(widths.patterns == 0, weights, 0)
        return np.asarray(dense.sum(axis=1) / np.maximum(weights.sum(axis=1), 1), dtype=np.float64)


def known_rules() -> list[str]:
    """Names of the rules that are shipped."""
    return sorted(Path(entry.name).stem for entry in FOLDER.iterdir() if entry.name.endswith(".json"))


def load_rules(name: str) -> ShapeRules:
    """Shape rules by name, or from a file of one's own.

    Raises:
        ValueError: If there are none, or the file does not hold them.
    """
    entry = Path(name) if name.endswith(".json") else Path(str(FOLDER), f"{name}.json")
    try:
        data = parse_json(read_text(entry, "shape rules", "JSON file"), str(entry), "shape rules")
        stored = validated(_Rules, data, str(entry), "shape rules")
    except ValueError as error:
        raise ValueError(
            f"shape rules must be one of {', '.join(known_rules())} or a JSON file with {', '.join(FIELDS)}, but "
            f"{name!r} is not ({one_line(error)})"
        ) from error
    return ShapeRules(**dict(stored))
