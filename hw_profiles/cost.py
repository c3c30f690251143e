"""Costs of a layout: MACs, parameters, peak memory. Each is a black box to everything above.

A cost evaluates `K` variants of a layout at once, because a constraint asks about all choices of a site
together; that replaces a per-site difference and needs no additivity.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

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
        """Unit of the value."""
        ...

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """Costs of `K` variants of `layout`: [K] float64 in `unit`."""
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
    """

    name: str = "memory"
    unit: str = "bytes"

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """[K] bytes.

        Raises:
            ValueError: If the layout's edges are unknown (the network could not be traced).
        """
        if not layout.edges_known:
            raise ValueError(
                "a `memory=` budget needs the network's data flow, but torch.fx could not trace it: "
                "use macs= or params=, or make its forward traceable"
            )
        maps = np.asarray([prod(a.out_map) for a in layout.layers], dtype=np.int64)
        sizes = widths.outputs * maps
        change = np.concatenate([sizes, np.zeros((len(sizes), 1), dtype=np.int64)], axis=1)
        np.subtract.at(change.T, _ends(layout), sizes.T)
        live = change.cumsum(axis=1).max(axis=1)
        weights = Params().many(layout, widths)
        return np.asarray((live + weights) * BYTES_PER_VALUE, dtype=np.float64)


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

COSTS: dict[str, Cost] = {cost.name: cost for cost in (Macs(), Params(), Memory())}
"""Costs that are counted, by the name used in a constraint."""
