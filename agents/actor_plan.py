"""The plans of a learned episode: a frozen actor and its exploration, in plain numpy.

Apart from the learner, so that a worker that plays them loads no deep-learning library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.noise import normal_quantile, truncated_normal
from agents.searcher import FloatArray

Layer: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
Layers: TypeAlias = tuple[Layer, ...]
_LOG_STD_RANGE = -20.0, 2.0  # as in stable-baselines3's SAC


@dataclass(frozen=True, slots=True, eq=False)
class ActorPlan:
    """A deterministic actor (DDPG, TD3) with truncated-normal noise around it.

    Attributes:
        layers: per linear layer its weight ``[out, in]`` and bias ``[out]``; never written to.
        step_code: whether the actor reads `with_step_code` or the plain observation.
        sigma: width of the noise, in units of the action; 0 plays the actor itself.
        uniforms: ``[T]`` draws from [0, 1], the quantile of each step's noise.
        label: the searcher or start that proposed it.
    """

    layers: Layers
    step_code: bool
    sigma: float
    uniforms: tuple[float, ...]
    label: str

    def __call__(self, step: int, observation: FloatArray) -> float:
        """The noisy action in [0, 1]."""
        inputs = _inputs(observation, step, len(self.uniforms) if self.step_code else 0)
        return truncated_normal(actor_mean(self.layers, inputs), self.sigma, self.uniforms[step])


@dataclass(frozen=True, slots=True, eq=False)
class SquashedPlan:
    """A stochastic actor (SAC): tanh of a normal draw whose mean and width are both learned.

    Attributes:
        layers: as in `ActorPlan`; the last one gives the mean before tanh.
        spread: weight ``[1, H]`` and bias ``[1]`` from the last hidden layer to the log standard deviation.
        step_code: whether the actor reads `with_step_code` or the plain observation.
        uniforms: ``[T]`` draws from [0, 1], the quantile of each step's draw; 0.5 plays the mean.
        label: the searcher or start that proposed it.
    """

    layers: Layers
    spread: Layer
    step_code: bool
    uniforms: tuple[float, ...]
    label: str

    def __call__(self, step: int, observation: FloatArray) -> float:
        """The drawn action in [0, 1]."""
        inputs = _inputs(observation, step, len(self.uniforms) if self.step_code else 0)
        hidden = _hidden(self.layers, inputs)
        mean = float(_affine(self.layers[-1], hidden)[0])
        width = float(np.exp(np.clip(_affine(self.spread, hidden)[0], *_LOG_STD_RANGE)))
        return float((np.tanh(mean + width * normal_quantile(self.uniforms[step])) + 1.0) / 2.0)


def with_step_code(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[T, D]`` observations with one indicator per step appended, ``[T, D + T]``."""
    return np.concatenate([observations, np.eye(len(observations), dtype=np.float32)], axis=1)


def actor_mean(layers: Layers, inputs: NDArray[np.float32]) -> float:
    """The actor's own action in [0, 1]: ReLU layers, then tanh mapped from [-1, 1]."""
    return float((np.tanh(_affine(layers[-1], _hidden(layers, inputs))[0]) + 1.0) / 2.0)


def _inputs(observation: FloatArray, step: int, coded_steps: int) -> NDArray[np.float32]:
    code = np.zeros(coded_steps, np.float32)
    code[step : step + 1] = 1.0
    return np.concatenate([np.asarray(observation, dtype=np.float32), code])


def _hidden(layers: Layers, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    for layer in layers[:-1]:
        inputs = np.maximum(_affine(layer, inputs), 0.0)
    return inputs


def _affine(layer: Layer, inputs: NDArray[np.float32]) -> NDArray[Any]:
    weight, bias = layer
    # einsum, not @: BLAS may add in another order with another number of threads.
    result: NDArray[Any] = np.einsum("oi,i->o", weight, inputs) + bias
    return result
