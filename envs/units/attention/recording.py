"""Whether a module's recorded forward does all that the module does, in evaluation and in training."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from envs.network.copies import in_mode, same_output
from envs.network.tracing.resized import Resized
from envs.units.attention.given import Given

TOLERANCE = 1e-2
"""Largest accepted difference relative to the largest value, also in bfloat16; other functions differ by more."""


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a call leaves behind.

    Attributes:
        tensors: Results, gradients and buffers; None where a parameter has no gradient.
        types: The precision of the results, and whether they have a gradient.
        numbers: States of the generators of random numbers.
        assigned: Whether forward assigned something to the module.
    """

    tensors: list[Any]
    types: list[Any]
    numbers: list[Any]
    assigned: bool


def records_all(module: nn.Module, given: Given) -> bool:
    """Whether a module and its recorded forward agree, in both modes and precisions, the second time they are called.

    Compared are results, gradients, buffers, random numbers drawn, and that forward assigns nothing to the module: what
    it computes from such things while it is recorded would be the same ever after.

    Args:
        module: The module; it is not changed.
        given: What it is called with.
    """
    return all(_agree_in(module, given, *how) for how in product((False, True), (False, True)))


def _agree_in(module: nn.Module, given: Given, training: bool, narrow: bool) -> bool:
    """Whether both agree in a mode and precision, or the module itself does not run in it."""
    try:
        own = _left(module, given, training, narrow)
    except Exception:  # whatever the module's own code raises, such as on complex numbers of half the precision
        return narrow or training
    try:
        recorded = _left(Resized(copy.deepcopy(module), ()), given, training, narrow)
    except Exception:  # whatever torch.fx raises
        return False
    if own.assigned or own.types != recorded.types or own.numbers != recorded.numbers:
        return False
    return same_output(own.tensors, recorded.tensors, TOLERANCE)


def _left(module: nn.Module, given: Given, training: bool, narrow: bool) -> _Trace:
    """What two calls leave behind, in a mode, in bfloat16 where autocast chooses it."""
    twin = in_mode(copy.deepcopy(module), training=training)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    before = _held(twin)
    with _seeded(), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        for seed in range(2):
            torch.manual_seed(seed)
            random.seed(seed)
            args, kwargs = given.arguments()
            twin.zero_grad()
            results = [one for one in tree_leaves(twin(*args, **kwargs)) if isinstance(one, Tensor)]
            loss = sum(one.float().square().sum() for one in results if one.requires_grad)
            if isinstance(loss, Tensor):
                loss.backward()  # type: ignore[no-untyped-call]
        numbers = [torch.get_rng_state().tolist(), random.getstate()]
    assigned = _held(twin) != before
    gradients = [parameter.grad for parameter in twin.parameters()]
    types = [(one.dtype, one.requires_grad) for one in results]
    tensors = [*(one.detach() for one in results), *gradients, *twin.buffers()]
    return _Trace(tensors, types, numbers, assigned)


def _held(module: nn.Module) -> list[tuple[str, int]]:
    """The identities of what modules hold beside their tensors and each other."""
    return [(name, id(value)) for one in module.modules() for name, value in vars(one).items()]


@contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers are as before in the end."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
