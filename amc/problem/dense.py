"""The dense network's outputs on a whole split: every search of a network needs them, so they are kept on disk."""

from __future__ import annotations

import math

import numpy as np
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
    """[B, ...] of each scoring chunk, in full precision; None where they are too many to keep."""
    if setup.outputs_kept < len(split):
        return None
    known = remembered_outputs(setup, split)
    return setup.scorer.outputs(setup.task.network, split, range(len(split))) if known is None else known


def remembered_outputs(setup: Setup, split: Split) -> Outputs | None:
    """`dense_outputs` that are on disk, or are computed and kept there; None where they are not to be.

    They are known again by weights, buffers, modules and operators, by the samples, and by what the network makes of
    some samples from all over the split. So they are kept only of networks whose operators are known and that compute
    the same twice, and of samples in memory: others would have to be loaded twice.
    """
    scorer, network, program = setup.scorer, setup.task.network, setup.anatomy.graph.program
    size = 4 * math.prod(setup.output_shape) * len(split)
    if program is None or scorer.device != "cpu" or size > REMEMBERED_BYTES:
        return None
    if setup.outputs_kept < len(split) or known_targets(split) is None:
        return None
    spread = np.linspace(0, len(split) - 1, min(scorer.chunk, len(split))).astype(int).tolist()
    probe, again = (tensors_fingerprint(scorer.outputs(network, split, spread)) for _ in range(2))
    if probe != again:
        return None
    batches = (read(split, part) for part in chunks(len(split), scorer.chunk))
    key = {
        "version": VERSION,
        "weights": weights_fingerprint(network),
        "buffers": tensors_fingerprint(buffer for _, buffer in network.named_buffers()),  # also those of no state dict
        "modules": repr(network),
        "operators": str(program),
        "samples": tensors_fingerprint(one for inputs, _ in batches for one in tensors(inputs)),
        "probe": probe,
        "chunk": scorer.chunk,
        "backend": scorer.backend,
    }

    def compute() -> dict[str, Tensor]:
        outputs = scorer.outputs(network, split, range(len(split)))
        return {f"{place:06}": one.clone(memory_format=torch.contiguous_format) for place, one in enumerate(outputs)}

    known = cached_tensors("dense", key, compute)
    return [known[name] for name in sorted(known)]
