"""What a search needs beside its episodes, wherever it runs: full repair and scoring in full precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from amc.pool.pool import Pool
from amc.problem.dense import dense_outputs
from amc.problem.prepare import Prepared
from amc.scoring.scorer import Outputs, Score, Scorer
from amc.tasks.splits import Split
from envs.compression.compress import Compressor
from envs.network.inference import placed
from envs.parallel import return_memory
from envs.space.assignment import Assignment

SplitName = Literal["calibration", "validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tools:
    """Made once in a search; sent to each node for damage curves and judging, and once more after the episodes.

    Attributes:
        compressor: Repairs in full.
        scorer: Scores in full precision.
        splits: The task's data by name.
    """

    compressor: Compressor
    scorer: Scorer
    splits: dict[SplitName, Split]

    @classmethod
    def of(cls, prepared: Prepared, pool: Pool) -> Tools:
        """The tools of a search; what all workers need is computed here, once."""
        if pool.workers:
            prepared.compressor.get_ready()
        task = prepared.setup.task
        splits: dict[SplitName, Split] = {
            "calibration": task.calibration,
            "validation": task.validation,
            "test": task.test,
        }
        return cls(compressor=prepared.compressor, scorer=prepared.setup.scorer, splits=splits)

    def dense_outputs(self, prepared: Prepared) -> Outputs | None:
        """The dense network's outputs on validation images; charged. None where they are too many to keep."""
        split = self.splits["validation"]
        if (outputs := dense_outputs(prepared.setup, split)) is not None:
            prepared.ledger.charge(len(split))
        return outputs

    def rebuilt(self, assignment: Assignment, state: dict[str, Tensor] | None) -> nn.Module:
        """The network of an assignment with the weights that repair gave it; the dense one without weights."""
        if state is None:
            return self.compressor.network
        small = self.compressor.policy_of(assignment).apply(self.compressor.network, check_weights=False)
        small = placed(small, "cpu")  # where those weights are
        small.load_state_dict(state, strict=True)
        return small


class Repaired(NamedTuple):
    """A policy repaired in full and scored on the whole validation split.

    Attributes:
        state: Its weights, on the CPU.
        score: On validation images.
        image_forwards: What that took.
    """

    state: dict[str, Tensor]
    score: Score
    image_forwards: int


def repair_and_score(tools: Tools, dense: Outputs | None, assignment: Assignment) -> Repaired:
    """Repairs a policy in full and scores it on the whole validation split.

    Args:
        tools: Of the search.
        dense: Outputs of the dense network on validation images, None where they are too many to keep.
        assignment: What is decided.
    """
    small, forwards = tools.compressor.compress(tools.compressor.policy_of(assignment))
    score = score_whole(tools, dense, small, "validation")
    state = {name: tensor.detach().cpu() for name, tensor in placed(small, "cpu").state_dict().items()}
    return Repaired(state, score, forwards + len(score))


class Reported(NamedTuple):
    """A network to be scored: its assignment, its weights (None: the dense network's), on which split."""

    assignment: Assignment
    state: dict[str, Tensor] | None
    split: SplitName


def score_reported(tools: Tools, dense: Outputs | None, one: Reported) -> Score:
    """Scores a network on a whole split."""
    known = dense if one.split == "validation" else None
    return score_whole(tools, known, tools.rebuilt(one.assignment, one.state), one.split)


def score_whole(tools: Tools, dense: Outputs | None, network: nn.Module, name: SplitName) -> Score:
    """Scores a network on all images of a split."""
    split = tools.splits[name]
    score = tools.scorer(network, split, range(len(split)), dense)
    return_memory()
    return score
