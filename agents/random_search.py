"""Random search: the given starts, then independent uniform actions. The yardstick of every learner."""

from __future__ import annotations

from collections.abc import Sequence

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


class RandomSearch:
    """A `Searcher` that learns nothing.

    Args:
        steps: T, the steps of an episode.
        seed: key of all draws.
        starts: (label, actions [T]) proposed first, as they are.
    """

    def __init__(self, steps: int, seed: int, starts: Sequence[tuple[str, Sequence[float]]] = ()) -> None:
        self._steps = steps
        self._seed = seed
        self._starts = start_plans(starts, steps)
        self._told = 0

    def propose(self, count: int) -> list[Plan]:
        """The next starts, then uniform actions keyed by the episode's number."""
        return [self._plan(episode) for episode in range(self._told, self._told + count)]

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Count the episodes."""
        self._told += len(trajectories)

    def state(self) -> SearcherState:
        """The number of episodes told."""
        return SearcherState({}, {"told": self._told})

    def load(self, state: SearcherState) -> None:
        """Go on after the episodes that ``state`` was told."""
        told = state.numbers["told"]
        assert isinstance(told, int)
        self._told = told

    def _plan(self, episode: int) -> FixedPlan:
        if episode < len(self._starts):
            return self._starts[episode]
        actions = keyed_generator(self._seed, "random", episode).random(self._steps)
        return FixedPlan(tuple(actions.tolist()), "random")


def random_search(inputs: SearchInputs) -> Searcher:
    """The agent ``random``."""
    return RandomSearch(inputs.steps, inputs.seed, inputs.starts)
