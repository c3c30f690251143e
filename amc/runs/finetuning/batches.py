"""Which samples make a batch: an order of its own for every epoch, keyed by the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.searcher import keyed_generator, keyed_seed
from amc.runs.finetuning.settings import FinetuneConfig
from amc.scoring.scorer import read
from amc.tasks.splits import Split
from amc.tasks.task import Augment
from envs.network.inputs import Inputs


@dataclass(frozen=True, slots=True)
class World:
    """Who trains together.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1


ALONE = World()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batches:
    """The training split, epoch by epoch.

    Attributes:
        split: Where samples are from.
        augment: Changes a batch of inputs, None: nothing does.
        size: Samples per step, over all processes together.
        seed: Of order and augmentation.
        world: Of whose batches this process takes its part.
    """

    split: Split
    augment: Augment | None
    size: int
    seed: int
    world: World

    @classmethod
    def of(cls, config: FinetuneConfig, split: Split, augment: Augment | None, world: World) -> Batches:
        """Batches as the configuration has them.

        Raises:
            ValueError: If a process would have no sample.
        """
        if len(split) < world.size or config.batch < world.size:
            raise ValueError(
                f"every worker needs a sample of each batch, but {world.size} share batches of {config.batch} from "
                f"{len(split)} samples: take fewer workers or larger batches"
            )
        return cls(split=split, augment=augment, size=min(config.batch, len(split)), seed=config.seed, world=world)

    @property
    def steps(self) -> int:
        """Steps per epoch; samples that fill no batch wait for another epoch."""
        return len(self.split) // self.size

    def epoch(self, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and targets of every step of an epoch."""
        order = keyed_generator(self.seed, "finetune order", number).permutation(len(self.split))
        for step in range(self.steps):
            mine = order[step * self.size : (step + 1) * self.size][self.world.rank :: self.world.size]
            inputs, targets = read(self.split, mine.tolist())
            if self.augment is not None:
                place = (number * self.steps + step) * self.world.size + self.world.rank
                generator = torch.Generator().manual_seed(keyed_seed(self.seed, "finetune augmentation", place))
                inputs = self.augment(inputs, generator)
            yield inputs, targets
