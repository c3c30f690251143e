"""Compression: from widths to a policy (which channels), and from a policy to a smaller, repaired network.

No gradient step changes a weight and no label is read here.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from envs.compression.preparation import HELD_SHARE, Preparation, Remember, halved, samplings, with_turns
from envs.compression.settings import CompressionSettings
from envs.compression.sparsify import finishes
from envs.importance.scores import importance_named
from envs.network.graph import Graph
from envs.network.inference import placed
from envs.network.inputs import Inputs, batch_size, mapped, tensors
from envs.regression.counted import Counts
from envs.regression.heard import heard_positions
from envs.regression.statistics import first_chunks
from envs.repair.bank import Banks, LayerwiseBank
from envs.repair.branches import Gone, branch_means, write_constant
from envs.repair.factors import with_mixes
from envs.repair.normalization import reestimate_batch_norm
from envs.repair.repair import Dense, Pruned, Repair
from envs.repair.repairs import repair_named
from envs.space.assignment import Assignment
from envs.space.patterns import refusal, unfit, verify_network
from envs.space.policy import (
    LayerPolicy,
    Policy,
    PolicyMismatch,
    UnitPolicy,
    structure_fingerprint,
    tensors_fingerprint,
    weights_fingerprint,
)
from envs.units.attention.explicit import Form
from envs.units.branches.branch import is_gone, without_branches
from envs.units.branches.trial import VerifiedBranch, outermost
from envs.units.layout import LayoutFamily, kept_counts
from envs.units.principal import flagged
from envs.units.slicing import Axes, kept_axes, slice_axes
from envs.units.units import Unit
from hw_profiles.patterns import parse_pattern


class Compressed(NamedTuple):
    """A smaller network and what making it cost in image-forwards."""

    network: nn.Module
    image_forwards: int


class Compressor:
    """Compresses one network; everything that no policy changes is computed once.

    Attributes:
        network: The dense network, where the settings' device says.
        graph: Its operator graph.
        units: The units that may change.
        branches: The residual branches that may go.
        settings: How to compress.
        orders: Channels of each unit by descending importance.
        counts: Which tokens of a batch count, None: all.
        dense: What repairs are given.
        preparation_forwards: Image-forwards of statistics and of recording what sequential repair aims at.
        calibration_fingerprint: SHA-256 of the calibration inputs, and of which tokens count.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: Graph,
        family: LayoutFamily,
        units: Sequence[Unit],
        chunks: Sequence[Inputs],
        settings: CompressionSettings,
        remember: Remember = lambda kind, key, compute: compute(),
        sparse: Sequence[str] = (),
        forms: Sequence[Form] = (),
        branches: Sequence[VerifiedBranch] = (),
        counts: Counts | None = None,
    ) -> None:
        """Computes channel orders (and moments where importance or repair need them).

        Args:
            network: The dense network in eval mode.
            graph: Its operator graph.
            family: Its layouts.
            units: The units that may change.
            chunks: Calibration inputs.
            settings: How to compress.
            remember: Gives back earlier results of the same (kind, key), or computes them.
            sparse: Layers that may take a pattern; the channels of their units stay as they are, since other channels
                have other small weights.
            forms: Attention that was made explicit in the network; policies say so.
            branches: Residual branches that may go.
            counts: Which tokens of a batch count, None: all.
        """
        self.network = placed(network, settings.device)
        self.graph = graph
        touched = [unit for unit in units if unit.principal and not _members(unit).intersection(sparse)]
        self.units = flagged(units, [unit.name for unit in touched])
        self.settings = settings
        self._family = family
        self._forms = tuple(forms)
        self.branches = tuple(branches)
        self.counts = counts
        self._fingerprints = (structure_fingerprint(network), weights_fingerprint(network))
        masks = () if counts is None else tuple(counts(chunk).bool() for chunk in chunks)
        self.calibration_fingerprint = tensors_fingerprint(
            one for part in (*map(tensors, chunks), masks) for one in part
        )
        self._repairs: dict[str | type[Repair], Repair] = {}
        here = tuple(mapped(lambda tensor: tensor.to(settings.device), chunk) for chunk in halved(chunks))
        self._prepare(here, remember, sparse)

    def _prepare(self, chunks: tuple[Inputs, ...], remember: Remember, sparse: Sequence[str]) -> None:
        """Statistics on the calibration images, and what is made of them."""
        settings = self.settings
        quick_chunks = first_chunks(chunks, self.settings.quick_images)
        same_length = len({tuple(one.shape[1:] for one in tensors(chunk)) for chunk in chunks}) == 1
        heard = heard_positions(self.network, self.graph, chunks[0]) if same_length else {}
        sampling, quick_sampling = samplings(settings, chunks, quick_chunks, heard, self.counts)
        preparation = Preparation(
            network=self.network,
            family=self._family,
            units=self.units,
            settings=settings,
            chunks=chunks,
            sampling=sampling,
            folds=self.graph.folds(),
            remember=remember,
            key=(*self._fingerprints, self.calibration_fingerprint),
            counts=self.counts,
        )
        before = preparation.moments(sparse)
        turns = preparation.turns(before)
        principal, moments = preparation.turned(turns), with_turns(before, self.units, turns)
        self.network, self.orders = principal.network, principal.orders(moments)

        def read() -> LayerwiseBank:
            again = with_turns(preparation.moments(sparse), self.units, turns)
            return LayerwiseBank(self.network, again, settings.ridge)

        self.dense = Dense(
            network=self.network,
            graph=self.graph,
            units=self.units,
            orders=self.orders,
            chunks=chunks,
            quick_chunks=quick_chunks,
            sampling=sampling,
            quick_positions=quick_sampling.positions,
            banks=Banks(read, LayerwiseBank(self.network, moments, settings.ridge)),
            ridge=settings.ridge,
            producers=settings.producers,
            held_bytes=HELD_SHARE * 1e9 * settings.memory_gb,
            narrow_targets=settings.narrow_targets,
            keep_targets=settings.keep_targets,
            mean_shift=importance_named(settings.importance).mean_shift,
            factors=principal.factors(moments),
            means=branch_means(self.network, self.graph, self.branches, chunks, sampling),
        )
        self.preparation_forwards = preparation.image_forwards(moments) + self._repair().preparation_forwards()
        self.preparation_forwards += sum(map(batch_size, chunks)) if self.branches else 0

    @property
    def principal(self) -> list[str]:
        """Names of the units whose channels are principal ones."""
        return [unit.name for unit in self.units if unit.principal]

    def _repair(self, name: str | None = None) -> Repair:
        """The repair of that name, None: of the settings."""
        chosen: str | type[Repair] = self.settings.repair if name is None else name
        if chosen not in self._repairs:
            self._repairs[chosen] = repair_named(chosen, self.dense)
        return self._repairs[chosen]

    @property
    def repair_forwards(self) -> int:
        """Image-forwards of one full repair (without those of recording its targets, once)."""
        return self._repair().forwards(quick=False) + self._reestimated()

    @property
    def quick_forwards(self) -> int:
        """Image-forwards of one quick repair."""
        return self._repair().forwards(quick=True) + self._reestimated()

    def _reestimated(self) -> int:
        """Images on which batch-norm statistics are re-estimated."""
        return min(self.settings.reestimate_images, sum(map(batch_size, self.dense.chunks)))

    def policy(
        self, kept: Mapping[str, int], patterns: Mapping[str, str] | None = None, removed: Collection[str] = ()
    ) -> Policy:
        """The policy that keeps the best-scored channels.

        Args:
            kept: Channels per unit; units that are not named stay whole.
            patterns: Pattern per layer; layers that are not named, or that go with a branch, are called dense.
            removed: Names of residual branches that go.
        """
        entries = tuple(
            UnitPolicy(unit=unit, indices=tuple(sorted(self.orders[unit.name][: kept.get(unit.name, unit.channels)])))
            for unit in self.units
        )
        absent = {layer for one in self.branches if one.name in removed for layer in one.found.layers}
        chosen = {name: pattern for name, pattern in (patterns or {}).items() if name not in absent}
        weighted = [layer.name for layer in self._family.dense.layers if layer.has_weight]
        layers = tuple(LayerPolicy(name=name, pattern=chosen.get(name, "dense")) for name in weighted)
        structure, weights = self._fingerprints
        return Policy(
            structure=structure,
            weights=weights,
            units=entries,
            layers=layers,
            forms=self._forms,
            branches=tuple(one.branch for one in self.branches if one.name in removed),
        )

    def policy_of(self, assignment: Assignment) -> Policy:
        """The policy of an assignment of sites."""
        decided = assignment.decisions
        return self.policy(decided.kept, decided.patterns, decided.removed)

    def compress(
        self,
        policy: Policy,
        repair: str | None = None,
        *,
        quick: bool = False,
        half: bool = False,
        unseen: int | None = None,
    ) -> Compressed:
        """The smaller network of a policy, repaired; it is where the settings' device says.

        Args:
            policy: A policy for this network.
            repair: Name of the repair, None: that of the settings; layer-wise repair takes the place of one that needs
                a traced graph where there is none.
            quick: Repair on fewer images and positions, to compare policies with each other.
            half: Sequential repair walks and multiplies in bfloat16.
            unseen: Fold of calibration images (every second chunk) that layer-wise repair does not see, None: none.

        Raises:
            PolicyMismatch: If the policy was made for another network.
            ValueError: If there is no repair of that name.
        """
        self._check(policy)
        chosen = self._repair(repair)
        patterns = policy.patterns()
        axes = kept_axes(self.network, self.units, policy.kept())
        if chosen.fits:
            axes = with_mixes(axes, self.units, self.dense.factors)
        small = without_branches(slice_axes(self.network, axes), policy.branches)
        gone = self._gone(policy, axes)
        for one in gone if chosen.fits or self.dense.mean_shift else ():
            write_constant(small, one.branch, one.kept(self.dense.means.mean(one.verified.name, unseen)))
        chosen(
            Pruned(
                network=small,
                axes={name: axes[name] for name in axes if not is_gone(small, name)},
                finishes=finishes(self.network, patterns, self.settings.selection, refitted=chosen.fits),
                quick=quick,
                half=half,
                unseen=unseen,
                gone=gone,
            )
        )
        forwards = chosen.forwards(quick=quick)
        if self.settings.reestimate_images:
            forwards += reestimate_batch_norm(small, self.dense.chunks, self.settings.reestimate_images)
        verify_network(small, patterns)
        return Compressed(small, forwards)

    def compress_alone(self, policy: Policy, unseen: int) -> nn.Module:
        """The smaller network of a policy that changes one unit or layer, repaired without a fold of the images.

        Args:
            policy: A policy for this network.
            unseen: Fold of calibration images that repair does not see.
        """
        return self.compress(policy, self._repair().alone, unseen=unseen).network

    def _gone(self, policy: Policy, axes: Mapping[str, Axes]) -> tuple[Gone, ...]:
        """The branches that a policy removes, none inside of another."""
        removed = [one for one in self.branches if one.branch in policy.branches]
        return tuple(
            Gone(verified=one, outputs=axes.get(one.branch.layer, Axes()).outputs) for one in outermost(removed)
        )

    def _check(self, policy: Policy) -> None:
        """Refuses a policy of another network, and patterns that their layers cannot take at the policy's widths."""
        if policy.kept().keys() != {unit.name for unit in self.units} or policy.structure != self._fingerprints[0]:
            raise PolicyMismatch(
                f"a policy only fits the network it was made for, but its structure {policy.structure[7:19]} is not "
                f"{self._fingerprints[0][7:19]}: apply it to the same architecture, or search again"
            )
        principal = {entry.unit.name for entry in policy.units if entry.unit.principal}
        for unit in self.units:
            if unit.principal != (unit.name in principal):
                raise PolicyMismatch(
                    f"a policy must count in the channels that are cut here, but {unit.name!r} has "
                    f"{'principal' if unit.principal else 'its own'} channels, and the policy "
                    f"{'its own' if unit.principal else 'principal ones'}: search again"
                )
        if unknown := set(policy.branches).difference(one.branch for one in self.branches):
            names = ", ".join(sorted(branch.name for branch in unknown))
            raise PolicyMismatch(
                f"a policy may only remove branches that were found, but removes {names}: search again"
            )
        patterns = policy.patterns()
        for layer in self._family.at(kept_counts(self._family, policy.widths())).layers if patterns else ():
            reason = refusal(layer, parse_pattern(patterns.get(layer.name, "dense")))
            if reason := reason or (layer.name in patterns and unfit(self.network, self.graph, layer.name)) or "":
                raise PolicyMismatch(
                    f"every pattern must fit its layer, but {layer.name!r} cannot be {patterns[layer.name]}: {reason}"
                )

    def forget_folds(self) -> None:
        """Frees what fits that left out a fold have computed; it is computed again when asked for."""
        self.dense.banks.forget_folds()

    def get_ready(self) -> None:
        """Computes what every full repair needs, before copies are sent to workers."""
        self._repair().get_ready()

    def release_fits(self) -> None:
        """Frees layer-wise fits where full repair does not need them."""
        self._repair().release_fits()

    def quick_only(self) -> Compressor:
        """A twin that holds what quick compression needs, and nothing that full repair does; for workers."""
        quick = self._repair().quick_only()
        twin = copy.copy(self)
        twin._repairs, twin.dense = {self.settings.repair: quick}, quick.dense
        return twin


def _members(unit: Unit) -> set[str]:
    return {member.module for member in unit.members}
