"""An actor-critic of stable-baselines3 driven from outside: replay, training, cloning, and its state as arrays.

No schedule and no exploration stand here: `agents.ddpg` has them, and lists the deviations from the paper.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer

from agents.actor_plan import ActorPlan, SquashedPlan, with_step_code
from agents.algorithms import (
    actor_layers,
    copied,
    isolated,
    make_model,
    means,
    optimizers_of,
    set_spread,
    spread_layer,
)
from agents.noise import normal_scores
from agents.searcher import JSON, Plan, SearcherState, Trajectory, keyed_seed
from agents.settings import DDPGSettings

_REPLAY_ARRAYS = ("observations", "next_observations", "actions", "dones")
_CLONE_LIMIT = 0.96  # of tanh's range: a saturated actor gets no gradient and would never move again
_CLONE_LR, _CLONE_STEPS, _CLONE_BATCH, _CLONE_ERROR = 1e-3, 3000, 64, 1e-5
_Number = TypeVar("_Number", int, float, bool)


class Learner:
    """Actor and critic, their targets, optimizers and replay.

    Every call that draws random numbers takes an index and draws from the key (seed, its own stream, index).

    Args:
        observation_size: D.
        steps: T, the steps of every episode.
        settings: the networks and how they are trained.
        seed: key of all draws.
    """

    def __init__(self, observation_size: int, steps: int, settings: DDPGSettings, seed: int) -> None:
        self._settings = settings
        self._steps = steps
        self._seed = seed
        with isolated(keyed_seed(seed, "init", 0)):
            self._model = make_model(
                settings.algorithm,
                observation_size + steps * settings.step_code,
                settings.hidden,
                learning_rate=settings.critic_lr,
                buffer_size=settings.replay_episodes * steps,
                batch_size=settings.batch_size,
                tau=settings.tau,
                gamma=settings.gamma,
            )
        self._set_actor_rates(frozen=False)
        self._rewards = np.zeros(self._replay.buffer_size, np.float64)  # as told, beside each transition
        self._baseline = 0.0
        self._told = 0

    def remember(self, trajectory: Trajectory) -> None:
        """Put an episode of T steps into the replay."""
        observations = self._inputs(trajectory.observations)
        actions = self._model.policy.scale_action(trajectory.actions[:, None])
        last = self._steps - 1
        for step in range(self._steps):
            # Nothing follows the last step: its successor is masked by `done`.
            following = observations[min(step + 1, last)]
            done = np.array([step == last])
            self._rewards[self._replay.pos] = trajectory.reward
            self._replay.add(observations[step][None], following[None], actions[step], np.zeros(1), done, [{}])
        decay = self._settings.baseline_decay if self._told else 0.0
        self._baseline = decay * self._baseline + (1 - decay) * float(trajectory.reward)
        self._told += 1

    @property
    def episodes(self) -> int:
        """Episodes in the replay."""
        return int(self._replay.size()) // self._steps

    def steps_for(self, episodes: int) -> int:
        """The gradient steps that so many new episodes are worth."""
        steps = episodes * self._steps * self._settings.steps_per_transition
        most = self._settings.most_steps
        return steps if most is None else min(steps, most)

    def train(self, steps: int, index: int, freeze_actor: bool = False) -> None:
        """Take gradient steps; with ``freeze_actor`` only the critic learns; the actor starts afresh."""
        # What a reward is worth depends on all others, so it is refreshed over the whole replay.
        filled = self._replay.size()
        self._replay.rewards[:filled, 0] = self._worth(self._rewards[:filled])
        with isolated(keyed_seed(self._seed, "train", index)):
            self._set_actor_rates(frozen=freeze_actor)
            self._model.train(steps, self._settings.batch_size)
        self._set_actor_rates(frozen=False)
        if freeze_actor:
            for name, optimizer in optimizers_of(self._model).items():
                if name != "critic_optimizer":
                    optimizer.state.clear()

    def clone(self, actions: NDArray[np.float32], sigma: float, index: int) -> None:
        """Make the actor, and its target, give ``actions: [T]`` at the observations in the replay.

        SAC's actor also takes over ``sigma``, in units of the action, as the width of its exploration.
        """
        filled = self._replay.size()
        targets = self._model.policy.scale_action(actions[:, None]).clip(-_CLONE_LIMIT, _CLONE_LIMIT)
        wanted = np.tile(targets, (filled // self._steps, 1))
        with isolated(keyed_seed(self._seed, "clone", index)):
            set_spread(self._model, sigma)
            self._fit_actor(self._replay.observations[:filled, 0], wanted, _CLONE_STEPS, _CLONE_LR)
        self._settle_target()

    def imitate(self, index: int) -> None:
        """Move the actor towards what the best episodes in the replay did, at what they observed."""
        filled = self._replay.size()
        episodes = self._rewards[:filled].reshape(-1, self._steps)[:, 0]
        best = np.argsort(-episodes, kind="stable")[: self._settings.elite_episodes]
        rows = (best[:, None] * self._steps + np.arange(self._steps)).ravel()
        wanted = self._replay.actions[rows, 0].clip(-_CLONE_LIMIT, _CLONE_LIMIT)
        with isolated(keyed_seed(self._seed, "imitate", index)):
            steps, lr = self._settings.imitation_steps, self._settings.actor_lr
            self._fit_actor(self._replay.observations[rows, 0], wanted, steps, lr)

    def plan(self, sigma: float, uniforms: tuple[float, ...]) -> Plan:
        """The actor as it is now, frozen: with noise of width ``sigma``, or SAC's own; at 0 its mean in both."""
        settings = self._settings
        layers = actor_layers(self._model)
        spread = spread_layer(self._model)
        if spread is None:
            return ActorPlan(layers, settings.step_code, sigma, uniforms, settings.algorithm)
        drawn = uniforms if sigma else (0.5,) * len(uniforms)
        return SquashedPlan(layers, spread, settings.step_code, drawn, settings.algorithm)

    def state(self) -> SearcherState:
        """Weights, target networks, optimizers, replay and counters; a snapshot."""
        arrays = {f"policy.{name}": copied(value) for name, value in self._model.policy.state_dict().items()}
        if isinstance(self._model, SAC):
            assert self._model.log_ent_coef is not None
            arrays["log_temperature"] = copied(self._model.log_ent_coef)
        for name, optimizer in optimizers_of(self._model).items():
            for parameter, moments in optimizer.state_dict()["state"].items():
                arrays |= {f"{name}.{parameter}.{key}": copied(value) for key, value in moments.items()}
        filled = self._replay.size()
        arrays |= {f"replay.{name}": getattr(self._replay, name)[:filled].copy() for name in _REPLAY_ARRAYS}
        arrays["replay.told_rewards"] = self._rewards[:filled].copy()
        return SearcherState(
            arrays,
            {
                "baseline": self._baseline,
                "told": self._told,
                "updates": self._model._n_updates,
                "replay_position": self._replay.pos,
                "replay_full": self._replay.full,
            },
        )

    def load(self, state: SearcherState) -> None:
        """Go on from a `state` taken with the same settings."""
        arrays, numbers = state.arrays, state.numbers
        weights = {name: torch.tensor(array) for name, array in under("policy", arrays).items()}
        self._model.policy.load_state_dict(weights)
        if isinstance(self._model, SAC):
            assert self._model.log_ent_coef is not None
            self._model.log_ent_coef.data = torch.tensor(arrays["log_temperature"])
        for name, optimizer in optimizers_of(self._model).items():
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for key, array in under(name, arrays).items():
                parameter, moment = key.split(".")
                moments.setdefault(int(parameter), {})[moment] = torch.tensor(array)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        filled = len(arrays["replay.told_rewards"])
        for name in _REPLAY_ARRAYS:
            getattr(self._replay, name)[:filled] = arrays[f"replay.{name}"]
        self._rewards[:filled] = arrays["replay.told_rewards"]
        self._baseline, self._told = number(numbers, "baseline", float), number(numbers, "told", int)
        self._model._n_updates = number(numbers, "updates", int)
        self._replay.pos = number(numbers, "replay_position", int)
        self._replay.full = number(numbers, "replay_full", bool)

    def learn_from(self, state: SearcherState) -> None:
        """Takes over actor, critic and targets of another learner; the replay stays empty.

        Raises:
            ValueError: If its networks have other shapes.
        """
        weights = {name: torch.tensor(array) for name, array in under("policy", state.arrays).items()}
        try:
            self._model.policy.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                "an agent can go on from one with the same networks and observations, but theirs differ: "
                "search with the same learning settings and as many costs"
            ) from error

    @property
    def _replay(self) -> ReplayBuffer:
        assert self._model.replay_buffer is not None
        return self._model.replay_buffer

    def _set_actor_rates(self, frozen: bool) -> None:
        # SAC's temperature answers to the actor's entropy, so it rests when the actor does.
        rates = {"actor_optimizer": self._settings.actor_lr, "temperature_optimizer": self._settings.critic_lr}
        for name, optimizer in optimizers_of(self._model).items():
            for group in optimizer.param_groups:
                if name in rates:
                    group["lr"] = 0.0 if frozen else rates[name]

    def _fit_actor(
        self, observations: NDArray[np.float32], actions: NDArray[np.float32], steps: int, lr: float
    ) -> None:
        """Supervised steps towards ``actions: [N, 1]`` in [-1, 1], by an optimizer of their own."""
        inputs, wanted = torch.from_numpy(observations), torch.from_numpy(actions)
        optimizer = torch.optim.Adam(self._model.actor.parameters(), lr=lr)
        for _ in range(steps):
            batch = torch.randint(len(inputs), (_CLONE_BATCH,))
            loss = torch.nn.functional.mse_loss(means(self._model, inputs[batch]), wanted[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            if loss.item() < _CLONE_ERROR:
                break

    def _settle_target(self) -> None:
        if isinstance(self._model, TD3):  # SAC has no target actor
            self._model.actor_target.load_state_dict(self._model.actor.state_dict())

    def _inputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return with_step_code(observations) if self._settings.step_code else observations

    def _worth(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        return normal_scores(rewards) if self._settings.rank_rewards else rewards - self._baseline


def number(numbers: dict[str, JSON], name: str, kind: type[_Number]) -> _Number:
    """``numbers[name]``, which must be of ``kind``."""
    value = numbers[name]
    if not isinstance(value, kind):
        raise ValueError(f"{name!r} of a saved state must be of type {kind.__name__}, but got {value!r}")
    return value


def under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of one part of a saved state, by their names within it."""
    return {name.removeprefix(f"{prefix}."): a for name, a in arrays.items() if name.startswith(f"{prefix}.")}
