"""What an evaluation says, and the reward made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from envs.measure import ACCURACY, Measure


class Block(NamedTuple):
    """Means over some of the images: metric, cross-entropy, squared difference from the dense outputs."""

    metric: float
    loss: float | None
    output_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one pruned network achieves without fine-tuning.

    Attributes:
        metric: The task's metric over the images (`measure` says what it is).
        loss: Mean cross-entropy, None where targets are no class indices.
        output_error: Mean squared difference from the dense network's outputs, None where those are not kept.
        costs: Cost name -> value in the cost's unit.
        images: Images scored.
        image_forwards: All images paid for, repair included (0: remembered from an earlier episode).
        blocks: The images that every policy is scored on, in parts of one size; empty where no images are saved.
        measure: Name, direction and unit of the metric.
    """

    metric: float
    loss: float | None
    output_error: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    images: int
    image_forwards: int
    blocks: tuple[Block, ...] = ()
    measure: Measure = ACCURACY

    @property
    def accuracy(self) -> float:
        """The metric, by the name that it has for most tasks."""
        return self.metric

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary; the metric by its name, blocks only where there are any."""
        return {
            self.measure.name: self.metric,
            "loss": self.loss,
            "output_error": self.output_error,
            "costs": dict(self.costs),
            "images": self.images,
            "image_forwards": self.image_forwards,
            **({"blocks": [list(block) for block in self.blocks]} if self.blocks else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], measure: Measure = ACCURACY) -> Evaluation:
        """Reads `to_json` back; other keys are passed over.

        Raises:
            KeyError: If one is missing.
        """
        fields = ("loss", "output_error", "costs", "images", "image_forwards")
        return cls(
            metric=data[measure.name],
            blocks=tuple(Block(*block) for block in data.get("blocks", ())),
            measure=measure,
            **{name: data[name] for name in fields},
        )


Reward = Callable[[Evaluation], float]


def accuracy(evaluation: Evaluation) -> float:
    """The metric without fine-tuning (He et al., AMC, ECCV 2018: -Error, up to a constant); negated where lower is
    better.
    """
    return evaluation.measure.signed(evaluation.metric)


def error_log_cost(evaluation: Evaluation) -> float:
    """-Error x log(cost), for searches that may go below the budget (He et al., AMC, ECCV 2018, section 3.4).

    The cost is the first budget's; only what lowers error *and* cost is better for sure.

    Raises:
        ValueError: If the metric has no error bounded by 1.
    """
    cost = next(iter(evaluation.costs.values()))
    return -evaluation.measure.error(evaluation.metric) * math.log(max(cost, 1.0))


def error_log_params(evaluation: Evaluation) -> float:
    """-Error x log(parameters left), AMC's reward for fine-grained pruning (He et al., ECCV 2018, section 3.4).

    Raises:
        ValueError: If the parameters are not among the costs, or the metric has no error bounded by 1.
    """
    if "params" not in evaluation.costs:
        raise ValueError(
            "the reward 'error_log_params' needs a budget on parameters, but got none: add --constraint params=0.2"
        )
    return -evaluation.measure.error(evaluation.metric) * math.log(max(evaluation.costs["params"], 1.0))


def loss(evaluation: Evaluation) -> float:
    """Cross-entropy, negated.

    Raises:
        ValueError: If the task's targets are no class indices.
    """
    if evaluation.loss is None:
        raise ValueError(
            "the reward 'loss' needs class scores and classes, but this task has none: use --reward accuracy"
        )
    return -evaluation.loss


def output_error(evaluation: Evaluation) -> float:
    """Mean squared difference from the dense network's outputs, negated: the steadiest of these rewards.

    Accuracy on some thousand images counts a few flipped ones, and losses are ruled by the few images that a
    trained network is confidently wrong on; how well each predicts the confirmed accuracy stands in
    experiments/results/objective.md.

    Raises:
        ValueError: If the dense network's outputs were not kept.
    """
    if evaluation.output_error is None:
        raise ValueError(
            "the reward 'output_error' needs the dense network's outputs, but they are too many to keep: "
            "use --reward accuracy"
        )
    return -evaluation.output_error


def accuracy_latency(evaluation: Evaluation, target_ms: float = 1.0, weight: float = 0.07) -> float:
    """Accuracy x (target / latency)^weight (Tan et al., MnasNet, CVPR 2019, equation 2, with their -0.07).

    The target is the latency budget; below it the factor pays for being faster still.

    Args:
        evaluation: With a cost `latency_ms`.
        target_ms: Latency at which the factor is 1; a search passes its budget.
        weight: Twice the latency is paid for by 2^weight times the accuracy (5 %).

    Raises:
        ValueError: If the latency is not among the costs, or the metric has no error bounded by 1.
    """
    if "latency_ms" not in evaluation.costs:
        raise ValueError(
            "the reward 'accuracy_latency' needs a latency budget: add --constraint latency=0.65 --profile"
        )
    right = 1.0 - evaluation.measure.error(evaluation.metric)
    return float(right * (target_ms / evaluation.costs["latency_ms"]) ** weight)


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "accuracy_latency": accuracy_latency,
    "error_log_cost": error_log_cost,
    "error_log_params": error_log_params,
    "loss": loss,
    "output_error": output_error,
}
