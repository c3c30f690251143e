"""Targets of sequential repair where they are too many to be kept: the dense network walks beside the pruned one.

Each repair then runs the dense network once more, but as many rows can be fitted to as are wanted, whatever the memory.
The numbers are those of `record_targets` in full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from envs.network.graph import Graph
from envs.network.inputs import Inputs, batch_size, channels_last
from envs.network.interpreter import Checkpoints, Interpreter
from envs.regression.rows import take_outputs
from envs.regression.statistics import Sampling
from envs.repair.targets import Addend, Target, addends_of, refittable_layers, walkable


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsBeside:
    """What the dense network has at the sampled positions, computed when it is asked for.

    Attributes:
        network: The dense network, to be executed node by node.
        chunks: Calibration inputs, channels-last where the network runs so.
        addends: The layers that reach an addition.
        sampling: Output positions per image and seed.
        keys: Numbers of the layers for the draws.
        layers: The layers that can be refitted.
    """

    network: nn.Module
    chunks: tuple[Inputs, ...]
    addends: Mapping[fx.Node, Addend]
    sampling: Sampling
    keys: Mapping[str, int]
    layers: frozenset[fx.Node]

    @classmethod
    def of(cls, network: nn.Module, graph: Graph, chunks: Sequence[Inputs], sampling: Sampling) -> TargetsBeside:
        """Nothing runs yet; arguments as in `record_targets`."""
        layers = refittable_layers(network, graph)
        return cls(
            network=walkable(network, graph),
            chunks=tuple(channels_last(chunk) if graph.channels_last else chunk for chunk in chunks),
            addends=addends_of(layers, network),
            sampling=sampling,
            keys={name: key for key, name in enumerate(graph.order())},
            layers=frozenset(layers),
        )

    def count(self, layer: fx.Node) -> int:
        """Rows of one layer over all chunks, at most."""
        return self.sampling.positions * sum(map(batch_size, self.chunks))

    def along(self, interpreter: Interpreter, held_bytes: float) -> DenseWalk:
        """A walk of the dense network in the same order."""
        return DenseWalk(self, interpreter, held_bytes)


class DenseWalk:
    """The dense network's own walk, which follows that of a pruned one."""

    def __init__(self, targets: TargetsBeside, interpreter: Interpreter, held_bytes: float) -> None:
        """Begins at the inputs.

        Args:
            targets: Whose network, chunks and sampling are used.
            interpreter: Executes the nodes.
            held_bytes: Activations that may be kept for all chunks together.
        """
        self._targets = targets
        self._places = {node: place for place, node in enumerate(interpreter.order)}
        self._checkpoints = Checkpoints(interpreter, targets.chunks, held_bytes)

    def at(self, layer: fx.Node, chunk: int) -> Target:
        """One layer in one chunk; the other addend where it is known by then, as it must be to be of use."""
        aims, name = self._targets, str(layer.target)
        with torch.no_grad():
            values = self._checkpoints.advance(aims.network, chunk, self._places[layer] + 1).values
        output, module = values[layer], aims.network.get_submodule(name)
        at = aims.sampling.draw(module, name, output, aims.keys[name], chunk)
        addend = aims.addends.get(layer)
        found = None if addend is None else values.get(addend.other)
        other = None
        if isinstance(found, Tensor) and found.shape == output.shape:
            other = take_outputs(module, found, at)
        return Target(at=at, own=take_outputs(module, output, at), other=other, images=len(output))
