"""Scoring of networks, and the counted `evaluate(policy)` that environment and search are handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.scoring.racing import BLOCKS, Race
from amc.scoring.scorer import Score, Scorer
from amc.tasks.splits import ArraySplit, Split, SubsetSplit
from envs.compression.compress import Compressor
from envs.reward import Evaluation
from envs.space.constraint import Constraint
from envs.space.policy import Policy
from envs.space.sites import encode
from hw_profiles.patterns import parse_pattern


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
class Measurement:
    """`evaluate(policy)` and nothing else: no memory, no ledger, and it pickles, so that workers can have one.

    Attributes:
        compressor: Makes the smaller network.
        scorer: Scores it.
        split: Where the images of the reward are from.
        images: Which of them.
        dense: Outputs of the dense network on them, None where they are too many to keep.
        constraint: Whose costs are told.
        half: Repair in bfloat16.
        race: How images are saved, None: every policy is scored on all of them.
    """

    compressor: Compressor
    scorer: Scorer
    split: Split
    images: Sequence[int]
    dense: Tensor | None
    constraint: Constraint
    half: bool = False
    race: Race | None = None

    def __call__(self, policy: Policy) -> Evaluation:
        """Accuracy of the policy's network without fine-tuning, after quick repair."""
        small, repair_forwards = self.compressor.compress(policy, quick=True, half=self.half)
        costs = self.constraint.costs(encode(self.constraint.costing.sites, policy.widths(), policy.patterns()))
        first = self._score(small, 0, len(self.images) if self.race is None else self.race.first)
        if self.race is None:
            return first.evaluation(costs, len(first.each) + repair_forwards)
        begun = replace(first.evaluation(costs, len(first.each) + repair_forwards), blocks=first.blocks(BLOCKS))

        def finish() -> Evaluation:
            score = first.followed_by(self._score(small, len(first.each), len(self.images)))
            return score.evaluation(costs, len(score.each) + repair_forwards)

        return self.race.settled(begun, finish)

    def against(self, bar: Evaluation | None) -> Measurement:
        """The same, sparing policies that cannot pass the bar some images."""
        return self if self.race is None else replace(self, race=replace(self.race, bar=bar))

    def _score(self, network: nn.Module, start: int, stop: int) -> Score:
        dense = None if self.dense is None else self.dense[start:stop]
        return self.scorer(network, self.split, self.images[start:stop], dense)

    def excerpt(self) -> Measurement:
        """The same with nothing else: no other images (where the split holds them in memory), no full repair."""
        quick = replace(self, compressor=self.compressor.quick_only())
        split = excerpt(self.split, self.images)
        return quick if split is None else replace(quick, split=split, images=range(len(split)))


Key: TypeAlias = tuple[int, ...]
"""Widths of all units and patterns of all layers, by which an evaluation is remembered."""


def key_of(policy: Policy) -> Key:
    """Widths of all units; behind them, where any layer has one, the patterns of all layers."""
    codes = [parse_pattern(layer.pattern).code for layer in policy.layers] if policy.patterns() else []
    return (*policy.widths().values(), *codes)


class Evaluator:
    """The counted `evaluate(policy)`: remembers widths it has seen, and charges each once."""

    def __init__(self, measure: Callable[[Policy], Evaluation], effort: Effort) -> None:
        """Takes what evaluates, and the ledger to charge."""
        self._measure, self._effort = measure, effort
        self._seen: dict[Key, Evaluation] = {}

    def __call__(self, policy: Policy) -> Evaluation:
        """Accuracy of the policy's network without fine-tuning."""
        key = key_of(policy)
        return self.account(key, None if self.knows(key) else self._measure(policy))

    def knows(self, key: Key) -> bool:
        """Whether these widths were evaluated before."""
        return key in self._seen

    def known(self) -> NDArray[np.int32]:
        """[K, U] all widths evaluated so far."""
        longest = max(map(len, self._seen), default=0)  # keys of dense layers are short
        return np.asarray([(*key, *[0] * (longest - len(key))) for key in self._seen], dtype=np.int32)

    def account(self, key: Key, evaluation: Evaluation | None) -> Evaluation:
        """Charges an evaluation of new widths and remembers it; of known ones gives the first, free of charge.

        Args:
            key: Widths of all units.
            evaluation: Made wherever; None where it is remembered.
        """
        if key in self._seen:
            return replace(self._seen[key], image_forwards=0)
        assert evaluation is not None, "widths that nobody evaluated"
        self._effort.image_forwards += evaluation.image_forwards
        self._effort.evaluations += 1
        self._seen[key] = evaluation
        return evaluation

    def remember(self, policy: Policy, evaluation: Evaluation) -> None:
        """Takes over an evaluation of an earlier process, without charging it again."""
        self._seen.setdefault(key_of(policy), evaluation)


def excerpt(split: Split, indices: Sequence[int]) -> Split | None:
    """A split of these samples alone; None where the data is not in memory but loaded sample by sample."""
    if isinstance(split, SubsetSplit):
        return excerpt(split.split, split.indices[np.asarray(indices)].tolist())
    if isinstance(split, ArraySplit):
        chosen = np.asarray(indices)
        own = (array[chosen] for array in (split.inputs, split.targets))
        # A memory map gives maps; a tensor stays one, since numpy does not know all of its types.
        inputs, targets = (rows if isinstance(rows, Tensor) else np.asarray(rows) for rows in own)
        return replace(split, inputs=inputs, targets=targets)
    return None
