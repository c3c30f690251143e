"""The observation of a step: AMC's eleven features, by name, scaled to [0, 1].

Deviations from He et al. (AMC, ECCV 2018): a site is a unit, so c, h, w, stride and k describe the layer that
first produces it and `macs` all layers it changes (of a pattern's site its one layer); `reduced` and `rest` are in
the first constraint's cost, counted on whole layouts, so reset and step agree and rest ends at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.space.constraint import Constraint
from hw_profiles.cost import Macs, cost_of
from hw_profiles.layers import LayerShape

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "previous_action")
"""Step, output channels, input channels, height, width, stride, kernel, share of MACs; cost already saved and
cost that later sites can still save, as fractions of the dense cost; the last executed action."""

ObservationArray = NDArray[np.float32]


class Observer:
    """Builds observations for one constraint."""

    def __init__(self, constraint: Constraint) -> None:
        """Computes the static features of every site."""
        self._constraint = constraint
        costing = constraint.costing
        self._cost = constraint.budgets[0].cost
        self._dense, self._light = costing.dense(), costing.lightest()
        self._total = costing.one(self._cost, self._dense)
        rows = np.asarray([self._describe(step) for step in range(len(costing.sites))], dtype=np.float64)
        self.static = (rows / np.maximum(rows.max(axis=0), 1e-12)).astype(np.float32)

    def __call__(self, prefix: Sequence[int], previous_action: float) -> ObservationArray:
        """[11] float32 features of step `len(prefix)`.

        Args:
            prefix: Kept channels of the sites decided so far.
            previous_action: Preserve ratio executed last (1 before the first step).
        """
        step = len(prefix)
        rows = np.stack([self._dense, self._light])
        rows[:, :step] = prefix
        with_dense, with_light = self._constraint.costing.many(self._cost, rows)
        reduced, rest = (self._total - with_dense) / self._total, (with_dense - with_light) / self._total
        static = self.static[min(step, len(self.static) - 1)]
        dynamic = np.asarray([reduced, rest, previous_action], dtype=np.float32)
        return np.asarray(np.clip(np.concatenate([static, dynamic]), 0.0, 1.0), dtype=np.float32)

    def _describe(self, step: int) -> list[float]:
        costing = self._constraint.costing
        site, family = costing.sites[step], costing.family
        layer = site.describing_layer(family.dense)
        touched = replace(family.dense, layers=tuple(family.dense.layers[row] for row in site.layers(family)))
        height, width = _plane(layer)
        return [
            step,
            site.outputs(layer),
            layer.in_channels,
            height,
            width,
            max(layer.stride, default=1),
            max(layer.kernel, default=1),
            cost_of(Macs(), touched),
        ]


def _plane(layer: LayerShape) -> tuple[int, int]:
    sizes = (*layer.out_map, 1, 1)
    return sizes[0], sizes[1]
