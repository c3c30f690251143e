"""The damage curves of a problem's sites: measured on images that repair did not see, remembered on disk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from amc.scoring.draws import read_batches
from amc.search.setup import Problem
from amc.storage.cache import cached_tensors
from envs.compression.calibration import MAX_CHUNK, MIN_CHUNKS
from envs.compression.damage import DAMAGES, Batch, Curve, damage_images, measure_damage, sensitivity_forwards
from envs.regression.shrinkage import FOLDS
from envs.space.policy import tensors_fingerprint, weights_fingerprint

VERSION = 2
"""Of what is remembered; counts up when curves are measured otherwise."""


def damage_curves(problem: Problem) -> dict[str, list[Curve]]:
    """For each kind of damage, the damage per unit and width; remembered by weights, data and settings. Charged."""
    config, knapsack = problem.config, problem.config.knapsack
    batches = _batches(problem)
    key: Mapping[str, object] = {
        "version": VERSION,
        "weights": weights_fingerprint(problem.task.network),
        "images": tensors_fingerprint(tensor for batch in batches for tensor in batch[:2]),
        "calibration": problem.compressor.calibration_fingerprint,
        "compression": config.compression.model_dump(mode="json", exclude={"quick_images", "quick_positions"}),
        "knapsack": knapsack.model_dump(mode="json"),
        "sites": [[site.unit, site.kept().tolist(), *site.patterns()] for site in problem.sites],
        "seed": config.seed,
        **({} if config.device == "cpu" else {"device": config.device}),
    }

    def measure() -> dict[str, Tensor]:
        curves = measure_damage(
            problem.compressor,
            problem.sites,
            batches,
            knapsack.widths,
            {n: DAMAGES[n] for n in knapsack.damages},
            lambda done, total: problem.progress("measuring damage", done, total),
        )
        return {
            f"{name}|{curve.unit}": torch.tensor([curve.kept, curve.damage], dtype=torch.float64, device="cpu")
            for name, kind in curves.items()
            for curve in kind
        }

    images = sum(len(batch.inputs) for batch in batches)
    problem.effort.image_forwards += sensitivity_forwards(problem.sites, knapsack.widths, images)
    tables = cached_tensors("damage", key, measure)
    return {
        name: [_curve(site.unit, tables[f"{name}|{site.unit}"]) for site in problem.sites] for name in knapsack.damages
    }


def _batches(problem: Problem) -> list[Batch]:
    """Repair's own images by their folds: what is fitted to one is judged on the other."""
    plan, knapsack = problem.calibration_plan, problem.config.knapsack
    images = damage_images(problem.anatomy.family.dense, problem.sites, knapsack.widths, knapsack.images)
    chunks = np.arange(max(MIN_CHUNKS, images // plan.chunk) * plan.chunk).reshape(-1, plan.chunk)
    indices, batches = problem.draws.repair()[: plan.images], list[Batch]()
    for number, chunk in enumerate(chunks):
        part = [indices[place] for place in chunk if place < len(indices)]
        for inputs, targets in read_batches(problem.task.calibration, part, min(MAX_CHUNK, problem.scorer.chunk)):
            batches.append(Batch(inputs, targets, number % FOLDS))
    return batches


def _curve(unit: str, table: Tensor) -> Curve:
    return Curve(unit=unit, kept=tuple(table[0].int().tolist()), damage=tuple(table[1].tolist()))
