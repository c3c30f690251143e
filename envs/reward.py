"""What an evaluation says, and the reward made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one pruned network achieves without fine-tuning.

    Attributes:
        accuracy: Mean metric over the images, a fraction.
        loss: Mean cross-entropy, None where targets are no class indices.
        soft_loss: Mean cross-entropy of the softened class scores, None likewise.
        costs: Cost name -> value in the cost's unit.
        images: Images scored.
        image_forwards: All images paid for, repair included (0: remembered from an earlier episode).
    """

    accuracy: float
    loss: float | None
    soft_loss: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    images: int
    image_forwards: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Reads `to_json` back."""
        return cls(**data)


Reward = Callable[[Evaluation], float]


def accuracy(evaluation: Evaluation) -> float:
    """Accuracy without fine-tuning (He et al., AMC, ECCV 2018: -Error, up to a constant)."""
    return evaluation.accuracy


def error_log_cost(evaluation: Evaluation) -> float:
    """-Error x log(cost), for searches that may go below the budget (He et al., AMC, ECCV 2018, section 3.4).

    The cost is the first budget's; only what lowers error *and* cost is better for sure.
    """
    cost = next(iter(evaluation.costs.values()))
    return -(1.0 - evaluation.accuracy) * math.log(max(cost, 1.0))


def loss(evaluation: Evaluation) -> float:
    """Cross-entropy, negated.

    Raises:
        ValueError: If the task's targets are no class indices.
    """
    return -_known("loss", evaluation.loss)


def soft_loss(evaluation: Evaluation) -> float:
    """Cross-entropy of the softened class scores, negated: the steadiest of these rewards.

    Accuracy on some thousand images counts a few flipped ones, and the plain loss is ruled by the few images
    that a trained network is confidently wrong on; rank correlations with the confirmed accuracy stand in
    experiments/results/objective.md.

    Raises:
        ValueError: If the task's targets are no class indices.
    """
    return -_known("soft_loss", evaluation.soft_loss)


def _known(name: str, value: float | None) -> float:
    if value is None:
        raise ValueError(
            f"the reward {name!r} needs class scores and classes, but this task has none: use --reward accuracy"
        )
    return value


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "error_log_cost": error_log_cost,
    "loss": loss,
    "soft_loss": soft_loss,
}
