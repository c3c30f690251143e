"""Which images are drawn, and reading them in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from amc.config import SearchConfig
from amc.data import Split
from amc.evaluate import read

FEWEST_UNSEEN = 64
"""Calibration images that repair must leave over, or it is not asked to."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Which images a search uses for what; configuration and seed decide.

    Attributes:
        config: The configuration.
        calibration_count: Calibration images there are.
        validation_count: Validation images there are.
    """

    config: SearchConfig
    calibration_count: int
    validation_count: int

    def calibration(self) -> list[int]:
        """All calibration images in the seed's order."""
        return keyed_order(self.calibration_count, self.config.seed)

    def reward(self) -> list[int]:
        """The fixed images that the reward sees: at most half of validation, or calibration images repair does not see.

        Where images are saved, those that every policy is scored on come first.
        """
        if self.config.reward_split == "calibration":
            drawn = self._unseen()[: self.config.reward_images]
        else:
            order = keyed_order(self.validation_count, self.config.seed)
            drawn = order[: min(self.config.reward_images, (self.validation_count + 1) // 2)]
        first = self.config.savings.images or 0
        return [*sorted(drawn[:first]), *sorted(drawn[first:])]

    def confirm(self) -> list[int]:
        """Validation images that the reward does not see."""
        seen = set(self.reward()) if self.config.reward_split == "validation" else set()
        return [index for index in range(self.validation_count) if index not in seen]

    def audition(self) -> list[int]:
        """Calibration images that neither repair nor the reward sees, for judging the starts."""
        unseen = self._unseen()
        if self.config.reward_split == "calibration" and len(unseen) - self.config.reward_images >= FEWEST_UNSEEN:
            unseen = unseen[self.config.reward_images :]
        return unseen[: self.config.knapsack.audition_images]

    def _unseen(self) -> list[int]:
        """Calibration images that repair does not see (all of them again, if hardly any are left)."""
        order = self.calibration()
        unseen = order[self.config.compression.images :]
        return unseen if len(unseen) >= FEWEST_UNSEEN else order


def keyed_order(count: int, seed: int) -> list[int]:
    """A seeded permutation of `count` indices."""
    return [int(index) for index in np.random.default_rng([seed, count]).permutation(count)]


def read_batches(split: Split, indices: Sequence[int], size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of the chosen samples, in order."""
    return [read(split, indices[start : start + size]) for start in range(0, len(indices), size)]
