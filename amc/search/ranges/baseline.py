"""What the knapsack gains at any budget of a range, so that rewards of different budgets can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from amc.search.ranges.budgets import Limits

FloatArray = NDArray[np.float64]

LEAST = 0.05
"""Losses below this share of the largest count as that much: near the dense network there is nothing to win back."""


class Level(NamedTuple):
    """Reward of the knapsack at some budgets, and what it has lost against the dense network."""

    reward: float
    loss: float

    def gain(self, reward: float) -> float:
        """The share of the knapsack's loss that a policy of the same budgets wins back; 0: as good as the knapsack."""
        return (reward - self.reward) / self.loss


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """Rewards of knapsack solutions over a range.

    Attributes:
        dense: Reward of the dense network.
        budgets: [G, B] where solutions were evaluated.
        rewards: [G] their rewards.
    """

    dense: float
    budgets: FloatArray
    rewards: FloatArray

    @classmethod
    def of(cls, dense: float, points: Sequence[tuple[Limits, float]]) -> Baseline:
        """From budgets and the rewards of their knapsack solutions.

        Raises:
            ValueError: If there are none.
        """
        if not points:
            raise ValueError("a range needs the knapsack's rewards to compare with, but all its evaluations failed")
        limits, rewards = zip(*points, strict=True)
        return cls(dense=dense, budgets=np.asarray(limits, np.float64), rewards=np.asarray(rewards, np.float64))

    def at(self, limits: Limits) -> Level:
        """The knapsack's level at any budgets: log of the loss, linear between those of one cost."""
        losses = self.dense - self.rewards
        least = max(LEAST * float(losses.max()), 1e-12)
        logs = np.log(np.maximum(losses, least))
        spread = np.ptp(self.budgets, axis=0)
        moving = spread > 0
        if len(logs) == 1 or not moving.any():
            loss = float(np.exp(logs.mean()))
        else:
            known = self.budgets[:, moving] / spread[moving]
            wanted = np.asarray([limits])[:, moving] / spread[moving]
            loss = float(np.exp(RBFInterpolator(known, logs, kernel="linear", degree=0)(wanted)[0]))
        return Level(self.dense - loss, max(loss, least))
