"""Samplers of Optuna (Akiba et al., Optuna, KDD 2019) as a `Searcher`; the library is optional (extra `optuna`).

A study is made anew for every round, from the episodes told and a sampler with the round's own seed: a sampler carries
its random state along otherwise, and what it proposes would depend on how often it was asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.searcher import (
    FixedPlan,
    Plan,
    Searcher,
    SearcherState,
    SearchInputs,
    Trajectory,
    keyed_seed,
    start_plans,
)


class Sampled:
    """A `Searcher` that looks at executed actions and rewards only.

    Args:
        steps: T, the steps of an episode.
        seed: key of all draws.
        make: from a seed to a sampler of Optuna's.
        label: what its plans are called.
        starts: (label, actions [T]) proposed first, as they are.
    """

    def __init__(
        self,
        steps: int,
        seed: int,
        make: Callable[[int], Any],
        label: str,
        starts: Sequence[tuple[str, Sequence[float]]] = (),
    ) -> None:
        self._steps, self._seed, self._make, self._label = steps, seed, make, label
        self._starts = start_plans(starts, steps)
        self._actions = np.zeros((0, steps), np.float64)
        self._rewards = np.zeros(0, np.float64)  # NaN where an episode failed

    def propose(self, count: int) -> list[Plan]:
        """The next starts, then what the sampler asks for."""
        starts: list[Plan] = list(self._starts[len(self._rewards) :][:count])
        return starts + [FixedPlan(actions, self._label) for actions in self._asked(count - len(starts))]

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Keeps executed actions and rewards."""
        nothing = np.zeros(self._steps)
        rows = [nothing if one is None else one.actions.astype(np.float64) for one in trajectories]
        rewards = [np.nan if one is None else float(one.reward) for one in trajectories]
        self._actions = np.concatenate([self._actions, np.asarray(rows).reshape(-1, self._steps)])
        self._rewards = np.concatenate([self._rewards, rewards])

    def state(self) -> SearcherState:
        """Everything told."""
        return SearcherState({"actions": self._actions.copy(), "rewards": self._rewards.copy()}, {})

    def load(self, state: SearcherState) -> None:
        """Go on from a `state` of a searcher with the same arguments."""
        self._actions = np.array(state.arrays["actions"], np.float64)
        self._rewards = np.array(state.arrays["rewards"], np.float64)

    def _asked(self, count: int) -> list[tuple[float, ...]]:
        if not count:
            return []
        optuna = _library()
        space = {f"{step:05d}": optuna.distributions.FloatDistribution(0.0, 1.0) for step in range(self._steps)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = self._make(keyed_seed(self._seed, self._label, len(self._rewards)))
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for actions, reward in zip(self._actions, self._rewards, strict=True):
                if np.isfinite(reward):
                    study.add_trial(_told(optuna, space, actions, float(reward)))
            asked = [study.ask(space) for _ in range(count)]
        return [tuple(float(trial.params[name]) for name in space) for trial in asked]


def tpe(inputs: SearchInputs) -> Searcher:
    """The agent ``tpe``: tree-structured Parzen estimators over all steps together (Bergstra et al., NeurIPS 2011)."""
    library = _library()

    def make(seed: int) -> Any:
        return library.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    return Sampled(inputs.steps, inputs.seed, make, "tpe", inputs.starts)


def gp(inputs: SearchInputs) -> Searcher:
    """The agent ``gp``: Bayesian optimization with a Gaussian process."""
    library = _library()

    def make(seed: int) -> Any:
        return library.samplers.GPSampler(seed=seed)

    return Sampled(inputs.steps, inputs.seed, make, "gp", inputs.starts)


def _told(optuna: Any, space: dict[str, Any], actions: NDArray[np.float64], reward: float) -> Any:
    values = np.clip(actions, 0.0, 1.0).tolist()
    return optuna.trial.create_trial(params=dict(zip(space, values, strict=True)), distributions=space, value=reward)


def _library() -> Any:
    """Optuna, silenced.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "the agents tpe and gp need Optuna, but it is not installed: in the checkout, "
            "pip install -c constraints.txt -e '.[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
