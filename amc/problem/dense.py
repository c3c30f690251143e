"""The dense network's outputs on a whole split: every search of a network needs them, so they are kept on disk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amc.problem.setup import Setup
from amc.scoring.scorer import Outputs, read
from amc.storage.cache import cached_tensors
from amc.tasks.splits import Split, chunks, known_targets
from envs.network.inputs import tensors
from envs.space.policy import tensors_fingerprint, weights_fingerprint

VERSION = 1
"""Of what is remembered; counts up when outputs are computed otherwise."""
REMEMBERED_BYTES = 5e7
"""The largest outputs that are written to disk."""


def dense_outputs(setup: Setup, split: Split) -> Outputs | None:
    """[B, ...] of each scoring chunk, in full precision; None where they are too many to keep.

    They are remembered by weights, samples, and what the network makes of the first chunk, which other code or other
    arithmetic changes; only of samples that are in memory, as others would have to be loaded twice.
    """
    if setup.outputs_kept < len(split):
        return None
    scorer, network = setup.scorer, setup.task.network

    def compute() -> dict[str, Tensor]:
        outputs = scorer.outputs(network, split, range(len(split)))
        return {f"{place:06}": one.clone(memory_format=torch.contiguous_format) for place, one in enumerate(outputs)}

    size = 4 * math.prod(setup.output_shape) * len(split)
    if known_targets(split) is None or size > REMEMBERED_BYTES:
        return list(compute().values())
    parts = chunks(len(split), scorer.chunk)
    batches = (read(split, part) for part in parts)
    key = {
        "version": VERSION,
        "weights": weights_fingerprint(network),
        "images": tensors_fingerprint(one for inputs, _ in batches for one in tensors(inputs)),
        "first": tensors_fingerprint(scorer.outputs(network, split, parts[0])),
        "chunk": scorer.chunk,
        "backend": scorer.backend,
        "device": scorer.device,
    }
    known = cached_tensors("dense", key, compute)
    return [known[name] for name in sorted(known)]
