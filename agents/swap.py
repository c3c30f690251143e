"""Swaps as a `Searcher`: from the best policy so far, cost is moved from some steps to others.

The evolution of EvoPress (Sieberling et al., EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary
Search, 2024, section 3): one parent, several children, each the parent with a few level switches that keep the cost;
the best of parent and children is the next parent. Deviations: actions are continuous, so a switch moves an amount of
cost that is drawn instead of one level; the environment projects children onto the nearest allowed choices within the
budget; children are scored as every episode is, not by halving over growing samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.searcher import (
    FixedPlan,
    Plan,
    Searcher,
    SearcherState,
    SearchInputs,
    Trajectory,
    keyed_generator,
    start_plans,
)

LABEL = "swap"
MAX_SWITCHES = 3
"""Of the number of switches the smaller of two draws from 1 to this is taken, as in EvoPress's code."""


class Swap:
    """A `Searcher` that looks at actions and rewards only.

    Args:
        steps: T, the steps of an episode.
        seed: key of all draws.
        shares: [T] how much the budgeted cost changes per unit of each action, in any unit.
        starts: (label, actions [T]) proposed first, as they are; the best of them is the first parent.
        sigma: mean absolute change of the first action of a switch, ``> 0``.
    """

    def __init__(
        self,
        steps: int,
        seed: int,
        shares: Sequence[float],
        starts: Sequence[tuple[str, Sequence[float]]] = (),
        sigma: float = 0.1,
    ) -> None:
        if not 0.0 < sigma < np.inf:
            raise ValueError(f"`sigma > 0` must hold, but got sigma={sigma}: write a width in units of the action")
        if len(shares) != steps:
            raise ValueError(f"`shares` must have one number per step, but got {len(shares)} for {steps} steps")
        self._steps, self._seed, self._sigma = steps, seed, sigma
        self._shares = np.abs(np.asarray(shares, np.float64))
        self._starts = start_plans(starts, steps)
        self._told = 0
        self._best = -np.inf
        self._parent = np.full(steps, 0.5)

    def propose(self, count: int) -> list[Plan]:
        """The next starts, then children of the best policy, keyed by the episode's number."""
        return [self._plan(episode) for episode in range(self._told, self._told + count)]

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """The best of parent and children is the next parent, by its executed actions; of equals the later one."""
        for trajectory in trajectories:
            if trajectory is not None and trajectory.reward >= self._best:
                self._best, self._parent = float(trajectory.reward), trajectory.actions.astype(np.float64)
        self._told += len(trajectories)

    def state(self) -> SearcherState:
        """The parent, its reward and the number of episodes told."""
        return SearcherState({"parent": self._parent.copy(), "best": np.array(self._best)}, {"told": self._told})

    def load(self, state: SearcherState) -> None:
        """Go on from a `state` of a searcher with the same arguments."""
        told = state.numbers["told"]
        assert isinstance(told, int)
        self._told, self._best = told, float(state.arrays["best"])
        self._parent = np.array(state.arrays["parent"], np.float64)

    def _plan(self, episode: int) -> FixedPlan:
        if episode < len(self._starts):
            return self._starts[episode]
        generator = keyed_generator(self._seed, LABEL, episode)
        actions = self._parent.copy()
        for _ in range(int(generator.integers(1, MAX_SWITCHES + 1, size=2).min())):
            self._switch(actions, generator)
        return FixedPlan(tuple(actions.tolist()), LABEL)

    def _switch(self, actions: NDArray[np.float64], generator: np.random.Generator) -> None:
        """Moves cost between two steps, in place, as far as both have room; a single step moves alone."""
        if self._steps == 1:
            actions[0] = np.clip(actions[0] + generator.laplace(scale=self._sigma), 0.0, 1.0)
            return
        more, less = generator.choice(self._steps, size=2, replace=False)
        wanted = min(generator.exponential(self._sigma), 1.0 - actions[more])
        if self._shares[more] == 0.0 or self._shares[less] == 0.0:  # of no cost: nothing has to be made up for
            paid = generator.exponential(self._sigma)
        else:
            paid = wanted * self._shares[more] / self._shares[less]
            if paid > actions[less]:
                wanted, paid = wanted * actions[less] / paid, actions[less]
        actions[more] += wanted
        actions[less] = max(0.0, actions[less] - paid)


def swap(inputs: SearchInputs) -> Searcher:
    """The agent ``swap``."""
    return Swap(inputs.steps, inputs.seed, inputs.shares, inputs.starts)
