"""Which images are drawn, and reading them in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from amc.config.search import SearchConfig
from amc.scoring.scorer import read
from amc.tasks.batches import Batch
from amc.tasks.splits import Split

MIN_UNSEEN = 64
"""Fewer calibration images than these judge nothing."""
RESERVED = 4
"""One calibration image in so many is kept from repair where the reward needs some."""

Role = Literal["calibration", "validation"]


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

    def repair(self) -> list[int]:
        """The images that statistics and repair may see: all that the configuration asks for, but some must be left
        where a reward on calibration images needs images that repair does not see.
        """
        count = self.config.compression.images
        if self.config.reward_split == "calibration":
            count = min(count, self.calibration_count - max(1, self.calibration_count // RESERVED))
        return self.calibration()[:count]

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

    def audition(self) -> tuple[Role, list[int]]:
        """Images that repair does not see, for judging the starts, and the split that they are from.

        Calibration images that the reward does not see either; where hardly any are left, the reward's own.
        """
        unseen = self._unseen()
        if self.config.reward_split == "calibration":
            unseen = unseen[self.config.reward_images :]
        if len(unseen) >= MIN_UNSEEN:
            return "calibration", unseen[: self.config.knapsack.audition_images]
        return self.config.reward_split, self.reward()[: self.config.knapsack.audition_images]

    def _unseen(self) -> list[int]:
        """Calibration images that repair does not see."""
        return self.calibration()[len(self.repair()) :]


def keyed_order(count: int, seed: int) -> list[int]:
    """A seeded permutation of `count` indices."""
    return [int(index) for index in np.random.default_rng([seed, count]).permutation(count)]


def read_batches(split: Split, indices: Sequence[int], size: int) -> list[Batch]:
    """Batches of the chosen samples, in order."""
    return [read(split, indices[start : start + size]) for start in range(0, len(indices), size)]
