"""From an assignment to an evaluation: the smaller network, quickly repaired, scored on the images of the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from amc.scoring.racing import JACKKNIFE_BLOCKS, Race
from amc.scoring.scorer import Score, Scorer
from amc.tasks.batches import kept
from amc.tasks.splits import ArraySplit, Split, SubsetSplit
from envs.compression.compress import Compressor
from envs.reward import Evaluation
from envs.space.assignment import Assignment
from envs.space.constraint import Constraint
from envs.space.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """`evaluate(assignment)` and nothing else: no memory, no ledger, and it pickles, so that workers can have one.

    Attributes:
        compressor: Makes the smaller network.
        scorer: Scores it.
        split: Where the images of the reward are from.
        images: Which of them.
        dense: Outputs of the dense network on them, a tensor for each chunk that is scored at once; None where they
            are too many to keep.
        constraint: Whose costs an evaluation holds.
        half: Repair in bfloat16.
        race: How images are saved, None: every policy is scored on all of them.
    """

    compressor: Compressor
    scorer: Scorer
    split: Split
    images: Sequence[int]
    dense: Sequence[Tensor] | None
    constraint: Constraint
    half: bool = False
    race: Race | None = None

    def __call__(self, assignment: Assignment) -> Evaluation:
        """Metric of the assignment's network without fine-tuning, after quick repair."""
        small, repair_forwards = self.compressor.compress(self.policy(assignment), quick=True, half=self.half)
        costs = self.constraint.costs(assignment.values)
        first = self.score(small, 0, len(self.images) if self.race is None else self.race.first)
        if self.race is None:
            return first.evaluation(costs, len(first) + repair_forwards)
        begun = replace(first.evaluation(costs, len(first) + repair_forwards), blocks=first.blocks(JACKKNIFE_BLOCKS))

        def finish() -> Evaluation:
            score = first.followed_by(self.score(small, len(first), len(self.images)))
            return score.evaluation(costs, len(score) + repair_forwards)

        return self.race.settled(begun, finish)

    def policy(self, assignment: Assignment) -> Policy:
        """The policy of an assignment."""
        return self.compressor.policy_of(assignment)

    def against(self, bar: Evaluation | None) -> Measurement:
        """The same, sparing policies that cannot pass the bar some images."""
        return self if self.race is None else replace(self, race=replace(self.race, bar=bar))

    def score(self, network: nn.Module, start: int, stop: int) -> Score:
        """Scores a network on the images from `start` on, which is 0 or where the race's first images end."""
        dense = None if self.dense is None else self.dense[-(-start // self.scorer.chunk) :]
        return self.scorer(network, self.split, self.images[start:stop], dense)

    def excerpt(self) -> Measurement:
        """The same with nothing else: no other images (where the split holds them in memory), no full repair."""
        quick = replace(self, compressor=self.compressor.quick_only())
        split = excerpt(self.split, self.images)
        return quick if split is None else replace(quick, split=split, images=range(len(split)))


def excerpt(split: Split, indices: Sequence[int]) -> Split | None:
    """A split of these samples alone; None where the data is not in memory but loaded sample by sample."""
    if isinstance(split, SubsetSplit):
        return excerpt(split.split, split.indices[np.asarray(indices)].tolist())
    if isinstance(split, ArraySplit):
        chosen = np.asarray(indices)
        return replace(split, inputs=kept(split.inputs, chosen), targets=kept(split.targets, chosen))
    return None
