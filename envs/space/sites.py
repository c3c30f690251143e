"""Sites: one decision each, with its ordered choices. A policy decides every site, one per step of an episode.

A kind of decision is a class of `Site` in a module of its own (`WidthSite` here, `pattern_sites.PatternSite`) with a
line in `kinds.KINDS`. A site only says what its values mean; what a decision does to weights stands in `compression`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.units.layout import LayoutFamily
from hw_profiles.layers import IntArray, LayerShape, Layout, Widths

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that a site can become.

    Attributes:
        value: What an assignment holds: channels kept, or the rank of a pattern.
        ratio: The action in (0, 1] that means it.
        label: For people: "12" channels, "2:4".
    """

    value: int
    ratio: float
    label: str


@dataclass(slots=True)
class Decisions:
    """What was decided, by name.

    Attributes:
        kept: Unit name -> channels kept.
        patterns: Layer name -> sparsity pattern.
        removed: Names of the residual branches that are gone, in order.
    """

    kept: dict[str, int] = field(default_factory=dict)
    patterns: dict[str, str] = field(default_factory=dict)
    removed: dict[str, None] = field(default_factory=dict)


class Part(NamedTuple):
    """Variants of a network with the same operators: [k] their indices, the operators, and their widths."""

    variants: IntArray
    layout: Layout
    widths: Widths


@dataclass(frozen=True, slots=True)
class _Gone:
    """Operators that are gone in some of the variants, the addition behind them, and what else changes."""

    rows: tuple[int, ...]
    row: int
    extra_params: int
    where: NDArray[np.bool_]


class WidthsDraft:
    """Channel counts and patterns of K assignments while the sites write into them."""

    def __init__(self, family: LayoutFamily, count: int) -> None:
        """The dense network, `count` times."""
        self.family, self.count = family, count
        self.channels: IntArray = np.repeat(family.channels[None, :], count, axis=0)
        self._patterns: IntArray | None = None
        self._gone: list[_Gone] = []

    @cached_property
    def rows(self) -> dict[str, int]:
        """Layer name -> row of the layout."""
        return {layer.name: row for row, layer in enumerate(self.family.dense.layers)}

    def set_patterns(self, layer: str, codes: IntArray) -> None:
        """Gives a layer [K] pattern codes."""
        if self._patterns is None:
            self._patterns = np.zeros((self.count, len(self.family.dense.layers)), dtype=np.int64)
        self._patterns[:, self.rows[layer]] = codes

    def remove(self, rows: tuple[int, ...], row: int, extra_params: int, where: NDArray[np.bool_]) -> None:
        """Takes operators out.

        Args:
            rows: The operators.
            row: The addition behind them, which then adds a parameter per channel.
            extra_params: Parameters that come in addition.
            where: [K] bool, in which variants.
        """
        self._gone.append(_Gone(rows, row, extra_params, where))

    def parts(self) -> Iterator[Part]:
        """The variants by the operators that they have."""
        widths, dense = self.finished(), self.family.dense
        if not any(gone.where.any() for gone in self._gone):
            yield Part(np.arange(self.count), dense, widths)
            return
        everywhere = np.stack([gone.where for gone in self._gone], axis=1)
        kinds, kind_of = np.unique(everywhere, axis=0, return_inverse=True)
        for number, kind in enumerate(kinds):
            variants = np.flatnonzero(kind_of.reshape(-1) == number)
            gone = tuple(one for one, where in zip(self._gone, kind, strict=True) if where)
            layout, rows = _without(dense, tuple((one.rows, one.row, one.extra_params) for one in gone))
            yield Part(variants, layout, widths.part(variants, rows))

    def finished(self) -> Widths:
        """The widths; without patterns where all are dense."""
        dense = self._patterns is None or not self._patterns.any()
        return self.family.widths(self.channels, None if dense else self._patterns)


