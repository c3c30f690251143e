"""Costs of a layout: MACs, parameters, peak memory. Each is a black box to everything above.

A cost evaluates `K` variants of a layout at once, because a constraint asks about all choices of a site
together; that replaces a per-site difference and needs no additivity. A new one is a class like these (`CountedCost`)
and one line in `COSTS`: configuration, budgets, inspection and reports read everything else from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hw_profiles.layers import IntArray, Layout, Widths
from hw_profiles.patterns import parse_pattern

FloatArray = NDArray[np.float64]

BYTES_PER_VALUE = 4
"""Costs in bytes are stated for fp32."""

IN_PLACE = frozenset({"norm", "activation", "reshape"})
"""Operators that runtimes fuse or alias: they write over their input when nothing else reads it."""


class Cost(Protocol):
    """What a layout costs, in `unit`."""

    @property
    def name(self) -> str:
        """Short name, as in `--constraint NAME=VALUE`."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the value, in words."""
        ...

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """Costs of `K` variants of `layout`: [K] float64 in `unit`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """How people are shown a cost.

    Attributes:
        label: What it is called in a sentence.
        symbol: Symbol of its unit, behind the digits; "" for counts.
        decimals: Digits behind the point; None: four significant ones, with a prefix for large values.
    """

    label: str
    symbol: str = ""
    decimals: int | None = None

    def text(self, value: float) -> str:
        """A value in digits that a person reads: 125.5 M, 853.2 k, 1.21 MB, 2.330 ms."""
        if self.decimals is not None:
            return f"{value:.{self.decimals}f} {self.symbol}".strip()
        for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= max(size, 1e4):
                return f"{value / size:.4g} {prefix}{self.symbol}"
        return f"{value:,.4g} {self.symbol}".strip() if value < 1000 else f"{value:,.0f} {self.symbol}".strip()


class CountedCost(Cost, Protocol):
    """A cost that is counted on a layout, with what reports and checks have to know of it.

    Example, the number of operators with a weight::

        @dataclass(frozen=True, slots=True)
        class Depth:
            name: str = "depth"
            unit: str = "layers"
            display: ClassVar[Display] = Display(label="layers with a weight")
            needs_edges: ClassVar[bool] = False
            adds_up: ClassVar[bool] = True

            def many(self, layout: Layout, widths: Widths) -> FloatArray:
                return np.full(len(widths.outputs), float(sum(layer.has_weight for layer in layout.layers)))
    """

    @property
    def display(self) -> Display:
        """How it is shown."""
        ...

    @property
    def needs_edges(self) -> bool:
        """Whether it can be counted only where the network's data flow is known (`Layout.edges_known`)."""
        ...

    @property
    def adds_up(self) -> bool:
        """Whether a network's cost is the sum of its layers', so that each layer's share can be shown."""
        ...


def cost_of(cost: Cost, layout: Layout) -> float:
    """Cost of `layout` as it stands, in the cost's unit."""
    return float(cost.many(layout, layout.widths())[0])


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates of every operator that multiplies, batch 1; bias and normalization are ignored.

    Attributes:
        skips: Patterns whose zeros the hardware skips ("2:4"; "unstructured" for every density); the zeros of
            others are multiplied like everything else.
    """

    name: str = "macs"
    unit: str = "MACs"
    display: ClassVar[Display] = Display(label="MACs")
    needs_edges: ClassVar[bool] = False
    adds_up: ClassVar[bool] = True
    skips: tuple[str, ...] = ()

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """[K] multiply-accumulates: sum of out_map x kernel x in/groups x out, and of products without a weight."""
        return np.asarray(layout.macs(widths, self._skipped).sum(axis=1), dtype=np.float64)

    def _skipped(self, codes: IntArray) -> NDArray[np.bool_]:
        named = [parse_pattern(text).code for text in self.skips if text != "unstructured"]
        return np.isin(codes, named) | ((codes < 0) & ("unstructured" in self.skips))


@dataclass(frozen=True, slots=True)
class Params:
    """Trainable parameters that a pattern leaves, biases and normalization included."""

    name: str = "params"
    unit: str = "parameters"
    display: ClassVar[Display] = Display(label="parameters")
    needs_edges: ClassVar[bool] = False
    adds_up: ClassVar[bool] = True

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """[K] parameters."""
        per_channel = np.asarray([int(a.bias) + a.channel_params for a in layout.layers], dtype=np.int64)
        counts = layout.weights(widths) + widths.outputs * per_channel
        return np.asarray(counts.sum(axis=1) + layout.extra_params, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of fp32 weights plus the peak of live activations at batch 1.

    At each operator all tensors that it or a later one still reads are alive, and its own output; operators
    in `IN_PLACE` write over their input when nothing else reads it.

    Attributes:
        cache: Whether the keys and values of all attentions are held beside, for as many positions as the example has:
            what a language model that writes one word after the other keeps.
    """

    name: str = "memory"
    unit: str = "bytes"
    display: Display = Display(label="peak memory", symbol="B")
    cache: bool = False
    needs_edges: ClassVar[bool] = True
    adds_up: ClassVar[bool] = False

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """[K] bytes.

        Raises:
            ValueError: If the layout's edges are unknown (the network could not be traced).
        """
        if not layout.edges_known:
            raise ValueError(
                "a `memory=` budget needs the network's data flow, but it could not be traced: "
                "use macs= or params=, or make its forward traceable"
            )
        live = live_values(layout, widths).max(axis=1)
        weights = Params().many(layout, widths)
        cached = cached_values(layout, widths) if self.cache else 0
        return np.asarray((live + weights + cached) * BYTES_PER_VALUE, dtype=np.float64)


