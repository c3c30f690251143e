"""A critic of whole assignments: which actions, all at once, would be better than the best that were played.

The critic of DDPG sees one action and what an observation tells of those before it, which is little: assignments that
differ look alike. Here the reward is a function of all actions of an episode, and all episodes are learned from,
whoever proposed them. Nearby, and after repair, units add up almost as if each were alone, so few episodes are enough:
a quadratic without mixed terms, fitted by ridge regression (a response surface: Box & Wilson, On the Experimental
Attainment of Optimum Conditions, 1951).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.noise import normal_scores
from agents.searcher import SearcherState, Trajectory

ENOUGH = 12
"""Episodes before which the best one is all that is known."""
BEST = 5
"""Episodes at least whose mean, the best counting most, is what lies in the middle of the fit."""
REACH = 4.0
"""Widths of exploration, root mean square over the steps, at which an episode counts exp(-1/2) of one in the middle."""
RIDGE = 0.1
"""Penalty relative to the mean diagonal of the Gram matrix."""
LEAST = 1e-6
"""Width of exploration below which nothing but the best episode is near."""
STEP = 1.0
"""Widths of exploration by which an action moves where the average slope is seen and no bend; at most twice as many."""


class WholeCritic:
    """Remembers all episodes, and fits their rewards when it is asked.

    Args:
        steps: T, the steps of every episode.
        shares: [T] how much the budgeted cost changes per unit of each action; None: there is no such cost.
        best: Share of all episodes that the middle of the fit is the mean of; at least `BEST` of them.
    """

    def __init__(self, steps: int, shares: Sequence[float] | None, best: float = 0.0) -> None:
        self._best = best
        self._shares = np.zeros(steps) if shares is None else np.asarray(shares, np.float64)
        self._actions = np.zeros((0, steps))
        self._rewards = np.zeros(0)

    def remember(self, trajectory: Trajectory) -> None:
        """Learns of one episode."""
        self._actions = np.concatenate([self._actions, trajectory.actions.astype(np.float64)[None]])
        self._rewards = np.append(self._rewards, float(trajectory.reward))

    def preferred(self, sigma: float) -> NDArray[np.float32]:
        """[T] the actions that it expects most of, not far from the best played ones, at about their cost.

        Args:
            sigma: Width of exploration, by which distances are measured.

        Raises:
            ValueError: If no episode was remembered.
        """
        order = np.argsort(-self._rewards, kind="stable")[: max(BEST, int(self._best * len(self._rewards)))]
        if not len(order):
            raise ValueError("a critic prefers nothing before it has seen an episode: remember one first")
        if len(self._rewards) < ENOUGH or sigma < LEAST:
            return _single(self._actions[order[0]])
        middle = np.average(self._actions[order], axis=0, weights=np.arange(len(order), 0, -1))
        slope, bend = self._fit(middle, sigma)
        typical = np.abs(slope).mean() / STEP + 1e-9
        move = np.clip(slope / (typical - np.minimum(bend, 0.0)), -2 * STEP, 2 * STEP)
        cost = float(self._shares @ self._shares)
        if cost > 0.0:
            move -= self._shares * (move @ self._shares) / cost
        return _single(np.clip(middle + sigma * move, 0.0, 1.0))

    def _fit(self, middle: NDArray[np.float64], sigma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[T] slopes and [T] bends of the normal scores of the rewards, per width of exploration."""
        away = (self._actions - middle) / sigma
        exponents = -0.5 * np.square(away).mean(axis=1) / REACH**2
        weights = np.exp(exponents - exponents.max())
        terms = np.concatenate([away, 0.5 * np.square(away)], axis=1)
        terms = terms - np.average(terms, axis=0, weights=weights)
        scores = normal_scores(self._rewards)
        weighed = terms * weights[:, None]
        gram = np.einsum("ki,kj->ij", weighed, terms)  # not @: BLAS may add in another order with other threads
        penalty = RIDGE * np.trace(gram) / len(gram) + 1e-12
        wanted = np.einsum("ki,k->i", weighed, scores)
        found = np.linalg.solve(gram + penalty * np.eye(len(gram)), wanted)
        slope, bend = np.split(found, 2)
        return slope, bend

    def state(self) -> SearcherState:
        """All episodes."""
        return SearcherState({"actions": self._actions.copy(), "rewards": self._rewards.copy()}, {})

    def load(self, state: SearcherState) -> None:
        """Go on with the episodes of a `state`.

        Raises:
            ValueError: If it holds none, as that of an agent without this critic.
        """
        if "actions" not in state.arrays:
            raise ValueError(
                "a search goes on with all its episodes, but its saved state is of an agent without a critic of whole "
                "assignments, as earlier versions had it: search anew"
            )
        self._actions, self._rewards = state.arrays["actions"].copy(), state.arrays["rewards"].copy()


def _single(actions: NDArray[np.float64]) -> NDArray[np.float32]:
    narrowed: NDArray[np.float32] = actions.astype(np.float32)
    return narrowed