@lru_cache(maxsize=2048)
def _without(dense: Layout, gone: tuple[tuple[tuple[int, ...], int, int], ...]) -> tuple[Layout, IntArray]:
    """A layout without some operators, each given with its addition and further parameters, and the rows that stay.

    What lies inside of others counts with them.
    """
    outer = [one for one in gone if not any(one[1] in other[0] for other in gone)]
    dropped = {row for rows, _, _ in outer for row in rows}
    layout = dense.without(dropped, {row for _, row, _ in outer}, sum(extra for _, _, extra in outer))
    return layout, np.asarray([row for row in range(len(dense.layers)) if row not in dropped], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Site(ABC):
    """One decision.

    Attributes:
        name: Name of what is decided: a unit, or a weight ("layer1.0.conv1.weight").
        choices: What is allowed before any budget, lightest first.
        precedence: Sites of a lower one are changed first where a budget must be reached.
        shaped: Whether a layer's shape can refuse a value.
        scaled: Whether a common preserve ratio moves it; others are what their own ratio means.
    """

    name: str
    choices: tuple[Choice, ...]
    precedence: ClassVar[int] = 0
    shaped: ClassVar[bool] = False
    scaled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses a site without choices or with unordered ones."""
        values = [choice.value for choice in self.choices]
        if not values or values != sorted(set(values)):
            raise ValueError(f"a site needs ordered, distinct choices, but {self.name!r} has {values}")

    @property
    @abstractmethod
    def size(self) -> int:
        """The value that the dense network has here."""

    @abstractmethod
    def action(self, value: int) -> float:
        """The action in (0, 1] that means a value, an allowed choice or not."""

    @abstractmethod
    def decide(self, value: int, decisions: Decisions) -> None:
        """Writes down what a value means."""

    @abstractmethod
    def value_in(self, decisions: Decisions) -> int:
        """The value that means what was decided: the inverse of `decide`.

        Raises:
            ValueError: If it is no choice of this site.
        """

    def moot(self, value: int) -> tuple[str, ...]:
        """Names of the sites that no longer matter where this one has a value."""
        return ()

    @abstractmethod
    def write(self, values: IntArray, draft: WidthsDraft) -> None:
        """Gives K assignments this site's [K] values."""

    @abstractmethod
    def layers(self, family: LayoutFamily) -> list[int]:
        """Rows of the layout's layers whose cost this decision changes."""

    @abstractmethod
    def describing_layer(self, dense: Layout) -> LayerShape:
        """The layer whose shape an observation of this site shows.

        Raises:
            ValueError: If the layout has no such layer.
        """

    def outputs(self, layer: LayerShape) -> int:
        """Channels that an observation calls the site's output, given `describing_layer`."""
        return layer.out_channels

    def fitted(self, values: IntArray, unfit: NDArray[np.bool_], rows: dict[str, int]) -> IntArray:
        """[K] values with those that their layer does not take replaced; by default all are taken.

        Args:
            values: [K].
            unfit: [K, N] layers whose pattern does not fit their shape.
            rows: Layer name -> column of `unfit`.
        """
        return values

    def values(self) -> IntArray:
        """[C] values of the choices, lightest first."""
        return np.asarray([choice.value for choice in self.choices], dtype=np.int64)

    def ratios(self) -> FloatArray:
        """[C] the actions that mean the choices, lightest first."""
        return np.asarray([choice.ratio for choice in self.choices])

    def nearest(self, ratio: float, among: IntArray) -> int:
        """Index of the choice whose action is closest to `ratio`; the lighter one on a tie.

        Args:
            ratio: Wanted action.
            among: [C'] indices of the choices to look at, ascending.
        """
        return int(among[int(np.argmin(np.abs(self.ratios()[among] - ratio)))])

    def choice(self, value: int) -> Choice:
        """The choice of a value.

        Raises:
            ValueError: If there is none.
        """
        for choice in self.choices:
            if choice.value == value:
                return choice
        known = ", ".join(choice.label for choice in self.choices)
        raise ValueError(f"{self.name!r} must become one of {known}, but got the value {value}")


def moot_of(sites: Sequence[Site], values: Iterable[int]) -> set[str]:
    """Names of the sites that do not matter where each of some sites has its value."""
    return {name for site, value in zip(sites, values, strict=True) for name in site.moot(value)}


def layer_named(dense: Layout, name: str) -> LayerShape:
    """A layer of a layout.

    Raises:
        ValueError: If the layout has no such layer.
    """
    found = next((layer for layer in dense.layers if layer.name == name), None)
    if found is None:
        raise ValueError(f"a site must be named after a layer of the layout, but there is no {name!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class WidthSite(Site):
    """How many channels of a unit stay; the action is the preserve ratio.

    Attributes:
        channels: The unit's full width.
    """

    channels: int

    @classmethod
    def of(cls, unit: str, channels: int, kept: Sequence[int]) -> WidthSite:
        """The site of a unit with the widths that it may have, lightest first."""
        choices = tuple(Choice(count, count / channels, str(count)) for count in kept)
        return cls(name=unit, channels=channels, choices=choices)

    @property
    def size(self) -> int:
        """The full width."""
        return self.channels

    def action(self, value: int) -> float:
        """The preserve ratio."""
        return int(value) / self.channels

    def decide(self, value: int, decisions: Decisions) -> None:
        """So many channels of the unit stay."""
        decisions.kept[self.name] = int(value)

    def value_in(self, decisions: Decisions) -> int:
        """Channels kept; all of them where nothing is said."""
        return decisions.kept.get(self.name, self.channels)

    def write(self, values: IntArray, draft: WidthsDraft) -> None:
        """Sets the unit's channels."""
        draft.channels[:, draft.family.units.index(self.name)] = values

    def outputs(self, layer: LayerShape) -> int:
        """The unit's full width."""
        return self.channels

    def layers(self, family: LayoutFamily) -> list[int]:
        """All layers that write, carry or read the unit's channels."""
        return family.layers_of(self.name)

    def describing_layer(self, dense: Layout) -> LayerShape:
        """The layer that first produces the unit, by which it is named."""
        return layer_named(dense, self.name)
