"""What a repair is, and what it is given: the dense network with all that no policy changes, and one pruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

from torch import nn

from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.regression.factors import Factors
from envs.regression.ridge import Finish
from envs.regression.statistics import Sampling
from envs.repair.bank import Banks
from envs.repair.branches import NO_BRANCHES, BranchMeans, Gone
from envs.units.slicing import Axes
from envs.units.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """The dense network, its calibration images, and what is asked of every repair.

    Attributes:
        network: The dense network in eval mode.
        graph: Its operator graph.
        units: The units that may change.
        orders: Channels of each unit by descending importance.
        chunks: Calibration inputs of a full repair.
        quick_chunks: The first of them, which a quick repair looks at.
        sampling: How rows of a full repair are drawn.
        quick_positions: Output positions per image that a quick repair looks at.
        banks: Layer-wise fits.
        ridge: Penalty relative to the mean diagonal of a Gram matrix; None: chosen for each fit.
        producers: Refit every layer whose input drifted, not only the consumers of pruned units.
        held_bytes: Activations that a walk may keep.
        narrow_targets: Keep the dense network's outputs at the sampled positions in bfloat16.
        keep_targets: Keep those of full repair; otherwise the dense network walks beside each of them.
        factors: Moments of units whose channels are multiplied and summed, by unit name.
        mean_shift: Channels that go leave their mean in the bias, even without repair.
        means: What residual branches give.
    """

    network: nn.Module
    graph: Graph
    units: tuple[Unit, ...]
    orders: Mapping[str, Sequence[int]]
    chunks: tuple[Inputs, ...]
    quick_chunks: tuple[Inputs, ...]
    sampling: Sampling
    quick_positions: int
    banks: Banks
    ridge: float | None
    producers: bool
    held_bytes: float
    narrow_targets: bool
    keep_targets: bool
    mean_shift: bool
    factors: Mapping[str, Factors] = field(default_factory=dict)
    means: BranchMeans = NO_BRANCHES


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """One sliced network to be repaired.

    Attributes:
        network: The sliced network, changed in place; layers that are refitted get tensors of their own.
        axes: What stays of each touched module (`kept_axes`).
        finishes: What brings layers to their patterns, by layer name.
        quick: Whether fewer images and positions will do, to compare policies with each other.
        half: Whether to walk and to multiply in bfloat16.
        unseen: Fold of calibration images that layer-wise fits leave out, None: none.
        gone: Residual branches that are gone; where anything is fitted, their constants are the dense means already.
    """

    network: nn.Module
    axes: Mapping[str, Axes]
    finishes: Mapping[str, Finish] = field(default_factory=dict)
    quick: bool = False
    half: bool = False
    unseen: int | None = None
    gone: tuple[Gone, ...] = ()


class Repair(Protocol):
    """Refits what stays of a sliced network; one object serves all policies.

    Attributes:
        fits: Whether weights are fitted: statistics of the calibration images are needed, and under a pattern the
            weights that stay make up for those that go.
        walks: Whether a traced graph is needed (`LayerwiseRepair` takes its place where there is none).
        alone: Name of the repair that does the same where one unit alone is pruned, and can leave out a fold.
        dense: The dense network.
    """

    fits: ClassVar[bool] = True
    walks: ClassVar[bool] = False
    alone: ClassVar[str] = "layerwise"
    dense: Dense

    def __init__(self, dense: Dense) -> None:
        """Computes nothing yet."""
        self.dense = dense

    def __call__(self, pruned: Pruned) -> None:
        """Repairs a sliced network in place, and brings its layers to their patterns."""

    def preparation_forwards(self) -> int:
        """Image-forwards of what is computed once for all policies."""
        return 0

    def forwards(self, *, quick: bool) -> int:
        """Image-forwards of one repair."""
        return 0

    def get_ready(self) -> None:
        """Computes what all policies share and is otherwise computed when first needed: before workers get copies."""
        return

    def release_fits(self) -> None:
        """Frees layer-wise fits where repair does not need them; they are computed again when asked for."""
        return

    def quick_only(self) -> Self:
        """A twin that holds what quick repair needs, and nothing that full repair does; for workers."""
        return type(self)(replace(self.dense, banks=self.dense.banks.whole()))
