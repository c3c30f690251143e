"""Sequential repair: what its walks over the calibration images aim at and how strongly they shrink, for all policies.

One walk stands in `walk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

from envs.network.inputs import batch_size
from envs.parallel import return_memory
from envs.regression.ridge import Finish
from envs.repair.bank import Banks
from envs.repair.beside import TargetsBeside
from envs.repair.branches import Gone
from envs.repair.factors import with_mixes
from envs.repair.repair import Dense, Pruned, Repair
from envs.repair.targets import Targets, record_targets
from envs.repair.walk import RepairWalk
from envs.units.branches.program import remaining
from envs.units.slicing import kept_axes, slice_axes


class SequentialRepair(Repair):
    """Refits layers in execution order, on the inputs that the pruned network really has."""

    walks: ClassVar[bool] = True

    def __init__(self, dense: Dense) -> None:
        """Records nothing yet."""
        super().__init__(dense)
        self._targets: dict[bool, Targets | TargetsBeside] = {}  # of quick repair or not
        self._ridges: Mapping[str, float] | None = None

    def __call__(self, pruned: Pruned) -> None:
        """Walks the sliced network over the calibration images; a full walk has the memory of layer-wise fits freed."""
        if not pruned.quick:
            self.release_fits()
        ridges = self._quick_ridges() if pruned.quick else {}
        walk = self._walk(pruned.quick, ridges, half=pruned.half, finishes=pruned.finishes)
        self._around(walk, pruned.gone)(pruned.network, pruned.axes)
        return_memory()

    def preparation_forwards(self) -> int:
        """Those of the targets, and of choosing the ridges of quick repair."""
        quick = self.forwards(quick=True)
        kept = self.forwards(quick=False) if self.dense.keep_targets else quick
        return kept + (quick if self.dense.ridge is None else 0)

    def forwards(self, *, quick: bool) -> int:
        """One walk over all calibration images, or over the first ones; two where the dense network walks beside."""
        walks = 1 if quick or self.dense.keep_targets else 2
        return walks * sum(map(batch_size, self.dense.quick_chunks if quick else self.dense.chunks))

    def get_ready(self) -> None:
        """Records the targets."""
        self._aims(quick=False)

    def release_fits(self) -> None:
        """Frees all of them: a walk fits anew."""
        self.dense.banks.clear()
        return_memory()

    def quick_only(self) -> Self:
        """A twin with the ridges and targets of quick repair, and no moments."""
        twin = type(self)(replace(self.dense, banks=Banks()))
        twin._ridges = self._quick_ridges()
        aims = self._aims(quick=True)
        twin._targets = {True: aims.excerpt() if isinstance(aims, Targets) else aims}
        return twin

    def _walk(
        self, quick: bool, ridges: Mapping[str, float], *, half: bool, finishes: Mapping[str, Finish]
    ) -> RepairWalk:
        return RepairWalk(
            network=self.dense.network,
            graph=self.dense.graph,
            targets=self._aims(quick),
            ridge=self.dense.ridge,
            ridges=ridges,
            held_bytes=self.dense.held_bytes,
            producers=self.dense.producers,
            half=half,
            finishes=finishes,
        )

    def _around(self, walk: RepairWalk, gone: Sequence[Gone]) -> RepairWalk:
        """The walk through what is left without some branches."""
        if not gone:
            return walk
        targets = walk.targets
        if isinstance(targets, TargetsBeside):
            raise ValueError("branches go only where dense outputs are kept, but keep_targets is False: set it to True")
        rest = remaining(self.dense.graph, [one.verified for one in gone])
        inside = {node for one in gone for node in one.verified.found.inside}
        return replace(
            walk,
            graph=rest.graph,
            targets=targets.of(rest.nodes, inside),
            gone={rest.constants[one.verified.name]: one for one in gone},
            means=self.dense.means,
        )

    def _aims(self, quick: bool) -> Targets | TargetsBeside:
        """The targets, recorded when first asked for; quick repair sees a part of them."""
        if quick not in self._targets:
            self._targets[quick] = self._quick_aims() if quick else self._full_aims()
        return self._targets[quick]

    def _full_aims(self) -> Targets | TargetsBeside:
        dense = self.dense
        if not dense.keep_targets:
            return TargetsBeside.of(dense.network, dense.graph, dense.chunks, dense.sampling)
        return record_targets(dense.network, dense.graph, dense.chunks, dense.sampling, narrow=dense.narrow_targets)

    def _quick_aims(self) -> Targets:
        dense, full = self.dense, self._aims(quick=False)
        if isinstance(full, Targets):
            return full.first(len(dense.quick_chunks), dense.quick_positions)
        sampling = replace(dense.sampling, positions=dense.quick_positions)
        return record_targets(dense.network, dense.graph, dense.quick_chunks, sampling, narrow=dense.narrow_targets)

    def _quick_ridges(self) -> Mapping[str, float]:
        """Penalties of quick repair by layer, chosen once with half of every unit gone: choosing takes longer than
        fitting, and how much is shrunk depends on data and layer far more than on a policy.
        """
        if self._ridges is None:
            self._ridges = {}
            if self.dense.ridge is None:
                axes = kept_axes(self.dense.network, self.dense.units, self._halves())
                axes = with_mixes(axes, self.dense.units, self.dense.factors)
                walk = self._walk(True, {}, half=False, finishes={})
                self._ridges = walk(slice_axes(self.dense.network, axes), axes)
        return self._ridges

    def _halves(self) -> dict[str, list[int]]:
        """The better half of every unit's channels, in whole steps."""
        counts = {unit.name: -(-unit.steps // 2) * unit.granule for unit in self.dense.units}
        return {name: sorted(self.dense.orders[name][:count]) for name, count in counts.items()}
