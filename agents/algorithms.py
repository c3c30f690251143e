"""stable-baselines3's DDPG, TD3 and SAC made to be driven from outside, and the isolation from global randomness.

Nothing of replay, schedules or exploration stands here: see `agents.learner` and `agents.ddpg`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.sac.policies import Actor as SquashedActor

from agents.actor_plan import Layers
from agents.settings import Algorithm

Model: TypeAlias = "TD3 | SAC"  # stable-baselines3's DDPG is a TD3 with its three tricks off
_FIRST_TEMPERATURE = 0.1  # of SAC: at 1 the entropy outweighs rewards of unit variance for the whole of a short search


class _OwnRates:
    """Leaves each optimizer its own learning rate; the library would set one for all."""

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        pass


class _DDPG(_OwnRates, DDPG): ...


class _TD3(_OwnRates, TD3): ...


class _SAC(_OwnRates, SAC): ...


ALGORITHMS: dict[Algorithm, tuple[type[Model], dict[str, Any]]] = {
    "ddpg": (_DDPG, {}),
    "td3": (_TD3, {}),
    "sac": (_SAC, {"ent_coef": f"auto_{_FIRST_TEMPERATURE}"}),
}


def make_model(algorithm: Algorithm, observation_size: int, hidden: tuple[int, ...], **settings: Any) -> Model:
    """A model with a replay but no environment, that logs to nowhere.

    Args:
        algorithm: which of `ALGORITHMS`.
        observation_size: D, what the networks read.
        hidden: widths of the hidden layers.
        settings: passed to the library's constructor.
    """
    kind, own = ALGORITHMS[algorithm]
    model = kind(
        "MlpPolicy",
        _Spaces(observation_size),
        policy_kwargs={"net_arch": list(hidden), "optimizer_kwargs": {"fused": True}},  # a sixth less time per step
        device="cpu",  # networks this small are slower elsewhere, and less reproducible
        **own,
        **settings,
    )
    model.set_logger(Logger(None, []))  # train() records its losses
    return model


def optimizers_of(model: Model) -> dict[str, torch.optim.Optimizer]:
    """Every optimizer by name; SAC has one more, for its entropy temperature."""
    optimizers: dict[str, torch.optim.Optimizer] = {
        "actor_optimizer": model.actor.optimizer,
        "critic_optimizer": model.critic.optimizer,
    }
    if isinstance(model, SAC):
        assert model.ent_coef_optimizer is not None
        optimizers["temperature_optimizer"] = model.ent_coef_optimizer
    return optimizers


def means(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    """``[B, 1]`` the actor's noiseless actions in [-1, 1], with gradients."""
    if isinstance(model.actor, SquashedActor):
        return torch.tanh(model.actor.get_action_dist_params(inputs)[0])
    actions: torch.Tensor = model.actor(inputs)
    return actions


def actor_layers(model: Model) -> Layers:
    """A frozen copy of the linear layers from the observation to the mean, the last one before its tanh."""
    actor = model.actor
    modules = [*actor.latent_pi, actor.mu] if isinstance(actor, SquashedActor) else list(actor.mu)
    linears = [module for module in modules if isinstance(module, torch.nn.Linear)]
    return tuple((copied(linear.weight), copied(linear.bias)) for linear in linears)


def spread_layer(model: Model) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """SAC: a frozen copy of the layer from the last hidden one to the log standard deviation before tanh."""
    head = getattr(model.actor, "log_std", None)
    return None if head is None else (copied(head.weight), copied(head.bias))


def set_spread(model: Model, sigma: float) -> None:
    """SAC: give the actor one width of exploration everywhere, ``sigma`` in units of the action at 0.5."""
    head = getattr(model.actor, "log_std", None)
    if head is not None:
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(float(np.log(2 * max(sigma, 1e-6))))  # actions are (tanh + 1) / 2


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global random states that stable-baselines3 draws from, and put them back afterwards.

    Inside, torch has one thread and records gradients, whatever the caller's settings.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators as well
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads(threads)


def copied(tensor: torch.Tensor) -> NDArray[Any]:
    """A numpy copy."""
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array


class _Spaces(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Declares the spaces, which is all that is asked of it: episodes are played elsewhere."""

    def __init__(self, observation_size: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
