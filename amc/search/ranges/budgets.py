"""The budgets of a range: a grid that is looked at first, and a draw for every later episode."""

from __future__ import annotations

from dataclasses import dataclass

from agents.searcher import keyed_generator

Limits = tuple[float, ...]
"""A budget for each cost, in the cost's unit and the constraint's order."""

GRID = 12
"""Budgets whose knapsack solutions are played first: what the rewards of all later episodes are compared with."""
STRATA = 8
"""So many episodes in a row draw from as many equal parts of the range, each from another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRange:
    """All budgets between two.

    Attributes:
        low: The lowest.
        high: The highest; equal to the lowest for a cost that has one budget.
        seed: Key of all draws.
    """

    low: Limits
    high: Limits
    seed: int

    def of_episode(self, episode: int) -> Limits:
        """The budgets of an episode: of the grid, then drawn, one cost independently of the others."""
        if episode < GRID:
            return self._at([self._ranked(cost, episode) / (GRID - 1) for cost in self._costs()])
        block, place = divmod(episode - GRID, STRATA)
        inside = keyed_generator(self.seed, "budget", episode).random(len(self.low))
        parts = [self._shuffled(f"stratum {cost}", block, STRATA, place) for cost in self._costs()]
        return self._at([(part + share) / STRATA for part, share in zip(parts, inside.tolist(), strict=True)])

    def _at(self, shares: list[float]) -> Limits:
        """The point of the range at a share of the way from low to high for each cost."""
        ends = zip(self.low, self.high, shares, strict=True)
        return tuple(low + share * (high - low) for low, high, share in ends)

    def _costs(self) -> range:
        return range(len(self.low))

    def _ranked(self, cost: int, place: int) -> int:
        """Which part of the grid an episode has; those of the first cost stay in order."""
        return place if cost == 0 else self._shuffled(f"grid {cost}", 0, GRID, place)

    def _shuffled(self, stream: str, block: int, count: int, place: int) -> int:
        """Which of `count` parts has a place in its block (Latin hypercube: every part once in a block)."""
        return int(keyed_generator(self.seed, stream, block).permutation(count)[place])
