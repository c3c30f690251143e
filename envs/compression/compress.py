"""Compression: from widths to a policy (which channels), and from a policy to a smaller, repaired network.

No gradient step changes a weight and no label is read here.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.compression.preparation import (
    HELD_SHARE,
    Preparation,
    Remember,
    divided,
    samplings,
)
from envs.compression.settings import CompressionSettings, Repair
from envs.compression.sparsify import SELECTIONS, refit
from envs.importance.scores import COMPENSATED
from envs.network.graph import BATCH_NORMS, Graph
from envs.network.inference import placed
from envs.parallel import return_memory
from envs.regression.ridge import Finish
from envs.regression.rows import weight_rows
from envs.regression.statistics import first_chunks
from envs.repair.layerwise import LayerwiseBank, input_orders
from envs.repair.normalization import reestimate_batch_norm
from envs.repair.sequential import SequentialRepair, write_fit
from envs.repair.targets import Targets, record_targets
from envs.space.patterns import kernel_size, refusal, unfit, verify_network
from envs.space.policy import (
    LayerPolicy,
    Policy,
    PolicyMismatch,
    UnitPolicy,
    structure_fingerprint,
    tensors_fingerprint,
    weights_fingerprint,
)
from envs.units.layout import LayoutFamily, kept_counts
from envs.units.slicing import Axes, kept_axes, sliced
from envs.units.units import Unit
from hw_profiles.patterns import parse_pattern

logger = logging.getLogger(__name__)


class Compressed(NamedTuple):
    """A smaller network and what making it cost in image-forwards."""

    network: nn.Module
    image_forwards: int


class Compressor:
    """Compresses one network; everything that no policy changes is computed once.

    Attributes:
        preparation_forwards: Image-forwards of statistics and of recording what sequential repair aims at.
        calibration_fingerprint: SHA-256 of the calibration inputs.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: Graph,
        family: LayoutFamily,
        units: Sequence[Unit],
        chunks: Sequence[Tensor],
        settings: CompressionSettings,
        remember: Remember = lambda kind, key, compute: compute(),
        sparse: Sequence[str] = (),
    ) -> None:
        """Computes channel orders (and moments where importance or repair need them).

        Args:
            network: The dense network in eval mode.
            graph: Its operator graph.
            family: Its layouts.
            units: The units that may change.
            chunks: Calibration inputs, each [B, ...] float32.
            settings: How to compress.
            remember: Gives back earlier results of the same (kind, key), or computes them.
            sparse: Layers that may take a pattern.
        """
        self.network, self.graph = placed(network, settings.device), graph
        self.units, self.settings = tuple(units), settings
        self._family, self._folds = family, graph.folds()
        self._fingerprints = (structure_fingerprint(network), weights_fingerprint(network))
        self.calibration_fingerprint = tensors_fingerprint(chunks)
        self._chunks = tuple(chunk.to(settings.device) for chunk in divided(chunks))
        self._quick_chunks = first_chunks(self._chunks, settings.quick_images)
        self._sampling, self._quick = samplings(settings, self._chunks, self._quick_chunks)
        self._recorded: dict[bool, Targets] = {}  # of quick repair or not
        self._quick_ridges: Mapping[str, float] | None = None
        self._prepare(remember, sparse)

    def _prepare(self, remember: Remember, sparse: Sequence[str]) -> None:
        """Statistics on the calibration images, and what is made of them."""
        settings, self._sparse = self.settings, tuple(sparse)
        self._preparation = preparation = Preparation(
            network=self.network,
            family=self._family,
            units=self.units,
            settings=settings,
            chunks=self._chunks,
            sampling=self._sampling,
            folds=self._folds,
            remember=remember,
            key=(*self._fingerprints, self.calibration_fingerprint),
        )
        moments = preparation.moments(sparse)
        chosen = self._quick_chunks if settings.ridge is None else ()
        self.preparation_forwards = preparation.image_forwards(moments)
        self.preparation_forwards += self._walked((*self._chunks, *chosen))
        self.orders = preparation.orders(moments)
        self._banks: dict[int | None, LayerwiseBank] = {None: LayerwiseBank(self.network, moments, settings.ridge)}
        self._input_orders = input_orders(self.units, self.orders)

    def _bank(self, unseen: int | None) -> LayerwiseBank:
        """Layer-wise fits to all images, or to all but one fold; the moments are read again where they were freed."""
        if None not in self._banks:
            moments = self._preparation.moments(self._sparse)
            self._banks[None] = LayerwiseBank(self.network, moments, self.settings.ridge)
        if unseen is not None and unseen not in self._banks:
            self._banks[unseen] = self._banks[None].leaving_out(unseen)
        return self._banks[unseen]

    def _walked(self, chunks: Sequence[Tensor]) -> int:
        """Image-forwards of a walk of sequential repair."""
        return sum(len(chunk) for chunk in chunks) if self.settings.repair == "sequential" and self.graph.traced else 0

    @property
    def repair_forwards(self) -> int:
        """Image-forwards of one full repair (without those of recording its targets, once)."""
        return self._walked(self._chunks) + min(self.settings.reestimate_images, sum(map(len, self._chunks)))

    @property
    def quick_forwards(self) -> int:
        """Image-forwards of one quick repair."""
        return self._walked(self._quick_chunks) + min(self.settings.reestimate_images, sum(map(len, self._chunks)))

    def policy(self, kept: Mapping[str, int], patterns: Mapping[str, str] | None = None) -> Policy:
        """The policy that keeps the best-scored channels.

        Args:
            kept: Channels per unit; units that are not named stay whole.
            patterns: Pattern per layer; layers that are not named stay dense.
        """
        entries = tuple(
            UnitPolicy(unit=unit, indices=tuple(sorted(self.orders[unit.name][: kept.get(unit.name, unit.channels)])))
            for unit in self.units
        )
        chosen, weighted = patterns or {}, [layer.name for layer in self._family.dense.layers if layer.has_weight]
        layers = tuple(LayerPolicy(name=name, pattern=chosen.get(name, "dense")) for name in weighted)
        structure, weights = self._fingerprints
        return Policy(structure=structure, weights=weights, units=entries, layers=layers)

    def compress(
        self,
        policy: Policy,
        repair: Repair | None = None,
        *,
        quick: bool = False,
        half: bool = False,
        unseen: int | None = None,
    ) -> Compressed:
        """The smaller network of a policy, repaired; it is where the settings' device says.

        Args:
            policy: A policy for this network.
            repair: Overrides the setting; "sequential" falls back to "layerwise" without a traced graph.
            quick: Sequential repair on fewer images and positions, to compare policies with each other.
            half: Sequential repair walks and multiplies in bfloat16.
            unseen: Fold of calibration images (every second chunk) that layer-wise repair does not see, None: none.

        Raises:
            PolicyMismatch: If the policy was made for another network.
        """
        repair = self.settings.repair if repair is None else repair
        if repair == "sequential" and not self.graph.traced:
            repair = "layerwise"
        self._check(policy)
        axes = kept_axes(self.network, self.units, policy.kept())
        small = sliced(self.network, axes)
        finishes = self._finishes(policy.patterns(), refitted=repair != "none")
        forwards = 0
        if repair != "sequential":
            bank = self._bank(unseen)
            compensated = repair == "layerwise" or self.settings.importance in COMPENSATED
            if compensated:
                self._refit_consumers(small, axes, bank, weights=repair == "layerwise")
            self._sparsify(small, axes, finishes, bank, shifted=compensated)
        else:
            if not quick:
                self._banks.clear()
                return_memory()
            ridges = self._ridges() if quick else {}
            sequential = self._sequential(quick, ridges, half=half, sparse=finishes)
            sequential(small, axes)
            return_memory()
            forwards += sequential.images
        if self.settings.reestimate_images:
            forwards += reestimate_batch_norm(small, self._chunks, self.settings.reestimate_images)
        verify_network(small, policy.patterns())
        return Compressed(small, forwards)

    def _check(self, policy: Policy) -> None:
        """Refuses a policy of another network, and patterns that their layers cannot take at the policy's widths."""
        if policy.kept().keys() != {unit.name for unit in self.units} or policy.structure != self._fingerprints[0]:
            raise PolicyMismatch(
                f"a policy only fits the network it was made for, but its structure {policy.structure[7:19]} is not "
                f"{self._fingerprints[0][7:19]}: apply it to the same architecture, or search again"
            )
        patterns = policy.patterns()
        for layer in self._family.at(kept_counts(self._family, policy.widths())).layers if patterns else ():
            reason = refusal(layer, parse_pattern(patterns.get(layer.name, "dense")))
            if reason := reason or (layer.name in patterns and unfit(self.network, self.graph, layer.name)) or "":
                raise PolicyMismatch(
                    f"every pattern must fit its layer, but {layer.name!r} cannot be {patterns[layer.name]}: {reason}"
                )

    def _finishes(self, patterns: Mapping[str, str], *, refitted: bool) -> dict[str, Finish]:
        """What brings each layer to its pattern; with repair, what stays makes up for what goes."""

        def finish(name: str, text: str) -> Finish:
            kernel, pattern = kernel_size(self.network.get_submodule(name)), parse_pattern(text)

            def sparse(weights: Tensor, curvature: Tensor) -> Tensor:
                found = SELECTIONS[self.settings.selection](weights, curvature, pattern, kernel)
                return refit(found, weights, curvature) if refitted else found.weights

            return sparse

        return {name: finish(name, text) for name, text in patterns.items()}

    def _sequential(
        self, quick: bool, ridges: Mapping[str, float], *, half: bool, sparse: Mapping[str, Finish]
    ) -> SequentialRepair:
        return SequentialRepair(
            network=self.network,
            graph=self.graph,
            targets=self._targets(quick),
            ridge=self.settings.ridge,
            ridges=ridges,
            held_bytes=HELD_SHARE * 1e9 * self.settings.memory_gb,
            producers=self.settings.producers,
            half=half,
            sparse=sparse,
        )

    def _ridges(self) -> Mapping[str, float]:
        """Penalties of quick repair by layer, chosen once with half of every unit gone: choosing takes longer than
        fitting, and how much is shrunk depends on data and layer far more than on a policy.
        """
        if self._quick_ridges is None:
            self._quick_ridges = {}
            if self.settings.ridge is None:
                kept = {unit.name: -(-len(unit.granules) // 2) * unit.granule for unit in self.units}
                axes = kept_axes(self.network, self.units, self.policy(kept).kept())
                sequential = self._sequential(True, {}, half=False, sparse={})
                self._quick_ridges = sequential(sliced(self.network, axes), axes)
        return self._quick_ridges

    def _sparsify(
        self,
        small: nn.Module,
        axes: Mapping[str, Axes],
        finishes: Mapping[str, Finish],
        bank: LayerwiseBank,
        *,
        shifted: bool,
    ) -> None:
        """Brings layers to their patterns by what they read in the dense network."""
        for name, finish in finishes.items():
            before = weight_rows(small.get_submodule(name)).double()
            normalization, intercept = self._intercept(small, name)
            curvature, mean = before.new_ones(before.shape[:2]), before.new_zeros(before.shape[:2])
            if bank.fits(name):
                kept = axes.get(name, Axes()).inputs
                curvature, mean = bank.curvature(name, kept, intercept=intercept and shifted)
            after = finish(before, curvature)
            shift = torch.einsum("gn,gno->go", mean.double(), before - after).flatten()
            write_fit(small, name, normalization, after, shift)

    def _intercept(self, small: nn.Module, name: str) -> tuple[str | None, bool]:
        """The batch normalization that can take up a shift of a layer's output, and whether anything can."""
        normalization = self._folds.get(name)
        if normalization is not None and not isinstance(small.get_submodule(normalization), BATCH_NORMS):
            normalization = None
        has_bias = isinstance(getattr(self.network.get_submodule(name), "bias", None), Tensor)
        return normalization, has_bias or normalization is not None

    def _targets(self, quick: bool) -> Targets:
        """What sequential repair aims at, recorded when first asked for; quick repair sees a part of it."""
        if quick and quick not in self._recorded:
            self._recorded[quick] = self._targets(False).first(len(self._quick_chunks), self._quick.positions)
        elif quick not in self._recorded:
            narrow = self.settings.narrow_targets
            self._recorded[quick] = record_targets(
                self.network, self.graph, self._chunks, self._sampling, narrow=narrow
            )
        return self._recorded[quick]

    def forget_folds(self) -> None:
        """Frees what fits that left out a fold have computed; it is computed again when asked for."""
        self._banks = {key: bank for key, bank in self._banks.items() if key is None}

    def quick_only(self) -> Compressor:
        """A twin that holds what quick compression needs, and nothing that full repair does; for workers."""
        sequential = self._walked(self._chunks) > 0
        if sequential:
            self._ridges()
        twin = copy.copy(self)
        del twin._preparation
        twin._recorded = {True: self._targets(quick=True).excerpt()} if sequential else {}
        twin._banks = {} if sequential else {None: self._bank(None)}
        return twin

    def _refit_consumers(
        self, small: nn.Module, axes: Mapping[str, Axes], bank: LayerwiseBank, *, weights: bool
    ) -> None:
        """Fits every consumer's weights and intercept, or its intercept alone, to the dense outputs."""
        for name, touched in axes.items():
            if touched.inputs is None or not bank.fits(name):
                continue
            normalization, intercept = self._intercept(small, name)
            if weights:
                fit = bank.fit(name, touched.inputs, self._input_orders.get(name), intercept=intercept)
            else:
                fit = bank.compensation(name, touched.inputs)
            new, shift = fit.weights, fit.shift.flatten()
            if touched.outputs is not None:
                groups = len(new)
                flat = new.transpose(1, 2).flatten(0, 1)[touched.outputs]
                new = flat.reshape(groups, len(flat) // groups, -1).transpose(1, 2)
                shift = shift[touched.outputs]
            write_fit(small, name, normalization, new, shift)
