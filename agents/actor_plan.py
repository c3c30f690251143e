"""The plan of a learned episode: a frozen actor with truncated-normal noise around it, in plain numpy.

Apart from the learner, so that a worker that plays it loads no deep-learning library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.noise import truncated_normal
from agents.searcher import FloatArray

Layers: TypeAlias = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ActorPlan:
    """An actor's actions with exploration noise.

    Attributes:
        layers: per linear layer its weight ``[out, in]`` and bias ``[out]``; never written to.
        step_code: whether the actor reads `with_step_code` or the plain observation.
        sigma: width of the noise, in units of the action.
        uniforms: ``[T]`` draws from [0, 1], the quantile of each step's noise.
        label: who proposed it.
    """

    layers: Layers
    step_code: bool
    sigma: float
    uniforms: tuple[float, ...]
    label: str

    def __call__(self, step: int, observation: FloatArray) -> float:
        """The noisy action in [0, 1]."""
        inputs = np.asarray(observation, dtype=np.float32)
        if self.step_code:
            inputs = np.concatenate([inputs, np.eye(len(self.uniforms), dtype=np.float32)[step]])
        return truncated_normal(actor_mean(self.layers, inputs), self.sigma, self.uniforms[step])


def with_step_code(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[T, D]`` observations with one indicator per step appended, ``[T, D + T]``."""
    return np.concatenate([observations, np.eye(len(observations), dtype=np.float32)], axis=1)


def actor_mean(layers: Layers, inputs: NDArray[np.float32]) -> float:
    """The actor's own action in [0, 1]: ReLU layers, then tanh mapped from [-1, 1]."""
    for weight, bias in layers[:-1]:
        inputs = np.maximum(_affine(weight, inputs, bias), 0.0)
    weight, bias = layers[-1]
    return float((np.tanh(_affine(weight, inputs, bias)[0]) + 1.0) / 2.0)


def _affine(weight: NDArray[np.float32], inputs: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[Any]:
    # einsum, not @: BLAS may add in another order with another number of threads.
    result: NDArray[Any] = np.einsum("oi,i->o", weight, inputs) + bias
    return result
