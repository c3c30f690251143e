"""DDPG as a `Searcher`: the starts, a warm-up, then an actor that learns from finished rounds.

The learning itself is stable-baselines3's, in `agents.learner`; the schedule of exploration stands here. TD3 and SAC
are driven the same way (`DDPGSettings.algorithm`); SAC explores by the width its actor learns, not by the schedule's.

Deviations from He et al. 2018 (AMC, ECCV), each with its reason. `agents.settings.PAPER_SETTINGS` undoes those that are
settings; experiments/results/ddpg_ablation.md measures what each is worth on toys with a known optimum. Beyond the
error of its eight seeds stand cloning and the step code (from a start) and gamma (from nothing); imitation and the
schedule of sigma show in the worst seed; the others do not show there.

- The *executed* action is stored, not the one asked for: the reward belongs to what was done.
- The first decision is learned like every other; the released code's replay never returns it.
- Sigma has a floor: below half the distance of two widths noise is rounded away, and an actor that cannot try a
  neighbouring width stays where it is.
- Given starts, a second critic sees whole assignments (`whole_critic`, `agents.whole_critic`) and all episodes. After
  each round the actor becomes the clone of what that one prefers near the best episodes: an observation tells little of
  what was decided before, so that DDPG's own critic takes different assignments for the same.
- Without it, after each round the actor takes a few supervised steps towards the best episodes in the replay
  (`imitation_steps`; Oh et al., Self-Imitation Learning, ICML 2018). The critic's gradient alone can lead it where
  it asks for more than the budget's wall lets it have; nothing executed there shows it, and it stays.
- Rewards are replaced by the normal scores of their ranks (`rank_rewards`), so that a few collapsed episodes
  do not drown the differences between good ones. This makes a baseline superfluous.
- Only the last 40 episodes are replayed (`replay_episodes`). In an older replay an action looks good because
  it was taken late, when all others were better too.
- gamma is 0.5: the final reward stands on every transition, so each is a Monte-Carlo return already, and
  bootstrapping all the way counts it T times over, with the error of T estimates.
- One indicator per step is appended to the observation (`step_code`): neighbouring layers often look alike,
  and a small network cannot tell them apart by step / T.
- At the end of warm-up the critic learns alone (`critic_first`), as the first gradients of an untrained
  critic carry the actor anywhere.
- Given starts, warm-up explores around the best of them, and the actor begins as its clone (`clone_start`),
  with narrower noise: moved a little in every step at once, a good start already loses much.
- Sigma starts lower and shrinks more slowly, for searches of 60 to 300 episodes after a short warm-up; the
  networks are 128 wide, which learns as well as 300 at three quarters of the time.
- The first episode of a round is the actor without noise (`noiseless_first`): in many dimensions the mean is
  better than the samples around it, and it makes the learning visible. With few, coarse sites it repeats itself
  and costs a quarter of the episodes.
- Around a start the noise of an episode is drawn along the budget (`along_budget`), as independent noise overspends
  early in every second episode, and the wall then squeezes the last sites. From nothing it is drawn independently:
  how much to spend is still to be learned.
- A round's episodes are learned from together, one gradient step per transition, as in AMC's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.learner import Learner, number, under
from agents.noise import along, decayed_sigma, truncated_normal
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
from agents.settings import Algorithm, DDPGSettings
from agents.whole_critic import WholeCritic

TRIALS = 4
"""Episodes, of the warm-up, in which an agent that was carried over must do better than the best start."""


class DDPGSearcher:
    """A `Searcher` that walks the steps with an actor and learns from the final rewards.

    Args:
        observation_size: D.
        steps: T, the steps of every episode.
        settings: how it explores and learns.
        seed: key of all draws.
        starts: (label, actions [T]) proposed first, as they are.
        anchor: label of the start to explore around; None takes the one with the best reward.
        shares: ``[T]`` how much the budgeted cost changes per unit of each action, linearized, in any unit; None
            draws each step's noise for itself.
    """

    def __init__(
        self,
        observation_size: int,
        steps: int,
        settings: DDPGSettings,
        seed: int,
        starts: Sequence[tuple[str, Sequence[float]]] = (),
        anchor: str | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        self._settings = settings
        self._shape = (steps, observation_size)
        self._seed = seed
        self._starts = start_plans(starts, steps)
        if anchor is not None and anchor not in [start.label for start in self._starts]:
            raise ValueError(f"`anchor` must be the label of a start, but got {anchor!r}")
        self._anchor = anchor
        known = _checked_shares(shares, steps)
        self._shares = known if settings.along_budget else None
        self._learner = self._new_learner()
        whole = settings.whole_critic and self._clones
        self._whole = WholeCritic(steps, known, settings.best_share) if whole else None
        self._told = 0
        self._teacher: Learner | None = None  # what another searcher learned, while it is on trial
        self._tried: list[float] = []  # its rewards
        self._taught = False  # it was better than the starts
        self._learned_from: int | None = None  # the first learned episode, once warm-up has ended
        # What to explore around: before a start was played, the one that is likely to become it.
        likely = [start.actions for start in self._starts if anchor in (None, start.label)]
        self._center = np.array(likely[0] if likely else [0.5] * steps, np.float32)
        self._center_reward: float | None = None

    def propose(self, count: int) -> list[Plan]:
        """The next starts, then warm-up, then the actor with noise."""
        first_learned = self._learned_from
        if first_learned is None:
            return [self._unlearned_plan(episode) for episode in range(self._told, self._told + count)]
        plans: list[Plan] = []
        for episode in range(self._told, self._told + count):
            noiseless = self._settings.noiseless_first and episode == self._told
            sigma = 0.0 if noiseless else self._sigma(episode - first_learned)
            plans.append(self._learner.plan(sigma, self._draws_along("noise", episode)))
        return plans

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Store the round and, after warm-up, learn from it."""
        finished = [(k, one) for k, one in enumerate(trajectories, start=self._told) if one is not None]
        for _, trajectory in finished:
            if trajectory.observations.shape != self._shape:
                raise ValueError(
                    f"observations of shape {self._shape} (steps, size) are expected, "
                    f"but got {trajectory.observations.shape} for {trajectory.label!r}"
                )
        for episode, trajectory in finished:
            self._remember(episode, trajectory)
        self._told += len(trajectories)
        if self._teacher is not None and self._told >= len(self._starts) + TRIALS:
            self._judge(self._teacher)
        if self._learned_from is None:
            if self._teacher is None and self._learner.episodes and self._told >= len(self._starts) + self._warmup:
                self._end_warmup()
        elif finished:
            self._learner.train(self._learner.steps_for(len(finished)), index=self._told)
            if self._whole is None:
                self._learner.imitate(index=self._told)
            else:
                self._follow(self._whole, self._sigma(self._told - self._learned_from))

    def answer(self) -> Plan:
        """The actor without noise; before it has learned anything another searcher's, or what is explored around."""
        if self._teacher is not None:
            return self._noiseless(self._teacher)
        if self._learned_from is None:
            return FixedPlan(tuple(self._center.tolist()), self._settings.algorithm)
        return self._noiseless(self._learner)

    def learn_from(self, state: SearcherState) -> None:
        """Begins with another searcher's actor and critic and without a warm-up, if they are better than the starts.

        After the starts that actor is played without noise `TRIALS` times; if it does no better in the mean than the
        best start, what it knew does not hold here, and the search goes on as if it had not been.
        """
        self._teacher = self._new_learner()
        self._teacher.learn_from(_learner_state(state))

    def state(self) -> SearcherState:
        """Everything learned, and where the schedule stands."""
        learner = self._learner.state()
        whole = {} if self._whole is None else _named("whole", self._whole.state())
        teacher = {} if self._teacher is None else _named("teacher", self._teacher.state())
        return SearcherState(
            {"center": self._center.copy(), **_named("learner", learner), **whole, **teacher},
            {
                "told": self._told,
                "learned_from": self._learned_from,
                "center_reward": self._center_reward,
                "learner": learner.numbers,
                **({"taught": True} if self._taught else {}),
                **({"tried": [*self._tried]} if self._teacher is not None else {}),
            },
        )

    def load(self, state: SearcherState) -> None:
        """Go on from a `state` of a searcher with the same arguments."""
        numbers = state.numbers
        self._learner.load(_learner_state(state))
        self._taught = numbers.get("taught", False) is True
        self._teacher, self._tried = None, []
        if isinstance(tried := numbers.get("tried"), list):
            self._teacher = self._new_learner()
            self._teacher.learn_from(SearcherState(under("teacher", state.arrays), {}))
            self._tried = [reward for reward in tried if isinstance(reward, float)]
        self._whole = None if self._taught else self._whole
        if self._whole is not None:
            self._whole.load(SearcherState(under("whole", state.arrays), {}))
        self._center = state.arrays["center"].copy()
        self._told = number(numbers, "told", int)
        unlearned, unplayed = numbers["learned_from"] is None, numbers["center_reward"] is None
        self._learned_from = None if unlearned else number(numbers, "learned_from", int)
        self._center_reward = None if unplayed else number(numbers, "center_reward", float)

    def _new_learner(self) -> Learner:
        steps, observation_size = self._shape
        return Learner(observation_size, steps, self._settings, self._seed)

    def _noiseless(self, learner: Learner) -> Plan:
        return learner.plan(0.0, (0.5,) * self._shape[0])

    def _is_trial(self, episode: int) -> bool:
        """Whether it is another searcher's actor that is played."""
        return self._teacher is not None and 0 <= episode - len(self._starts) < TRIALS

    def _judge(self, teacher: Learner) -> None:
        """Takes over what another searcher learned, or leaves it.

        What was learned is in the actor then, so it follows no critic that has seen little yet.
        """
        self._teacher = None
        if self._tried and (self._center_reward is None or np.mean(self._tried) > self._center_reward):
            self._learner.learn_from(teacher.state())
            self._taught, self._whole = True, None

    @property
    def _warmup(self) -> int:
        return 0 if self._taught else self._settings.warmup_episodes

    @property
    def _clones(self) -> bool:
        return self._settings.clone_start and bool(self._starts)

    def _sigma(self, learned: int) -> float:
        """Width of exploration after so many learned episodes."""
        settings = self._settings
        start = settings.cloned_sigma if self._clones else settings.sigma
        return decayed_sigma(start, settings.sigma_decay, settings.sigma_floor, learned)

    def _follow(self, critic: WholeCritic, sigma: float) -> None:
        """The actor becomes the clone of what the critic of whole assignments prefers."""
        self._learner.clone(critic.preferred(sigma), sigma, index=self._told)

    def _draws(self, stream: str, episode: int) -> tuple[float, ...]:
        return tuple(keyed_generator(self._seed, stream, episode).random(self._shape[0]).tolist())

    def _draws_along(self, stream: str, episode: int) -> tuple[float, ...]:
        """The draws of one episode; along the budget if a start says how much of it to spend."""
        draws = self._draws(stream, episode)
        return along(draws, self._shares) if self._shares and self._starts else draws

    def _unlearned_plan(self, episode: int) -> Plan:
        if episode < len(self._starts):
            return self._starts[episode]
        if self._teacher is not None and self._is_trial(episode):
            return self._noiseless(self._teacher)
        sigma = self._settings.warmup_start_sigma if self._starts else self._settings.warmup_sigma
        draws = self._draws_along("warmup", episode)
        actions = (truncated_normal(float(mean), sigma, draw) for mean, draw in zip(self._center, draws, strict=True))
        return FixedPlan(tuple(actions), self._settings.algorithm)

    def _remember(self, episode: int, trajectory: Trajectory) -> None:
        self._learner.remember(trajectory)
        if self._whole is not None:
            self._whole.remember(trajectory)
        if episode < len(self._starts):
            self._consider_center(self._starts[episode].label, trajectory)
        elif self._is_trial(episode):
            self._tried.append(float(trajectory.reward))

    def _consider_center(self, label: str, trajectory: Trajectory) -> None:
        better = self._center_reward is None or trajectory.reward > self._center_reward
        if better and self._anchor in (None, label):
            self._center = np.array(trajectory.actions, np.float32)
            self._center_reward = float(trajectory.reward)

    def _end_warmup(self) -> None:
        self._learned_from = self._told
        if self._whole is not None:
            self._follow(self._whole, self._settings.cloned_sigma)
        elif self._clones and not self._taught:
            self._learner.clone(self._center, self._settings.cloned_sigma, index=self._told)
        if self._settings.critic_first:
            self._learner.train(self._learner.steps_for(self._learner.episodes), index=self._told, freeze_actor=True)


