"""Second moments of what each consumer reads in the dense network: one pass, kept for importance and repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from envs.network.copies import copy_network
from envs.network.inputs import Inputs, batch_size, call
from envs.parallel import map_chunks
from envs.regression.counted import counted_outputs
from envs.regression.ridge import Sums, add, sums_of
from envs.regression.rows import Positions, can_gather, draw_positions, gather_inputs, output_places
from envs.regression.shrinkage import FOLDS

Moments = Mapping[str, tuple[Sums, ...]]
"""Layer name -> sums over each fold of the calibration images (every second chunk)."""

GRAM_LIMIT = 8192
"""Columns up to which a Gram matrix is kept (512 MB in fp32); beyond, the sampled rows are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How calibration rows are drawn.

    Attributes:
        positions: Output positions per image.
        seed: Seed of the draw.
        heard: [P] positions among which is drawn, for layers of which not all count (`heard_positions`).
        counted: [N, ...] bool of each chunk, which of its tokens count; empty where all do.
    """

    positions: int = 48
    seed: int = 0
    heard: Mapping[str, Tensor] = field(default_factory=dict)
    counted: tuple[Tensor, ...] = ()

    def generator(self, layer: int, chunk: int) -> torch.Generator:
        """The generator of one layer's positions in one chunk: keyed, so order of work cannot matter."""
        key = (self.seed * 1_000_003 + layer) * 1_000_003 + chunk
        return torch.Generator().manual_seed(key % (2**63))

    def draw(self, module: nn.Module, name: str, outputs: Tensor, layer: int, chunk: int) -> Positions:
        """The positions at which one layer is looked at in one chunk.

        Args:
            module: The layer.
            name: Its name.
            outputs: What it wrote.
            layer: Its number, for the generator.
            chunk: Number of the chunk.
        """
        heard = self.heard.get(name)
        places = output_places(module, tuple(outputs.shape)) if heard is None else len(heard)
        counted = counted_outputs(self.counted[chunk], module, outputs) if self.counted else None
        if counted is not None and heard is not None:
            counted = counted[:, heard.to(counted.device)]
        generator = self.generator(layer, chunk)
        drawn = draw_positions(len(outputs), places, self.positions, generator, outputs.device, counted)
        return drawn if heard is None else Positions(drawn.image, heard.to(drawn.place.device)[drawn.place])


def first_chunks(chunks: Sequence[Inputs], images: int) -> tuple[Inputs, ...]:
    """The first chunks that together hold at least so many images, or all."""
    held = 0
    for count, chunk in enumerate(chunks, start=1):
        held += batch_size(chunk)
        if held >= images:
            return tuple(chunks[:count])
    return tuple(chunks)


def input_moments(
    network: nn.Module, names: Sequence[str], chunks: Sequence[Inputs], sampling: Sampling
) -> dict[str, tuple[Sums, ...]]:
    """Sums of the sampled input rows of the named layers (with empty residuals), by folds of chunks.

    Args:
        network: The dense network in eval mode.
        names: Layers whose inputs are wanted; those that cannot be gathered are left out.
        chunks: Calibration inputs.
        sampling: How rows are drawn.
    """
    wanted = [name for name in names if can_gather(network.get_submodule(name))]

    def one(index: int) -> dict[str, Sums]:
        found: dict[str, Sums] = {}
        twin = copy_network(network)

        def note(position: int, name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                at = sampling.draw(module, name, output, position, index)
                rows = gather_inputs(module, inputs[0], at)
                empty = rows.new_zeros((*rows.shape[:2], 0))
                found[name] = sums_of(rows, empty, gram=rows.shape[2] <= GRAM_LIMIT)

            return hook

        for position, name in enumerate(wanted):
            twin.get_submodule(name).register_forward_hook(note(position, name))
        with torch.no_grad():
            call(twin, chunks[index])
        return found

    folds: list[dict[str, Sums]] = [{} for _ in range(min(FOLDS, len(chunks)))]
    for index, part in enumerate(map_chunks(one, range(len(chunks)))):
        total = folds[index % FOLDS]
        for name, sums in part.items():
            total[name] = add([total[name], sums]) if name in total else sums
    return {name: tuple(fold[name] for fold in folds) for name in folds[0]}


def totals(moments: Moments) -> dict[str, Sums]:
    """Sums over all folds."""
    return {name: add(folds) for name, folds in moments.items()}


def pack_moments(moments: Moments) -> dict[str, Tensor]:
    """Moments as named tensors, for a file."""
    tensors: dict[str, Tensor] = {}
    for name, folds in moments.items():
        for fold, sums in enumerate(folds):
            key = f"{name}|{fold}"
            tensors[f"{key}|count"] = torch.tensor(sums.count, device="cpu")
            tensors[f"{key}|x"] = sums.x.contiguous()
            if sums.xx is not None:
                tensors[f"{key}|xx"] = sums.xx.contiguous()
            else:
                tensors[f"{key}|rows"] = torch.cat([x for x, _ in sums.rows], dim=1)
    return tensors


def unpack_moments(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Sums, ...]]:
    """Reads `pack_moments` back."""
    moments: dict[str, tuple[Sums, ...]] = {}
    for key in sorted({key.rsplit("|", 1)[0] for key in tensors}):
        name = key.rsplit("|", 1)[0]
        moments[name] = (*moments.get(name, ()), _unpacked(tensors, key))
    return moments


def _unpacked(tensors: Mapping[str, Tensor], key: str) -> Sums:
    x, xx, rows = tensors[f"{key}|x"], tensors.get(f"{key}|xx"), tensors.get(f"{key}|rows")
    return Sums(
        count=int(tensors[f"{key}|count"]),
        x=x,
        r=x.new_zeros((len(x), 0)),
        xx=xx,
        xr=None if xx is None else x.new_zeros((*x.shape, 0)),
        rows=() if rows is None else ((rows, rows.new_zeros((*rows.shape[:2], 0))),),
    )


def gram_of(sums: Sums) -> Tensor:
    """[G, n, n] float64 mean of x'x.

    Raises:
        ValueError: If only rows were kept.
    """
    if sums.xx is None:
        raise ValueError(f"a Gram matrix needs at most {GRAM_LIMIT} columns, but got {prod(sums.x.shape[1:])}")
    return sums.xx.double() / sums.count


def energy_of(sums: Sums) -> Tensor:
    """[G, n] float64 mean of x squared."""
    if sums.xx is not None:
        return sums.xx.diagonal(dim1=1, dim2=2).double() / sums.count
    total = torch.stack([x.double().square().sum(dim=1) for x, _ in sums.rows]).sum(dim=0)
    return total / sums.count
