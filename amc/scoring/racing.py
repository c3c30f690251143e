"""Fewer images for the same decision: a policy that cannot be among the best is not scored on all images of the reward.

Every policy is scored on the reward's first images. Its reward there is compared with that of the worst of the best
(the *bar*) on the same images, so that what makes an image easy or hard for both cancels. Only if the bar may be
passed, the other images are spent. What is not scored to the end is told as the bar's value on all images plus the
difference on the first ones (a control variate), so that all rewards stand on the same scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from envs.reward import Block, Evaluation, Reward

JACKKNIFE_BLOCKS = 20
"""Parts of the first images that are left out in turn (delete-one jackknife)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How images are saved.

    Attributes:
        first: Images on which every policy is scored.
        error: Probability with which a policy exactly as good as the bar may be given up.
        reward: By what policies are compared.
        bar: The evaluation to be passed; None while there are too few.
    """

    first: int
    error: float
    reward: Reward
    bar: Evaluation | None = None

    def lost(self, evaluation: Evaluation) -> bool:
        """Whether a policy, scored on the first images, can no longer pass the bar."""
        if self.bar is None:
            return False
        without = [
            self._reward(evaluation, _rest(evaluation.blocks, k)) - self._reward(self.bar, _rest(self.bar.blocks, k))
            for k in range(len(self.bar.blocks))
        ]
        count = len(without)
        spread = float(np.sqrt((count - 1) * np.var(without)))  # Efron and Stein (1981), delete-one jackknife
        mean = self._reward(evaluation, evaluation.blocks) - self._reward(self.bar, self.bar.blocks)
        return mean + _quantile(1 - self.error, count - 1) * spread < 0

    def estimate(self, evaluation: Evaluation) -> Evaluation:
        """What a policy that was given up would presumably have achieved on all images."""
        assert self.bar is not None
        here, there, bar = mean_block(evaluation.blocks), mean_block(self.bar.blocks), self.bar
        return replace(
            evaluation,
            metric=bar.measure.bounded(bar.metric + here.metric - there.metric),
            loss=_moved(bar.loss, here.loss, there.loss),
            output_error=_moved(bar.output_error, here.output_error, there.output_error),
        )

    def settled(self, begun: Evaluation, finish: Callable[[], Evaluation]) -> Evaluation:
        """What is told of a policy: an estimate where it has lost, otherwise its evaluation on all images.

        Args:
            begun: On the first images, with their blocks.
            finish: Scores the others too.
        """
        return self.estimate(begun) if self.lost(begun) else replace(finish(), blocks=begun.blocks)

    def _reward(self, evaluation: Evaluation, blocks: Sequence[Block]) -> float:
        block = mean_block(blocks)
        return self.reward(replace(evaluation, metric=block.metric, loss=block.loss, output_error=block.output_error))


def bar(evaluations: Sequence[tuple[float, Evaluation]], place: int, images: int) -> Evaluation | None:
    """The evaluation that a newcomer must beat to be among the best.

    Args:
        evaluations: (reward, evaluation) of the policies so far, each policy once.
        place: How many best ones there are.
        images: All images of the reward; a policy scored on fewer is no bar.
    """
    ranked = sorted(evaluations, key=lambda pair: -pair[0])
    full = [evaluation for _, evaluation in ranked if evaluation.images == images]
    return full[place - 1] if len(full) >= place else None


def mean_block(blocks: Sequence[Block]) -> Block:
    """Mean over blocks of equal size."""
    columns = zip(*blocks, strict=True)
    return Block(*(None if None in column else float(np.mean(column)) for column in columns))  # type: ignore[arg-type]


def _rest(blocks: Sequence[Block], left_out: int) -> Sequence[Block]:
    return [*blocks[:left_out], *blocks[left_out + 1 :]]


def _moved(bar: float | None, here: float | None, there: float | None) -> float | None:
    if bar is None or here is None or there is None:
        return None
    return max(0.0, bar + here - there)


@cache
def _quantile(probability: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(probability, freedom))
