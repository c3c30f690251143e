"""How many calibration images fit into memory, and in chunks of what size."""

from __future__ import annotations

import logging
from math import prod
from typing import NamedTuple

from envs.compress import CompressionSettings
from envs.layout import LayoutFamily
from hw_profiles.cost import Memory, Params
from hw_profiles.layers import Layout

logger = logging.getLogger(__name__)

FEWEST_IMAGES = 16
"""Repaired on fewer images, a network is worse than unrepaired; memory is exceeded instead."""


class CalibrationPlan(NamedTuple):
    """How many calibration images fit, and in chunks of what size."""

    images: int
    chunk: int


def plan_calibration(family: LayoutFamily, settings: CompressionSettings, available: int) -> CalibrationPlan:
    """Images and chunk size that keep repair within `settings.memory_gb`.

    Sequential repair holds the live activations of a network for all images, the dense outputs and other addends at
    the sampled positions, and one chunk's rows of the widest layer.
    """
    limit = settings.memory_gb * 1e9
    layout = family.dense
    tensors = {layer: 1 if layer.has_weight else len(layer.inputs) * (layer.kind == "add") for layer in layout.layers}
    rows = sum(4 * n * a.out_channels * min(settings.positions, prod(a.out_map)) for a, n in tensors.items())
    images = min(settings.images, available, max(FEWEST_IMAGES, int(limit / (live_bytes(layout) + rows))))
    columns = max((layer.in_channels // layer.groups * prod(layer.kernel) * layer.groups
                   for layer in layout.layers if layer.has_weight), default=1)  # fmt: skip
    chunk = max(1, min(125, images, int(limit / 4 / (settings.positions * columns * 4))))
    if images < min(settings.images, available):
        logger.info("memory_gb=%g allows %d of %d calibration images", settings.memory_gb, images, settings.images)
    return CalibrationPlan(images, chunk)


def live_bytes(layout: Layout) -> float:
    """Peak bytes of one image's live activations."""
    if not layout.edges_known:
        return 3 * 4.0 * max(prod((layer.out_channels, *layer.out_map)) for layer in layout.layers)
    widths = layout.widths()
    return float((Memory().many(layout, widths) - 4 * Params().many(layout, widths))[0])
