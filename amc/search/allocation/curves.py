"""The damage curves of a search's sites: measured on images that repair did not see, remembered on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amc.pool.pool import Pool, blocks
from amc.problem.prepare import Prepared, calibration_plan
from amc.scoring.draws import read_batches
from amc.search.tools import Tools
from amc.storage.cache import cached_tensors
from envs.compression.calibration import MAX_CHUNK, MIN_CHUNKS
from envs.compression.damage import (
    MIN_DAMAGE_IMAGES,
    Batch,
    Curve,
    damage_images,
    damage_named,
    measure_damage,
    measured_widths,
    output_rows,
    sensitivity_forwards,
)
from envs.network.inputs import batch_size, tensors
from envs.regression.shrinkage import FOLDS
from envs.space.policy import tensors_fingerprint, weights_fingerprint
from envs.space.sites import Site

VERSION = 3
"""Of what is remembered; counts up when curves are measured otherwise."""
BLOCKS_PER_WORKER = 3
"""Parts of the sites for each worker, so that all end at about the same time; each walks to its first site anew."""


class Measuring(NamedTuple):
    """What all sites have in common: images, widths per site, kinds of damage, and what is called with the progress."""

    batches: Sequence[Batch]
    widths: int
    kinds: Sequence[str]
    progress: Callable[[int, int], None]


def damage_curves(prepared: Prepared, pool: Pool, tools: Tools) -> dict[str, list[Curve]]:
    """For each kind of damage, the damage per site and choice; remembered by weights, data and settings. Charged."""
    setup, config, knapsack = prepared.setup, prepared.config, prepared.config.knapsack
    batches = _batches(prepared)
    key: Mapping[str, object] = {
        "version": VERSION,
        "weights": weights_fingerprint(setup.task.network),
        "images": tensors_fingerprint(one for batch in batches for one in (*tensors(batch.inputs), batch.targets)),
        "calibration": prepared.compressor.calibration_fingerprint,
        "compression": config.compression.model_dump(mode="json", exclude={"quick_images", "quick_positions"}),
        "knapsack": knapsack.model_dump(mode="json", exclude={"rounds"}),
        **setup.judged(),
        **({"principal": names} if (names := prepared.compressor.principal) else {}),
        "sites": [[site.name, *([choice.value, choice.label] for choice in site.choices)] for site in setup.sites],
        "seed": config.seed,
        **({} if config.device == "cpu" else {"device": config.device}),
    }

    def measure() -> dict[str, Tensor]:
        curves = _measured(prepared, pool, tools, batches)
        return {
            f"{name}|{curve.unit}": torch.tensor([curve.kept, curve.damage], dtype=torch.float64, device="cpu")
            for name, kind in curves.items()
            for curve in kind
        }

    images = sum(batch_size(batch.inputs) for batch in batches)
    forwards = sensitivity_forwards(setup.sites, knapsack.widths, images)
    prepared.ledger.charge(forwards, once="damage curves")
    # what the user's own code does may be something else tomorrow
    tables = measure() if setup.objects.of_compression() else cached_tensors("damage", key, measure)
    return {
        name: [_curve(site.name, tables[f"{name}|{site.name}"]) for site in setup.sites] for name in knapsack.damages
    }


def _measured(prepared: Prepared, pool: Pool, tools: Tools, batches: Sequence[Batch]) -> dict[str, list[Curve]]:
    sites, knapsack = prepared.setup.sites, prepared.config.knapsack
    done = 0
    total = sum(len(measured_widths(site, knapsack.widths)) for site in sites)

    def progress(done: int, total: int) -> None:
        prepared.progress("measuring damage", done, total)

    own = _unseen if pool.workers else progress
    measuring = Measuring(batches, knapsack.widths, knapsack.damages, own)
    parts = blocks(sites, max(1, BLOCKS_PER_WORKER * pool.workers))
    curves: dict[str, list[Curve]] = {name: [] for name in knapsack.damages}
    for part, answer in zip(parts, pool.map(measure_block, tools, measuring, parts), strict=True):
        for name, kind in answer.result().items():
            curves[name] += kind
        done += sum(len(measured_widths(site, knapsack.widths)) for site in part)
        progress(done, total)
    return curves


def measure_block(tools: Tools, measuring: Measuring, sites: Sequence[Site]) -> dict[str, list[Curve]]:
    """The damage curves of consecutive sites."""
    kinds = {name: damage_named(name) for name in measuring.kinds}
    judged = tools.scorer.metric.judged
    return measure_damage(
        tools.compressor, sites, measuring.batches, measuring.widths, kinds, measuring.progress, judged
    )


def _unseen(done: int, total: int) -> None:
    """Progress of a worker, which is not shown."""


def _batches(prepared: Prepared) -> list[Batch]:
    """Repair's own images by their folds: what is fitted to one is judged on the other."""
    setup = prepared.setup
    knapsack = prepared.config.knapsack
    plan = calibration_plan(prepared.setup)
    most = min(knapsack.images, max(MIN_DAMAGE_IMAGES, setup.outputs_kept))
    rows = output_rows(setup.output_shape, setup.task.calibration.batch([0])[1])
    images = damage_images(setup.anatomy.family.dense, setup.sites, knapsack.widths, most, rows)
    folds = max(MIN_CHUNKS, images // plan.chunk)
    chunks = np.arange(folds * plan.chunk).reshape(-1, plan.chunk)
    indices = setup.draws.repair()[: plan.images]
    batches = list[Batch]()
    for number, chunk in enumerate(chunks):
        part = [indices[place] for place in chunk[: math.ceil(images / folds)] if place < len(indices)]
        for inputs, targets in read_batches(setup.task.calibration, part, min(MAX_CHUNK, setup.scorer.chunk)):
            batches.append(Batch(inputs, targets, number % FOLDS))
    return batches


def _curve(unit: str, table: Tensor) -> Curve:
    return Curve(unit=unit, kept=tuple(table[0].int().tolist()), damage=tuple(table[1].tolist()))
