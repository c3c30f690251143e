"""The constant of a branch that is gone: what the addition behind it would lack, in the mean, for each channel.

Layer-wise, the mean of what the dense branch gives; in sequential repair, the mean of the dense network's sum less the
pruned network's shortcut, so that it also makes up for the drift of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.copies import functional_copy
from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.network.interpreter import Interpreter
from envs.parallel import map_chunks
from envs.regression.rows import take_outputs
from envs.regression.shrinkage import FOLDS
from envs.regression.statistics import Sampling
from envs.units.branches.branch import Branch, constant_of
from envs.units.branches.trial import VerifiedBranch


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSums:
    """One branch of the dense network in one chunk.

    Attributes:
        rows: Positions that were looked at.
        own: [C] float64 sum of what the branch gives there.
        shortcut: [C] float64 sum of what it is added to.
    """

    rows: int
    own: Tensor
    shortcut: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookout:
    """Where one branch is looked at: the positions that count of its last layer.

    Attributes:
        layer: That layer, of the dense network.
        name: Its name.
        number: Its number, for the draw.
        axis: Where its outputs lie in what the branch gives.
        sampling: How positions are drawn.
    """

    layer: nn.Module
    name: str
    number: int
    axis: int
    sampling: Sampling

    def rows(self, values: Tensor, chunk: int) -> Tensor:
        """[m, C] what has the branch's shape, at the sampled positions of a chunk."""
        values = values.movedim(self.axis, -1 if isinstance(self.layer, nn.Linear) else 1)
        at = self.sampling.draw(self.layer, self.name, values, self.number, chunk)
        return take_outputs(self.layer, values, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchMeans:
    """What the branches of a dense network give on the calibration images.

    Attributes:
        lookouts: Name of a branch -> where it is looked at.
        sums: Name of a branch -> its sums in each chunk.
    """

    lookouts: Mapping[str, Lookout]
    sums: Mapping[str, tuple[BranchSums, ...]]

    def mean(self, name: str, unseen: int | None = None) -> Tensor:
        """[C] float64 mean of what a branch gives, without one fold of the chunks; of a single fold all the same."""
        chunks = self.sums[name]
        seen = [one for index, one in enumerate(chunks) if len(chunks) < FOLDS or index % FOLDS != unseen]
        return torch.stack([one.own for one in seen]).sum(dim=0) / sum(one.rows for one in seen)


NO_BRANCHES = BranchMeans(lookouts={}, sums={})
"""Of a network without branches, or of which none may go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A branch that a policy removes.

    Attributes:
        verified: The branch.
        outputs: Channels of its last layer that stay, None for all.
    """

    verified: VerifiedBranch
    outputs: Tensor | None = None

    @property
    def branch(self) -> Branch:
        """How it is removed."""
        return self.verified.branch

    def kept(self, values: Tensor) -> Tensor:
        """[c] of [C] values, those of the channels that stay."""
        return values if self.outputs is None else values[self.outputs]


def branch_means(
    network: nn.Module, graph: Graph, branches: Sequence[VerifiedBranch], chunks: Sequence[Inputs], sampling: Sampling
) -> BranchMeans:
    """Runs the dense network once over the calibration images and sums up what its branches give.

    Args:
        network: The dense network.
        graph: Its operator graph.
        branches: Its branches.
        chunks: Calibration inputs.
        sampling: How positions are drawn.
    """
    if not branches:
        return NO_BRANCHES
    numbers = {name: number for number, name in enumerate(graph.order())}
    lookouts = {
        one.name: Lookout(
            layer=network.get_submodule(one.branch.layer),
            name=one.branch.layer,
            number=numbers[one.branch.layer],
            axis=one.branch.axis,
            sampling=sampling,
        )
        for one in branches
    }
    interpreter, twin = Interpreter(graph.require_program().nodes), functional_copy(network)
    at_sums = {one.found.sum: one for one in branches}

    def one(index: int) -> dict[str, BranchSums]:
        found = {}
        with torch.no_grad():
            for node, values in interpreter.walk(twin, chunks[index]):
                if (here := at_sums.get(node)) is not None:
                    found[here.name] = _sums(here, lookouts[here.name], values, index)
        return found

    parts = list(map_chunks(one, range(len(chunks))))
    return BranchMeans(lookouts=lookouts, sums={name: tuple(part[name] for part in parts) for name in lookouts})


def _sums(one: VerifiedBranch, lookout: Lookout, values: Mapping[fx.Node, Any], chunk: int) -> BranchSums:
    own, shortcut = (lookout.rows(values[node], chunk).double() for node in (one.found.exit, one.found.other))
    return BranchSums(rows=len(own), own=own.sum(dim=0), shortcut=shortcut.sum(dim=0))


def write_constant(network: nn.Module, branch: Branch, values: Tensor) -> None:
    """Gives the constant of a removed branch [C] values, in a new tensor."""
    constant = constant_of(network, branch)
    if constant is not None:
        old = constant.value
        fresh = values.to(old).view(old.shape)
        constant.value = nn.Parameter(fresh, requires_grad=old.requires_grad)
