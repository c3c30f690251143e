"""CMA-ES as a `Searcher`: one normal distribution over whole policies, adapted from generation to generation.

The evolution itself is the library ``cmaes`` (Hansen, The CMA Evolution Strategy: A Tutorial, 2016).

- It is told the point it *asked for*, not the executed one. The environment projects a point onto the nearest
  allowed widths; to the strategy that is part of the function it maximizes. Told the projected points, which lie on
  a grid on one side of the budget, it would take their spread for its own and lose its step size.
- Rounds need not divide the population. All proposals of a round come from the generation that is open when it
  begins, as further draws of the same stream; those beyond the generation's end count as the first of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from agents.searcher import FixedPlan, Plan, Searcher, SearcherState, SearchInputs, Trajectory, keyed_seed, start_plans

LABEL = "cma-es"


class CMAES:
    """A `Searcher` that looks at actions and rewards only, never at observations.

    Args:
        steps: T, the steps of an episode.
        seed: key of all draws.
        starts: (label, actions [T]) proposed first, as they are; the distribution begins at the best of them,
            until they are played at the first, and at 0.5 without any.
        sigma: its first standard deviation in every step, in units of the action, ``> 0``.
        population: episodes per generation, at least 3; None takes the library's 4 + 3 ln(T).
    """

    def __init__(
        self,
        steps: int,
        seed: int,
        starts: Sequence[tuple[str, Sequence[float]]] = (),
        sigma: float = 0.1,
        population: int | None = None,
    ) -> None:
        if not 0.0 < sigma < np.inf:
            raise ValueError(f"`sigma > 0` must hold, but got sigma={sigma}: write a width in units of the action")
        if population is not None and population < 3:
            raise ValueError(
                f"`population >= 3` must hold, but got population={population}: leave it out for 4 + 3 ln T"
            )
        self._steps, self._seed, self._sigma, self._population = steps, seed, sigma, population
        self._starts = start_plans(starts, steps)
        self._rewards: list[float] = []
        self._rounds: list[int] = []
        self._open: list[tuple[NDArray[np.float64], float]] = []  # of the open generation: points and rewards
        self._drawn = 0  # points proposed from the open generation's own stream
        self._optimizer = self._begun()

    def propose(self, count: int) -> list[Plan]:
        """The next starts, then draws from the open generation."""
        starts: list[Plan] = list(self._starts[len(self._rewards) :][:count])
        return starts + [FixedPlan(tuple(point.tolist()), LABEL) for point in self._asked(count - len(starts))]

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Count the episodes; a full generation moves the distribution. Failed ones are drawn anew."""
        rewards = [np.nan if trajectory is None else float(trajectory.reward) for trajectory in trajectories]
        starts = len(self._starts[len(self._rewards) :][: len(rewards)])
        points = self._asked(len(rewards) - starts)
        self._rewards += rewards
        self._rounds.append(len(rewards))
        if starts:
            self._optimizer = self._begun()
        self._drawn += len(points)
        pairs = zip(points, rewards[starts:], strict=True)
        self._open += [(point, reward) for point, reward in pairs if np.isfinite(reward)]
        size = self._optimizer.population_size
        while len(self._open) >= size:
            self._optimizer.tell([(point, -reward) for point, reward in self._open[:size]])
            self._open, self._drawn = self._open[size:], 0

    def answer(self) -> Plan:
        """The mean of the distribution."""
        return FixedPlan(tuple(np.clip(self._optimizer.mean, 0.0, 1.0).tolist()), LABEL)

    def state(self) -> SearcherState:
        """The rewards told (NaN: failed), round by round; what was asked for follows from them."""
        rewards = np.array(self._rewards, np.float64)
        return SearcherState({"rewards": rewards, "rounds": np.array(self._rounds, np.int64)}, {"steps": self._steps})

    def load(self, state: SearcherState) -> None:
        """Go on from a `state` of a searcher with the same arguments, by telling it everything again.

        Raises:
            ValueError: If that one's episodes have another number of steps.
        """
        steps = state.numbers.get("steps", self._steps)
        if steps != self._steps:
            raise ValueError(
                f"cmaes answers for the sites that it has searched, but those were {steps} and these are "
                f"{self._steps}: use ddpg, whose agent can be carried over"
            )
        self._rewards, self._rounds, self._open, self._drawn = [], [], [], 0
        self._optimizer = self._begun()
        ends = np.cumsum(state.arrays["rounds"])
        for rewards in np.split(state.arrays["rewards"], ends[:-1]) if len(ends) else []:
            self.tell([self._rewarded(float(reward)) for reward in rewards])

    def _begun(self) -> CMA:
        """The strategy before its first generation, around the best start so far."""
        mean = np.full(self._steps, 0.5)
        if self._starts:
            played = np.nan_to_num(self._rewards[: len(self._starts)], nan=-np.inf)
            mean = np.array(self._starts[int(np.argmax(played)) if len(played) else 0].actions, np.float64)
        bounds = np.tile([0.0, 1.0], (self._steps, 1))
        return CMA(mean=mean, sigma=self._sigma, bounds=bounds, seed=0, population_size=self._population)

    def _asked(self, count: int) -> list[NDArray[np.float64]]:
        """The next ``count`` points of the open generation; asking is done by a copy, as it changes the library."""
        optimizer = deepcopy(self._optimizer)
        optimizer.reseed_rng(keyed_seed(self._seed, "generation", optimizer.generation))
        return [optimizer.ask() for _ in range(self._drawn + count)][self._drawn :]

    def _rewarded(self, reward: float) -> Trajectory | None:
        if np.isnan(reward):
            return None
        nothing = np.zeros((self._steps, 0), np.float32)
        return Trajectory(observations=nothing, actions=np.zeros(self._steps, np.float32), reward=reward, label=LABEL)


def cma_es(inputs: SearchInputs) -> Searcher:
    """The agent ``cmaes``: narrow around starts, wide without any."""
    return CMAES(inputs.steps, inputs.seed, inputs.starts, sigma=inputs.sigma if inputs.starts else 0.25)
