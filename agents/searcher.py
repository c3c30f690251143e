"""The words every learner shares: `Plan`, `Trajectory`, `SearcherState`, and the `Searcher` protocol.

The learners themselves stand in the modules beside this one. How an episode is played, and what an action
does, is the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agents.settings import DDPGSettings

FloatArray: TypeAlias = NDArray[np.floating[Any]]
JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class Plan(Protocol):
    """What to do in one episode: frozen, picklable, and without any state or randomness of its own.

    A plan may be sent to another process and played there; played twice on the same observations it
    gives the same actions.
    """

    @property
    def label(self) -> str:
        """The searcher or start that proposed it, for example ``"ddpg"`` or ``"knapsack"``."""
        ...

    def __call__(self, step: int, observation: FloatArray) -> float:
        """The action in [0, 1] for ``step`` (from 0), given ``observation: [D] float32``."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """The same actions whatever is observed.

    Attributes:
        actions: ``[T]``, one action in [0, 1] per step.
        label: the searcher or start that proposed it.
    """

    actions: tuple[float, ...]
    label: str

    def __post_init__(self) -> None:
        for step, action in enumerate(self.actions):
            if not 0.0 <= action <= 1.0:
                raise ValueError(f"`0 <= action <= 1` must hold, but got {action} at step {step} of {self.label!r}")

    def __call__(self, step: int, observation: FloatArray) -> float:
        """The action of ``step``; ``observation`` is not looked at."""
        return self.actions[step]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One finished episode.

    Attributes:
        observations: ``[T, D] float32``, what was observed before each step.
        actions: ``[T] float32`` in [0, 1], the actions that were *executed*: the nearest allowed ones, which
            may differ from what the plan asked for.
        reward: the episode's final reward.
        label: the label of the plan that was played.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    reward: float
    label: str

    def __post_init__(self) -> None:
        if self.observations.ndim != 2 or self.actions.shape != self.observations.shape[:1]:
            raise ValueError(
                "`observations: [T, D]` and `actions: [T]` must agree, but got shapes "
                f"{self.observations.shape} and {self.actions.shape} for {self.label!r}"
            )
        if not np.isfinite(self.reward):
            raise ValueError(f"the reward must be finite, but got {self.reward} for {self.label!r}")
        if not np.isfinite(self.observations).all():
            raise ValueError(f"observations must be finite, but some of {self.label!r} are not")
        if not ((self.actions >= 0) & (self.actions <= 1)).all():
            raise ValueError(f"`0 <= action <= 1` must hold, but got {self.actions} for {self.label!r}")


@dataclass(frozen=True, slots=True, eq=False)
class SearcherState:
    """Everything a searcher has learned, in what safetensors and JSON can hold.

    Attributes:
        arrays: numpy arrays by name (weights, optimizer moments, replay).
        numbers: counters and the like, JSON values.
    """

    arrays: dict[str, NDArray[Any]]
    numbers: dict[str, JSON]


class Searcher(Protocol):
    """A learner that proposes episodes and is told how they went.

    The order of calls in a lifetime, a *round* being what is proposed together::

        searcher = SomeSearcher(...)
        searcher.load(state)                    # only to go on from an earlier state()
        while episodes_left:
            plans = searcher.propose(count)     # changes nothing: asked again, it gives the same plans
            ...                                 # play them, in any order, anywhere
            searcher.tell(trajectories)         # the whole round, in the order of the plans; None where one failed
            state = searcher.state()            # between rounds, whenever a checkpoint is wanted

    Each draw is keyed by (seed, stream, episode or round), see `keyed_generator`, so that no random state
    needs saving and a searcher restored by `load` goes on exactly as the one that was left. The caller's
    global random states (numpy, torch, `random`) are left as they were. What a searcher proposes may depend
    on the size of the rounds, never on the time they take.
    """

    def propose(self, count: int) -> list[Plan]:
        """The next ``count`` episodes to play, ``count >= 1``."""
        ...

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Learn from the round that `propose` gave last.

        An episode that failed has no reward and stands as None, as does one that was none of the searcher's own and
        cannot be said in its actions: it counts as played, so that the next plans are the next ones, and nothing is
        learned from it.
        """
        ...

    def state(self) -> SearcherState:
        """A snapshot that later calls do not change."""
        ...

    def load(self, state: SearcherState) -> None:
        """Go on from ``state``, taken from a searcher that was constructed with the same arguments."""
        ...


@runtime_checkable
class Answering(Protocol):
    """A searcher that can be asked for the best that it knows, which an agent for many budgets must be."""

    def answer(self) -> Plan:
        """A plan without exploration."""
        ...


@runtime_checkable
class Teachable(Protocol):
    """A searcher that can begin with what another one of the same kind has learned, of episodes of any length."""

    def learn_from(self, state: SearcherState) -> None:
        """Takes over what the other one knows, not where it stood; before the first `propose`, or the first `load`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchInputs:
    """What a searcher may be made from.

    Attributes:
        observation_size: D, numbers in an observation.
        steps: T, the steps of every episode.
        seed: key of all draws.
        starts: (label, actions ``[T]`` in [0, 1]) to propose first, as they are.
        settings: how a learner explores and learns; of which agent it is, each says itself.
        shares: ``[T]`` how much the budgeted cost changes per unit of each action, linearized, in any unit.
        sigma: width of the first steps around a start, in units of the action; learners have settings for it.
    """

    observation_size: int
    steps: int
    seed: int
    starts: Sequence[tuple[str, Sequence[float]]]
    settings: DDPGSettings
    shares: Sequence[float]
    sigma: float = 0.05


MakeSearcher: TypeAlias = Callable[[SearchInputs], Searcher]


def start_plans(starts: Sequence[tuple[str, Sequence[float]]], steps: int) -> tuple[FixedPlan, ...]:
    """The plans of ``starts``; refuses those that have not one action per step."""
    for label, actions in starts:
        if len(actions) != steps:
            raise ValueError(f"a start needs {steps} actions, one per step, but {label!r} has {len(actions)}")
    return tuple(FixedPlan(tuple(float(action) for action in actions), label) for label, actions in starts)


def keyed_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random generator of one (seed, stream, index), the same in every process and on every platform.

    Args:
        seed: the run's seed.
        stream: what is drawn, for example ``"warmup"``; streams do not influence each other.
        index: the episode or the round.
    """
    return np.random.Generator(np.random.PCG64(_key(seed, stream, index)))


def keyed_seed(seed: int, stream: str, index: int) -> int:
    """The key of `keyed_generator` folded to 32 bits, for libraries that want to be seeded with a number."""
    return _key(seed, stream, index) % 2**32


def _key(seed: int, stream: str, index: int) -> int:
    # A cryptographic hash, as Python's hash() differs from process to process, and as neighbouring seeds
    # must not give related draws.
    return int.from_bytes(hashlib.sha256(f"{seed}|{stream}|{index}".encode()).digest(), "little")
