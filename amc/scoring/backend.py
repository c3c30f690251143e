"""Which arithmetic scores networks during a search: the first of a fixed order that is native and agrees with fp32.

Quick repair runs in bfloat16 too where it is as good. Timings decide nothing, so that one CPU model always chooses
alike. Confirmation and reports, and the full repair that they follow, are always fp32.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from amc.scoring.scorer import Backend, Score, Scorer
from amc.tasks.splits import Split
from envs.compression.compress import Compressor
from envs.space.policy import Policy

logger = logging.getLogger(__name__)

ORDER: tuple[Backend, ...] = ("bf16", "fp32", "eager")
MAX_DIFFERENCE = 0.005
"""Maximum difference of the metric from that of the network as it is (in fp32), on any network compared: of a fraction
as it is, of any other metric in shares of its largest value there."""

MAX_ERROR_RATIO = 1.01
"""Maximum ratio of the output error that repair in bfloat16 leaves to that of repair in full precision."""


class Agreement(NamedTuple):
    """How well a backend agrees with the network as it is.

    Attributes:
        difference: Maximum difference of the metric over the networks compared, see `MAX_DIFFERENCE`.
        same_order: Whether the networks come in the same order, but for those closer than the tolerance.
        seconds: Backend -> what scoring the networks took; for people, it decides nothing.
    """

    difference: float
    same_order: bool
    seconds: tuple[tuple[Backend, float], ...] = ()

    @property
    def good(self) -> bool:
        """Whether the backend may be used."""
        return self.difference <= MAX_DIFFERENCE and self.same_order


def choose_backend(
    networks: Sequence[nn.Module], score: Callable[[nn.Module, Backend], Score], device: str
) -> tuple[Backend, Agreement]:
    """The first backend that this device runs natively and that agrees with the networks as they are.

    Args:
        networks: The dense network and a few pruned ones.
        score: Scores a network by a backend on fixed images.
        device: "cpu" or "cuda".
    """
    took: list[tuple[Backend, float]] = []

    def scored(backend: Backend) -> list[Score]:
        began = time.perf_counter()
        scores = [score(network, backend) for network in networks]
        took.append((backend, time.perf_counter() - began))
        return scores

    plain = scored("eager")
    expected = [one.value for one in plain]
    scale = 1.0 if plain[0].metric.fraction else max(map(abs, expected)) or 1.0
    for backend in ORDER[:-1]:
        if backend == "bf16" and not native_bf16(device):
            continue
        try:
            found = agreement(expected, [one.value for one in scored(backend)], scale)
        except (RuntimeError, ValueError) as error:  # an operator or a metric without bfloat16
            logger.info("backend %s does not run this network: %s", backend, error)
            continue
        if found.good:
            return backend, found._replace(seconds=tuple(took))
        logger.info("backend %s differs from fp32: %s", backend, found)
    return "eager", Agreement(0.0, True, tuple(took))


def agreement(expected: Sequence[float], got: Sequence[float], scale: float = 1.0) -> Agreement:
    """Compares two lists of a metric's values of the same networks, in shares of `scale`."""
    a, b = np.asarray(expected) / scale, np.asarray(got) / scale
    apart = a[:, None] - a[None, :]
    swapped = (apart > MAX_DIFFERENCE) & (b[:, None] - b[None, :] <= 0)
    return Agreement(float(np.abs(a - b).max()), not bool(swapped.any()))


def repairs_alike(
    compressor: Compressor, policy: Policy, scorer: Scorer, split: Split, images: Sequence[int]
) -> bool | None:
    """Whether quick repair in bfloat16 leaves the output error of that in full precision; None where there is none.

    Args:
        compressor: Repairs.
        policy: What is compared.
        scorer: Scores in full precision.
        split: Where the images are.
        images: Which ones, [N].
    """
    if scorer.device != "cpu" or not compressor.quick_forwards:
        return None
    dense = scorer.outputs(compressor.network, split, images)

    def left(half: bool) -> float:
        score = scorer(compressor.compress(policy, quick=True, half=half).network, split, images, dense)
        assert score.errors is not None
        return float(score.errors.mean(dtype=np.float64))

    try:
        narrow, full = left(True), left(False)
    except RuntimeError as error:  # an exported program holds the precisions of the network as it was
        logger.info("repair does not run in bfloat16: %s", error)
        return False
    logger.info("quick repair leaves an output error of %.4g in bfloat16, of %.4g in full precision", narrow, full)
    return narrow <= MAX_ERROR_RATIO * full


def native_bf16(device: str) -> bool:
    """Whether bfloat16 products are instructions of this device; emulated ones are slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
