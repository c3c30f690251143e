"""A pruning problem without a network: seven ratios under a budget, whose best reward can be found by brute force."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agents.searcher import Plan, Trajectory

STEPS, SIZE = 7, 6
"""Steps of an episode, and numbers in an observation."""


@dataclass(frozen=True, slots=True, eq=False)
class Toy:
    """Seven ratios under a budget wall; what each is worth is concave, and differs from step to step.

    Attributes:
        cost: [T] share of the cost of each step; sums to 1.
        gain: [T] what each step is worth; sums to 1.
        power: [T] how steeply a step loses its worth.
        budget: Of the cost.
        least: Smallest action.
    """

    cost: NDArray[np.float64]
    gain: NDArray[np.float64]
    power: NDArray[np.float64]
    budget: float = 0.45
    least: float = 0.1

    def reward(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[..., T]`` actions to ``[...]`` rewards, at most 1."""
        result: NDArray[np.float64] = 1 - ((1 - actions) ** self.power * self.gain).sum(-1)
        return result

    def play(self, plan: Plan) -> Trajectory:
        """Walks the steps; an action that would leave too little for the rest is cut down.

        Raises:
            AssertionError: If the plan gives an action outside [0, 1].
        """
        used, previous = 0.0, 1.0
        observations, executed = np.zeros((STEPS, SIZE), np.float32), np.zeros(STEPS)
        for step in range(STEPS):
            rest = float(self.cost[step + 1 :].sum())
            observations[step] = step / STEPS, self.cost[step], used, rest, self.budget - used, previous
            most = (self.budget - used - self.least * rest) / self.cost[step]
            action = plan(step, observations[step])
            if not 0.0 <= action <= 1.0:
                raise AssertionError(f"an action must be in [0, 1], but {plan.label!r} gave {action} at step {step}")
            executed[step] = previous = max(self.least, min(action, most, 1.0))
            used += executed[step] * self.cost[step]
        return Trajectory(
            observations=observations,
            actions=executed.astype(np.float32),
            reward=float(self.reward(executed)),
            label=plan.label,
        )


@cache
def toy() -> Toy:
    """The toy."""
    draw = np.random.default_rng(4)
    cost, gain = draw.uniform(0.3, 1.0, STEPS), draw.uniform(0.1, 1.0, STEPS) ** 2
    return Toy(cost / cost.sum(), gain / gain.sum(), draw.uniform(1.5, 4.0, STEPS))
