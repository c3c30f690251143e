"""How many calibration images and positions fit into memory, and in chunks of what size."""

from __future__ import annotations

import logging
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compression.preparation import HELD_SHARE, positions_for
from envs.compression.settings import CompressionConfig
from envs.units.layout import LayoutFamily
from hw_profiles.cost import BYTES_PER_VALUE, Macs, cost_of, live_values
from hw_profiles.layers import Layout

logger = logging.getLogger(__name__)
FloatArray = NDArray[np.float64]

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
"""Percentile of the activations while a layer runs that must fit for all images; at larger cuts the walk is repeated.
"""
MOST_WALKED = 2.0
"""Times the work of the network that a walk may take where only small cuts are kept, so that more images fit: those
between the blocks of a transformer are several times smaller than those inside.
"""
SLACK = 2.0
"""Times as much as the small cuts hold must fit, as real samples may be larger than the example."""
WALKED_MACS = 1e12
"""Multiply-accumulates of all images beyond which small cuts give room for no more: half a minute of a core."""


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
    beside = min(wanted, _held_images(layout, cuts, HELD_SHARE * limit))
    images = min(beside, int(TARGET_SHARE * limit / _target_bytes(layout, MIN_POSITIONS)))
    images = min(wanted, max(MIN_IMAGES, images))
    positions = settings.positions or positions_for(images)
    room = TARGET_SHARE * limit / images
    narrow = _target_bytes(layout, positions) > room
    while positions > MIN_POSITIONS and _target_bytes(layout, positions) / (1 + narrow) > room:
        positions = max(MIN_POSITIONS, 7 * positions // 8)
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


def _held_images(layout: Layout, live: FloatArray, limit: float) -> int:
    """Images whose activations at the cuts that repair keeps fit into so many bytes.

    Args:
        layout: Of the dense network.
        live: [N] what `live_bytes` says of it.
        limit: Bytes.
    """
    typical = int(limit / float(np.percentile(live, TYPICAL)))
    if not layout.edges_known:
        return typical
    affordable = int(WALKED_MACS / max(cost_of(Macs(), layout), 1.0))
    return max(typical, min(affordable, int(limit / (SLACK * _small_cut(layout)))))


def _small_cut(layout: Layout) -> float:
    """Bytes of one image at the largest cut that must be kept if walks are to take no more than `MOST_WALKED`."""
    fronts = _front_bytes(layout)
    work = np.concatenate([[0], np.cumsum(layout.macs(layout.widths())[0])])
    stops = [index for index, layer in enumerate(layout.layers) if layer.has_weight] or [0]
    for cut in np.unique(fronts):
        kept = np.maximum.accumulate(np.where(fronts <= cut, np.arange(len(fronts)), 0))
        begins = [0, *(kept[stop] for stop in stops[:-1])]
        if sum(work[stop] - work[begin] for stop, begin in zip(stops, begins, strict=True)) <= MOST_WALKED * work[-1]:
            return max(float(cut), BYTES_PER_VALUE)  # 0: it may begin at the inputs every time
    return float(fronts.max())


def _front_bytes(layout: Layout) -> FloatArray:
    """[N] bytes of one image's values in front of each operator: what it and later ones read."""
    change = np.zeros(len(layout.layers) + 2)
    last = {source: index for index, layer in enumerate(layout.layers) for source in layer.inputs}
    for index, layer in enumerate(layout.layers):
        size = BYTES_PER_VALUE * layer.out_channels * prod(layer.out_map)
        change[index + 1] += size
        change[max(last.get(index, index), index) + 1] -= size
    return np.asarray(change.cumsum()[: len(layout.layers)])


def live_bytes(layout: Layout) -> FloatArray:
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
