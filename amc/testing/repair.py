"""The contract of every repair (`envs.repair.repair.Repair`)."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import torch
from torch import nn

from amc.problem.given.door import taken
from amc.testing.specimens import halved, specimens
from amc.testing.suite import Suite, require
from envs.compression.compress import Compressor
from envs.repair.repair import Repair
from envs.repair.repairs import REPAIRS


def _compressors(repair: type[Repair]) -> Iterator[Compressor]:
    """One per network."""
    own = taken(repair=repair).repair
    return (specimen.compressor(repair=own) for specimen in specimens())


def _state(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _same(one: nn.Module, state: dict[str, Any]) -> bool:
    own = one.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], tensor) for name, tensor in state.items())


def it_leaves_finite_weights_of_the_same_shapes(repair: type[Repair]) -> None:
    """In quick repair, where policies are compared, and in full."""
    for compressor in _compressors(repair):
        policy = halved(compressor)
        shapes = {name: tensor.shape for name, tensor in policy.apply(compressor.network).state_dict().items()}
        for quick in (True, False):
            small = compressor.compress(policy, quick=quick).network
            found = {name: tensor.shape for name, tensor in small.state_dict().items()}
            require(found == shapes, f"shapes were {shapes}, and are {found}")


def the_dense_network_stays_as_it_is(repair: type[Repair]) -> None:
    """Untouched parameters are shared with it: a layer that is refitted needs tensors of its own."""
    for compressor in _compressors(repair):
        before = _state(compressor.network)
        compressor.compress(halved(compressor))
        require(_same(compressor.network, before), "a weight of the dense network has changed")


def repairing_again_gives_the_same(repair: type[Repair]) -> None:
    """One object serves all policies: none may leave a trace."""
    for compressor in _compressors(repair):
        policy = halved(compressor)
        first = _state(compressor.compress(policy).network)
        compressor.compress(compressor.policy({compressor.units[0].name: compressor.units[0].granule}))
        require(
            _same(compressor.compress(policy).network, first), "repaired again after another policy, weights differ"
        )


def what_a_worker_holds_repairs_as_the_whole(repair: type[Repair]) -> None:
    """`quick_only`, after it was sent there."""
    for compressor in _compressors(repair):
        policy = halved(compressor)
        whole = compressor.compress(policy, quick=True)
        twin = pickle.loads(cloudpickle.dumps(compressor.quick_only())).compress(policy, quick=True)
        require(_same(twin.network, _state(whole.network)), "a worker's copy repairs otherwise")


def what_it_takes_is_what_it_says(repair: type[Repair]) -> None:
    """Image-forwards, which searchers pay with."""
    for compressor in _compressors(repair):
        policy = halved(compressor)
        for quick, said in ((True, compressor.quick_forwards), (False, compressor.repair_forwards)):
            paid = compressor.compress(policy, quick=quick).image_forwards
            require(paid == said and paid >= 0, f"a repair was charged {paid} image-forwards, but says {said}")


def a_pattern_is_kept(repair: type[Repair]) -> None:
    """Weights that a pattern takes stay zero: `Pruned.finishes` brings layers to it."""
    for compressor in _compressors(repair):
        layer = next(m.module for unit in compressor.units for m in unit.role("consumer"))
        compressor.compress(compressor.policy({}, {layer: "unstructured:0.5"}))


def what_takes_its_place_for_one_unit_is_known(repair: type[Repair]) -> None:
    """`alone`, by which damage curves are measured."""
    own = taken(repair=repair).repair
    assert own is not None
    require(own.alone in REPAIRS, f"alone must be one of {', '.join(REPAIRS)}, but is {own.alone!r}")


check_repair = Suite(
    "repair",
    it_leaves_finite_weights_of_the_same_shapes,
    the_dense_network_stays_as_it_is,
    repairing_again_gives_the_same,
    what_a_worker_holds_repairs_as_the_whole,
    what_it_takes_is_what_it_says,
    a_pattern_is_kept,
    what_takes_its_place_for_one_unit_is_known,
)
"""Of a class of `Repair`."""
