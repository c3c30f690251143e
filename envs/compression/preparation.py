"""What no policy changes, computed once: input moments and the order of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from envs.compression.settings import QUICK_ROWS, ROWS, CompressionSettings
from envs.compression.sparsify import selection_named
from envs.importance.importance import Evidence, Importance, channel_order
from envs.importance.scores import importance_named
from envs.importance.taylor import FORWARDS, gate_sensitivities, images_at_once
from envs.network.inputs import Inputs, batch_size, divided
from envs.regression.counted import Counts
from envs.regression.factors import Factors
from envs.regression.ridge import add, changed
from envs.regression.statistics import (
    Moments,
    Sampling,
    gram_of,
    input_moments,
    pack_moments,
    totals,
    unpack_moments,
)
from envs.repair.normalization import output_scales
from envs.repair.repairs import repair_class
from envs.units.layout import LayoutFamily
from envs.units.principal import (
    SecondMoments,
    Turn,
    blocks,
    inputs_change,
    of_weights,
    principal_order,
    sides,
    turned,
    turns_of,
)
from envs.units.units import Unit

HELD_SHARE = 0.25
"""Of the memory setting, what sequential repair may hold of activations at a cut."""

Remember = Callable[[str, Mapping[str, object], Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


def with_turns(moments: Moments, units: Iterable[Unit], turns: Mapping[str, Turn]) -> Moments:
    """Moments of what layers read once the channels of some units have changed.

    Args:
        moments: Of the network as it was.
        units: Its units.
        turns: Changes by unit.
    """
    found = dict(moments)
    for unit in (unit for unit in units if unit.name in turns):
        reader = sides(unit)[0]
        if reader.role == "consumer" and reader.module in found:
            matrix = inputs_change(unit, turns[unit.name], found[reader.module][0].x.shape[1])
            found[reader.module] = tuple(changed(sums, matrix) for sums in found[reader.module])
    return found


def positions_for(images: int, rows: int = ROWS) -> int:
    """Output positions per image that make about so many rows; few images are looked at in more places."""
    return -(-rows // max(images, 1))


def halved(chunks: Sequence[Inputs]) -> tuple[Inputs, ...]:
    """The chunks; a single one is cut in two, so that one half can judge what was fitted to the other."""
    if len(chunks) == 1 and (count := batch_size(chunks[0])) > 1:
        return tuple(divided(chunks[0], -(-count // 2)))
    return tuple(chunks)


def samplings(
    settings: CompressionSettings,
    chunks: Sequence[Inputs],
    quick_chunks: Sequence[Inputs],
    heard: Mapping[str, Tensor],
    counts: Counts | None = None,
) -> tuple[Sampling, Sampling]:
    """How rows are drawn for statistics and full repair, and for quick repair.

    Args:
        settings: How to compress.
        chunks: Calibration inputs of statistics and full repair.
        quick_chunks: Those of quick repair.
        heard: Positions that count, of layers of which not all do.
        counts: Which tokens of a batch count, None: all.
    """
    positions = settings.positions or positions_for(sum(map(batch_size, chunks)))
    quick = settings.quick_positions or positions_for(sum(map(batch_size, quick_chunks)), QUICK_ROWS)
    counted = () if counts is None else tuple(counts(chunk).bool() for chunk in chunks)
    full = Sampling(positions=positions, seed=settings.seed, heard=heard, counted=counted)
    return full, replace(full, positions=min(positions, quick))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Statistics of the dense network on its calibration images.

    Attributes:
        network: The dense network in eval mode.
        family: Its layouts.
        units: The units that may change.
        settings: How to compress.
        chunks: Calibration inputs.
        sampling: How rows are drawn.
        folds: Layer -> the module that alone reads it.
        remember: Gives back earlier results of the same (kind, key), or computes them.
        key: Fingerprints of structure, weights and calibration images.
        counts: Which tokens of a batch count, None: all.
    """

    network: nn.Module
    family: LayoutFamily
    units: tuple[Unit, ...]
    settings: CompressionSettings
    chunks: tuple[Inputs, ...]
    sampling: Sampling
    folds: Mapping[str, str]
    remember: Remember
    key: tuple[str, str, str]
    counts: Counts | None = None

    @property
    def _importance(self) -> Importance:
        return importance_named(self.settings.importance)

    def image_forwards(self, moments: Moments) -> int:
        """What moments and orders take."""
        passes = bool(moments) + FORWARDS * self._importance.reads_gradients
        return passes * sum(map(batch_size, self.chunks))

    def moments(self, sparse: Sequence[str]) -> Moments:
        """Input moments of all layers that importance, selection or repair look at, {} where none does.

        Args:
            sparse: Layers that may take a pattern.
        """
        settings = self.settings
        selected = bool(sparse) and selection_named(settings.selection).reads_curvature
        if not (selected or self._importance.reads_moments or repair_class(settings.repair).fits):
            return {}
        readers = [m.module for unit in self.units for m in (*unit.role("consumer"), *unit.role("factor"))]
        consumers = dict.fromkeys([*readers, *sparse])

        def compute() -> dict[str, Tensor]:
            return pack_moments(input_moments(self.network, list(consumers), self.chunks, self.sampling))

        found = self.remember("moments", {**self._key(), "consumers": list(consumers)}, compute)
        return unpack_moments({name: tensor.to(settings.device) for name, tensor in found.items()})

    def turns(self, moments: Moments) -> dict[str, Turn]:
        """How the channels of principal units change; without their moments by the weights alone."""
        factors = self.factors(moments)

        def known(unit: Unit) -> SecondMoments | None:
            first, second = sides(unit)
            if unit.name in factors:
                queries, keys = factors[unit.name].second_moments()
                return SecondMoments(blocks(unit, first, queries), blocks(unit, second, keys))
            if first.role == "factor" or first.module not in moments or moments[first.module][0].xx is None:
                return None
            gram = gram_of(add(moments[first.module]))[0]
            return SecondMoments(of_weights(self.network, unit, first), blocks(unit, first, gram))

        return turns_of(self.network, self.units, known)

    def turned(self, turns: Mapping[str, Turn]) -> Preparation:
        """The same of the network whose channels have changed; its moments are still those before."""
        return replace(self, network=turned(self.network, self.units, turns))

    def orders(self, moments: Moments) -> dict[str, list[int]]:
        """Channels of each unit by descending importance; principal ones have an order of their own."""
        settings, score = self.settings, self._importance
        scored = [unit for unit in self.units if not unit.principal]
        key = [[one.name, one.channels, one.granule, *([one.shares] if one.shares else [])] for one in scored]

        def compute() -> dict[str, Tensor]:
            evidence = self._evidence(moments)
            return {u.name: torch.tensor(channel_order(u, score(u, evidence)), device="cpu") for u in scored}

        if not scored:
            found = dict[str, Tensor]()
        elif isinstance(settings.importance, str):
            found = self.remember("orders", {**self._key(), "importance": settings.importance, "units": key}, compute)
        else:  # its code may be another one tomorrow
            found = compute()
        orders = {name: order.tolist() for name, order in found.items()}
        return {unit.name: orders[unit.name] if unit.name in orders else principal_order(unit) for unit in self.units}

    def factors(self, moments: Moments) -> dict[str, Factors]:
        """Moments of units whose channels are multiplied and summed, as far as those of what they read are known."""
        found = {}
        for unit in self.units:
            names = [member.module for member in unit.role("factor")]
            if names and all(name in moments and moments[name][0].xx is not None for name in names):
                first, second = names
                layers = self.network.get_submodule(first), self.network.get_submodule(second)
                found[unit.name] = Factors.of(*layers, moments[first], moments[second], max(len(unit.shares), 1))
        return found

    def _evidence(self, moments: Moments) -> Evidence:
        settings = self.settings
        sensitivities = dict[str, Tensor]()
        if self._importance.reads_gradients:
            size = images_at_once(self.family.dense, settings.memory_gb)
            sensitivities = gate_sensitivities(
                self.network, self.units, self.chunks, at_once=size, seed=settings.seed, counts=self.counts
            )
        return Evidence(
            network=self.network,
            moments=totals(moments),
            output_scales=output_scales(self.network, self.folds),
            factors=self.factors(moments),
            sensitivities=sensitivities,
            seed=settings.seed,
        )

    def _key(self) -> dict[str, object]:
        """What determines everything computed from the calibration images."""
        structure, weights, calibration = self.key
        return {
            "version": 3,
            "structure": structure,
            "weights": weights,
            "calibration": calibration,
            "chunks": [batch_size(chunk) for chunk in self.chunks],
            "positions": self.sampling.positions,
            "seed": self.settings.seed,
            **({"heard": heard} if (heard := {name: at.tolist() for name, at in self.sampling.heard.items()}) else {}),
            **({} if self.settings.device == "cpu" else {"device": self.settings.device}),
        }
