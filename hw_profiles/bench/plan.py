"""Which kernels at which widths have to be measured for a network, and where a grid must be refined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from hw_profiles.latency.execution import executed
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.surface import Surface
from hw_profiles.layers import IntArray, Layout, Widths


@dataclass(frozen=True, slots=True)
class Reach:
    """Widths that a kernel can have in a network: ascending candidates for channels in and out."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __or__(self, other: Reach) -> Reach:
        """Both together."""
        return Reach(tuple(sorted({*self.inputs, *other.inputs})), tuple(sorted({*self.outputs, *other.outputs})))


def reachable(layout: Layout, widths: Widths, execution: Execution) -> dict[Kernel, Reach]:
    """Every kernel that some variant executes, with the widths that it takes.

    Args:
        layout: The network.
        widths: Many variants, the lightest and the heaviest among them.
        execution: Of the runtime.
    """
    found: dict[Kernel, Reach] = {}
    for work in executed(layout, widths, execution):
        inputs = (1,) if work.kernel.square else _distinct(work.inputs[work.where])
        reach = Reach(inputs, _distinct(work.outputs[work.where]))
        if reach.outputs:
            found[work.kernel] = found[work.kernel] | reach if work.kernel in found else reach
    return found


def with_parts(reaches: Mapping[Kernel, Reach], execution: Execution) -> dict[Kernel, Reach]:
    """Adds what the micro-graphs contain beside their kernels, in an order in which parts come first."""
    found: dict[Kernel, Reach] = {}

    def take(kernel: Kernel, reach: Reach) -> None:
        for input, output in product({reach.inputs[0], reach.inputs[-1]}, reach.outputs):
            for part in execution.parts(Probe(kernel, input, output)):
                inputs = (1,) if part.kernel.square else (part.inputs,)
                take(part.kernel, Reach(inputs, (part.outputs,)))
        merged = found.pop(kernel) | reach if kernel in found else reach
        found[kernel] = merged

    for kernel, reach in reaches.items():
        take(kernel, reach)
    return dict(sorted(found.items(), key=lambda pair: _depth(pair[0], pair[1], execution)))


def _depth(kernel: Kernel, reach: Reach, execution: Execution) -> int:
    inner = execution.parts(Probe(kernel, reach.inputs[-1], reach.outputs[-1]))
    return 1 + max((_depth(p.kernel, Reach((p.inputs,), (p.outputs,)), execution) for p in inner), default=0)


def first_knots(candidates: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The ends and evenly spaced candidates between."""
    picks = np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int))
    return tuple(candidates[k] for k in picks)


def refined(surface: Surface, reach: Reach, tolerance: float) -> Reach:
    """The knots of a measured grid, and new ones halfway beside every line that its neighbours do not predict."""
    axes = [tuple(surface.inputs.tolist()), tuple(surface.outputs.tolist())]
    wanted = [set(knots) for knots in axes]
    for axis, index, relative in surface.left_out():
        if relative > tolerance:
            candidates = (reach.inputs, reach.outputs)[axis]
            for low, high in ((index - 1, index), (index, index + 1)):
                between = [c for c in candidates if axes[axis][low] < c < axes[axis][high]]
                wanted[axis] |= {between[len(between) // 2]} if between else set()
    return Reach(*(tuple(sorted(knots)) for knots in wanted))


def probes(kernel: Kernel, knots: Reach) -> list[Probe]:
    """A measurement for every point of a grid."""
    if kernel.square:
        return [Probe(kernel, width, width) for width in knots.outputs]
    return [Probe(kernel, i, o) for i, o in product(knots.inputs, knots.outputs)]


def _distinct(values: IntArray | Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.unique(np.asarray(values)))