def live_values(layout: Layout, widths: Widths) -> IntArray:
    """[K, N + 1] values alive while each operator runs, at batch 1, and behind the last one."""
    maps = np.asarray([prod(a.out_map) for a in layout.layers], dtype=np.int64)
    sizes = widths.outputs * maps
    change = np.concatenate([sizes, np.zeros((len(sizes), 1), dtype=np.int64)], axis=1)
    np.subtract.at(change.T, _ends(layout), sizes.T)
    return np.asarray(change.cumsum(axis=1))


def cached_values(layout: Layout, widths: Widths) -> IntArray:
    """[K] keys and values of all attentions at batch 1, at as many positions as the example has."""
    rows = [
        _smallest(layout, source)
        for layer in layout.layers
        for source in (layer.inputs[1:3] if layer.kind == "attention" else layer.inputs[1:2])
        if layer.kind in ("attention", "product")
    ]
    maps = np.asarray([prod(layout.layers[row].out_map) for row in rows], dtype=np.int64)
    return np.asarray((widths.outputs[:, rows] * maps).sum(axis=1), dtype=np.int64)


def _smallest(layout: Layout, row: int) -> int:
    """The smallest tensor from which one is made, back to a layer: heads that share keys are repeated later."""
    chain = [row]
    while not (layer := layout.layers[chain[-1]]).has_weight and layer.inputs:
        chain.append(layer.inputs[0])
    sizes = [layout.layers[one].out_channels * prod(layout.layers[one].out_map) for one in chain]
    return chain[sizes.index(min(sizes))]


def _ends(layout: Layout) -> IntArray:
    """[N] the first operator that runs without each output: after its last reader, or where that overwrites it."""
    count = len(layout.layers)
    ends = np.arange(1, count + 1)
    readers = np.zeros(count, dtype=np.int64)
    for index, layer in enumerate(layout.layers):
        for source in set(layer.inputs):
            ends[source] = index + 1
            readers[source] += 1
    for index, layer in enumerate(layout.layers):
        if layer.kind in IN_PLACE and len(layer.inputs) == 1 and readers[layer.inputs[0]] == 1:
            ends[layer.inputs[0]] = index
    return ends


LATENCY = ("latency", "latency_ms")
"""Budgets on a profile's latency: a fraction of the dense network's, or milliseconds."""

COSTS: dict[str, CountedCost] = {
    "macs": Macs(),
    "params": Params(),
    "memory": Memory(),
    "memory_cached": Memory(
        name="memory_cached", cache=True, display=Display(label="peak memory with cached keys and values", symbol="B")
    ),
}
"""Costs that are counted, by the name used in a constraint."""

LATENCY_DISPLAY = Display(label="predicted latency", symbol="ms", decimals=3)
"""How a profile's latency is shown."""


def display_of(name: str) -> Display:
    """How a cost is shown, by its name; under that name where it is none of ours."""
    if name in LATENCY:
        return LATENCY_DISPLAY
    return COSTS[name].display if name in COSTS else Display(label=name)
