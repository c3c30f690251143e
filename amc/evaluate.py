"""Scoring of networks, and the counted `evaluate(policy)` that environment and search are handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data import Split
from amc.tasks import Metric, describe
from envs.compress import Compressor
from envs.graph import Graph
from envs.inference import channels_last, inference_copy
from envs.parallel import map_chunks
from envs.policy import Policy
from envs.reward import Evaluation


class Score(NamedTuple):
    """How a network does on some images."""

    accuracy: float
    loss: float | None
    images: int


@dataclass(slots=True)
class Effort:
    """What a search has paid so far (DESIGN law 3); grows only.

    Attributes:
        image_forwards: Forward passes of one image each: calibration, sensitivity and validation alike.
        evaluations: Policies compressed and scored.
    """

    image_forwards: int = 0
    evaluations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores networks of one task.

    Attributes:
        graph: Operator graph of the dense network, for folding.
        metric: Score per sample.
        chunk: Images per forward pass.
        device: "cpu" or "cuda".
    """

    graph: Graph
    metric: Metric
    chunk: int = 250
    device: str = "cpu"

    def __call__(self, network: nn.Module, split: Split, indices: Sequence[int]) -> Score:
        """Mean metric and cross-entropy over the chosen images of a split."""
        fast = inference_copy(network, self.graph).to(self.device)
        parts = [indices[start : start + self.chunk] for start in range(0, len(indices), self.chunk)]

        def one(part: Sequence[int]) -> tuple[float, float | None]:
            inputs, targets = read(split, part)
            with torch.no_grad():
                outputs = fast(channels_last(inputs.to(self.device))).cpu()
            return self._sum(outputs, targets), _cross_entropy(outputs, targets)

        hits, losses = zip(*map_chunks(one, parts), strict=True)
        known = [loss for loss in losses if loss is not None]
        loss = sum(known) / len(indices) if len(known) == len(losses) else None
        return Score(sum(hits) / len(indices), loss, len(indices))

    def _sum(self, outputs: Tensor, targets: Tensor) -> float:
        """Summed metric; what the user's metric raises, or a value that is no number, becomes one line."""
        try:
            value = float(self.metric(outputs, targets).double().sum())
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"a metric must score every batch, but raised {describe(error)}: correct it") from error
        if value != value:
            raise ValueError("a metric must return numbers, but returned NaN for some image: score it 0 instead")
        return value


def read(split: Split, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One batch of a split; what the user's dataset or transform raises becomes one line."""
    try:
        return split.batch(indices)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"data must give the samples asked for, but raised {describe(error)}: correct the dataset or its transform"
        ) from error


class Evaluator:
    """`evaluate(policy)`: compress, score on fixed images, count. Remembers widths it has seen."""

    def __init__(
        self,
        compressor: Compressor,
        score: Callable[[nn.Module], Score],
        costs: Callable[[Policy], dict[str, float]],
        effort: Effort,
    ) -> None:
        """Holds what an evaluation needs.

        Args:
            compressor: Makes the smaller network.
            score: Scores it on the images of the reward.
            costs: Costs of a policy under every budget.
            effort: The ledger to charge.
        """
        self._compressor, self._score, self._costs, self._effort = compressor, score, costs, effort
        self._seen: dict[tuple[int, ...], Evaluation] = {}

    def __call__(self, policy: Policy) -> Evaluation:
        """Accuracy of the policy's network without fine-tuning."""
        key = tuple(policy.widths().values())
        if key in self._seen:
            known = self._seen[key]
            return Evaluation(
                accuracy=known.accuracy, loss=known.loss, costs=known.costs, images=known.images, image_forwards=0
            )
        small, repair_forwards = self._compressor.compress(policy)
        score = self._score(small)
        evaluation = Evaluation(
            accuracy=score.accuracy,
            loss=score.loss,
            costs=self._costs(policy),
            images=score.images,
            image_forwards=score.images + repair_forwards,
        )
        self._effort.image_forwards += evaluation.image_forwards
        self._effort.evaluations += 1
        self._seen[key] = evaluation
        return evaluation


def _cross_entropy(outputs: Tensor, targets: Tensor) -> float | None:
    """Summed cross-entropy of class scores [B, K, ...], None where targets are no class indices."""
    fits = outputs.ndim >= 2 and targets.shape == (len(outputs), *outputs.shape[2:])
    if not fits or targets.is_floating_point():
        return None
    loss = F.cross_entropy(outputs.float(), targets.long(), reduction="none").double()
    value = float(loss.flatten(1).mean(dim=1).sum() if loss.ndim > 1 else loss.sum())
    return value if value == value and abs(value) != float("inf") else None
