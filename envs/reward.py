"""What an evaluation says, and the reward made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one pruned network achieves without fine-tuning.

    Attributes:
        accuracy: Mean metric over the images, a fraction.
        loss: Mean cross-entropy, None where targets are no class indices.
        costs: Cost name -> value in the cost's unit.
        images: Images scored.
        image_forwards: All images paid for, repair included (0: remembered from an earlier episode).
    """

    accuracy: float
    loss: float | None
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
    """Accuracy without fine-tuning (He et al., AMC, ECCV 2018: R_err up to a constant)."""
    return evaluation.accuracy


REWARDS: dict[str, Reward] = {"accuracy": accuracy}