def _learner_state(state: SearcherState) -> SearcherState:
    """The learner's part of a searcher's state."""
    numbers = state.numbers.get("learner")
    if not isinstance(numbers, dict):
        raise ValueError(f"'learner' of a saved state must be a mapping, but got {numbers!r}")
    return SearcherState(under("learner", state.arrays), numbers)


def _named(prefix: str, state: SearcherState) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{name}": array for name, array in state.arrays.items()}


def _checked_shares(shares: Sequence[float] | None, steps: int) -> tuple[float, ...] | None:
    if shares is None:
        return None
    if len(shares) != steps or not np.isfinite(shares).all():
        raise ValueError(f"`shares` must be {steps} finite numbers, one per step, but got {list(shares)}")
    return tuple(float(share) for share in shares)


def ddpg(inputs: SearchInputs) -> Searcher:
    """The agent ``ddpg``."""
    return _actor_critic("ddpg", inputs)


def td3(inputs: SearchInputs) -> Searcher:
    """The agent ``td3``."""
    return _actor_critic("td3", inputs)


def sac(inputs: SearchInputs) -> Searcher:
    """The agent ``sac``."""
    return _actor_critic("sac", inputs)


def _actor_critic(algorithm: Algorithm, inputs: SearchInputs) -> Searcher:
    size = inputs.observation_size
    steps = inputs.steps
    settings = inputs.settings.changed(algorithm=algorithm)
    return DDPGSearcher(size, steps, settings, inputs.seed, inputs.starts, shares=inputs.shares)
