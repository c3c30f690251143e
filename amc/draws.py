"""Which images are drawn, and reading them in batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from amc.data import Split
from amc.evaluate import read


def keyed_order(count: int, seed: int) -> list[int]:
    """A seeded permutation of `count` indices."""
    return [int(index) for index in np.random.default_rng([seed, count]).permutation(count)]


def read_batches(split: Split, indices: Sequence[int], size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of the chosen samples, in order."""
    return [read(split, indices[start : start + size]) for start in range(0, len(indices), size)]
