"""Taylor: by how much the network's output changes with each channel of a unit, from gradients; no weight changes.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019: a gate of value 1 multiplies a channel,
and the square of the loss's gradient by it, (sum of gradient x weight)^2, is its importance.

Deviations: a unit's gate stands in front of all its consumers, which is where its channels are removed (behind one of
two factors), and holds for any number of producers, carriers and consumers. Squares are taken per image, not per
batch, so that batches do not matter. The loss has no labels, which are used only to score: it is half the squared
distance of the outputs from targets drawn around the dense outputs, y + e with every e = +1 or -1 (at y itself the
gradient is zero). The mean square over such targets is the sum over all outputs of (d output / d gate)^2: the Fisher
information of a Gaussian around the outputs and, but for a shift common to all classes, of class scores at high
temperature. At temperature 1 a trained network is so sure of its calibration images that only a few of them would
count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from envs.importance.importance import Evidence, Importance
from envs.network.copies import functional_copy
from envs.network.inputs import Inputs, batch_size, call, divided, tensors
from envs.parallel import map_chunks
from envs.regression.counted import Counts, counted_rows, mask_of
from envs.regression.statistics import Sampling
from envs.units.units import Unit
from hw_profiles.layers import Layout

STREAM = 999_983
"""Where other draws have the number of a layer."""
FORWARDS = 3
"""Image-forwards that one image is charged: a pass forward, and one backward of twice its work."""


class Taylor(Importance):
    """Mean square of gradient x weight, summed over all weights that read a channel (`gate_sensitivities`)."""

    reads_gradients: ClassVar[bool] = True

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] float64."""
        return evidence.sensitivities[unit.name]


def images_at_once(layout: Layout, memory_gb: float) -> int:
    """Images whose activations and gradients take an eighth of the memory (chunks are worked on side by side)."""
    values = sum(layer.out_channels * prod(layer.out_map) for layer in layout.layers)
    return max(1, min(64, int(memory_gb * 1e9 / 8 / (3 * 4 * max(values, 1)))))


def gate_sensitivities(
    network: nn.Module,
    units: Sequence[Unit],
    chunks: Sequence[Inputs],
    *,
    at_once: int,
    seed: int,
    counts: Counts | None = None,
) -> dict[str, Tensor]:
    """[C] float64 mean over images of the squared gradient by each channel's gate, by unit.

    Args:
        network: The dense network; neither its weights nor their gradients are touched.
        units: The units.
        chunks: Calibration inputs.
        at_once: Images per backward pass.
        seed: Seed of the targets.
        counts: Which tokens count, None: all; outputs at others have no targets.

    Raises:
        ValueError: If no finite gradient reaches the consumers.
    """
    consumers = list(dict.fromkeys(member.module for unit in units for member in unit.role("consumer")))
    writers = list(dict.fromkeys(member.module for unit in units for member in unit.role("factor")[:1]))

    def one(index: int) -> dict[str, Tensor]:
        twin = functional_copy(network)
        taken = dict[str, Tensor]()
        for name in consumers:
            twin.get_submodule(name).register_forward_pre_hook(_take(name, taken))
        for name in writers:
            twin.get_submodule(name).register_forward_hook(_take_output(_written(name), taken))
        generator = Sampling(seed=seed).generator(STREAM, index)
        inputs, device = chunks[index], tensors(chunks[index])[0].device
        totals = {unit.name: torch.zeros(unit.channels, dtype=torch.float64, device=device) for unit in units}
        for batch in divided(inputs, at_once):
            changes = _changes(twin, batch, taken, generator, mask_of(counts, batch))
            for unit in units:
                totals[unit.name] += _gate_gradients(unit, changes, batch_size(batch)).square().sum(dim=0)
        return totals

    images = sum(map(batch_size, chunks))
    parts = list(map_chunks(one, range(len(chunks))))
    found = {unit.name: torch.stack([part[unit.name] for part in parts]).sum(dim=0) / images for unit in units}
    if not all(bool(scores.isfinite().all()) for scores in found.values()):
        raise ValueError(_refusal("they are inf or NaN"))
    return found


def _take(name: str, taken: dict[str, Tensor]) -> Callable[..., tuple[Any, ...]]:
    """A hook that lets a layer read a copy of its input, so that the gradient by it is this layer's alone."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = inputs[0]
        taken[name] = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
        return (taken[name], *inputs[1:])

    return hook


def _written(layer: str) -> str:
    """Under which name the output of a layer is taken; others are inputs."""
    return f"{layer}|output"


def _take_output(name: str, taken: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A hook that lets others read a copy of a layer's output."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        taken[name] = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        return taken[name]

    return hook


def _changes(
    twin: nn.Module, batch: Inputs, taken: dict[str, Tensor], generator: torch.Generator, mask: Tensor | None
) -> dict[str, tuple[Tensor, int]]:
    """What was taken times gradient by it, of every layer, and the axis of its channels."""
    taken.clear()
    try:
        with torch.enable_grad():
            outputs: Tensor = call(twin, batch)
        signs = torch.randint(0, 2, outputs.shape, generator=generator, device="cpu").to(outputs) * 2 - 1
        counted = None if mask is None else counted_rows(mask, tuple(outputs.shape[:-1]))
        signs = signs if counted is None else signs * counted[..., None]
        found = torch.autograd.grad(outputs, list(taken.values()), signs, allow_unused=True)
    except RuntimeError as error:  # no gradient flows, or an operator in place has overwritten what it needs
        raise ValueError(_refusal(str(error).splitlines()[0])) from error
    return {
        name: (
            _product(x, gradient),
            x.ndim - 1 if isinstance(twin.get_submodule(name.partition("|")[0]), nn.Linear) else 1,
        )
        for (name, x), gradient in zip(taken.items(), found, strict=True)
    }


def _product(x: Tensor, gradient: Tensor | None) -> Tensor:
    return torch.zeros_like(x) if gradient is None else x.detach().double() * gradient.double()


def _gate_gradients(unit: Unit, changes: Mapping[str, tuple[Tensor, int]], images: int) -> Tensor:
    """[B, C] gradient by the gate of each channel in each image."""
    device = next(iter(changes.values()))[0].device
    total = torch.zeros(images, unit.channels, dtype=torch.float64, device=device)
    taken = [(member.module, member) for member in unit.role("consumer")]
    taken += [(_written(member.module), member) for member in unit.role("factor")[:1]]
    for name, member in taken:
        values, axis = changes[name]
        each = values.movedim(axis, -1)
        each = each.reshape(images, -1, each.shape[-1]).sum(dim=1)  # tokens may stand in the first axis, too
        total += each[:, torch.tensor(member.positions, device=device)].sum(dim=2)
    return total


def _refusal(why: str) -> str:
    return (
        f"importance `taylor` needs finite gradients of the network's outputs, but {why}: "
        "use obs, fluctuation or l1, or a network without operators in place and without no_grad"
    )
