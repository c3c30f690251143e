"""How many calibration images and positions fit into memory, and in chunks of what size."""

from __future__ import annotations

import logging
from math import prod
from typing import NamedTuple

import numpy as np

from envs.compression.preparation import HELD_SHARE, positions_for
from envs.compression.settings import CompressionConfig
from envs.units.layout import LayoutFamily
from hw_profiles.cost import BYTES_PER_VALUE, live_values
from hw_profiles.layers import Layout

logger = logging.getLogger(__name__)

MIN_IMAGES = 16
"""Repaired on fewer images, a network is worse than unrepaired; memory is exceeded instead."""
MIN_POSITIONS = 8
"""Rather fewer images than fewer positions of each."""
MAX_CHUNK, MIN_CHUNKS = 125, 4
TARGET_SHARE, CHUNK_SHARE = 0.3, 0.05
"""Of the memory setting: what the dense network's outputs at the sampled positions may take, and one chunk's walk."""
BESIDE = 1.5
"""Times as many images must fit where the dense network walks beside full repairs, which doubles their time. Images
count, not rows: those of one image are alike.
"""
TYPICAL = 50
"""Percentile of the activations at a cut that must fit for all images; at larger cuts the walk is repeated."""


class CalibrationPlan(NamedTuple):
    """How many calibration images fit, in chunks of what size, how many output positions of each are sampled,
    whether targets are kept in bfloat16, and whether those of full repair are kept at all.
    """

    images: int
    chunk: int
    positions: int
    narrow_targets: bool
    keep_targets: bool = True


def plan_calibration(
    family: LayoutFamily, settings: CompressionConfig, available: int, *, may_walk_beside: bool = True
) -> CalibrationPlan:
    """Images, chunk size and positions that keep repair within `settings.memory_gb`.

    Sequential repair holds the activations at a cut for all images, the dense outputs and other addends at the sampled
    positions, and a few chunks' activations and rows of the widest layer. Few images are sampled at more positions.
    Where the dense outputs leave much fewer images than the activations at two cuts do, they are not held: the dense
    network walks beside each full repair; not where residual branches may go, as it then has other operators.
    """
    limit, layout = settings.memory_gb * 1e9, family.dense
    wanted = min(settings.images, available)
    cuts = live_bytes(layout)
    cut = float(np.percentile(cuts, TYPICAL))
    images = min(
        wanted, int(HELD_SHARE * limit / cut), int(TARGET_SHARE * limit / _target_bytes(layout, MIN_POSITIONS))
    )
    images = min(wanted, max(MIN_IMAGES, images))
    positions = settings.positions or positions_for(images)
    room = TARGET_SHARE * limit / images
    narrow = _target_bytes(layout, positions) > room
    while positions > MIN_POSITIONS and _target_bytes(layout, positions) / (1 + narrow) > room:
        positions = max(MIN_POSITIONS, 7 * positions // 8)
    beside = min(wanted, int(HELD_SHARE * limit / cut))
    keep = beside < BESIDE * images or not may_walk_beside
    if not keep:
        images, positions, narrow = beside, settings.positions or positions_for(beside), True
    columns = max(
        (
            layer.in_channels // layer.groups * prod(layer.kernel) * layer.groups
            for layer in layout.layers
            if layer.has_weight
        ),
        default=1,
    )
    rows = BYTES_PER_VALUE * positions * columns
    chunk = min(MAX_CHUNK, -(-images // MIN_CHUNKS), int(CHUNK_SHARE * limit / max(rows, float(cuts.max()))))
    if images < wanted:
        logger.info("memory_gb=%g allows %d of %d calibration images", settings.memory_gb, images, wanted)
    return CalibrationPlan(images, max(1, chunk), positions, narrow, keep)


def live_bytes(layout: Layout) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[N] bytes of one image's live activations while each layer with a weight runs."""
    if not layout.edges_known:
        sizes = [prod((layer.out_channels, *layer.out_map)) for layer in layout.layers]
        return np.asarray([3.0 * BYTES_PER_VALUE * max(sizes)])
    live = live_values(layout, layout.widths())[0]
    places = [index for index, layer in enumerate(layout.layers) if layer.has_weight] or [0]
    return np.asarray(BYTES_PER_VALUE * live[places], dtype=np.float64)


def _target_bytes(layout: Layout, positions: int) -> float:
    """Bytes of what the dense network has at the sampled positions of one image: outputs and other addends."""
    tensors = [(a, 1 if a.has_weight else len(a.inputs) * (a.kind == "add")) for a in layout.layers]
    values = sum(n * a.out_channels * min(positions, prod(a.out_map)) for a, n in tensors)
    return float(BYTES_PER_VALUE * max(values, 1))
