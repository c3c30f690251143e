"""The interpreter of traced programs: node by node, in any order of execution, from the start or from a kept cut.

`torch.fx.Interpreter` runs the nodes in the order of the trace only, on the module that was traced; here the same
program runs on copies and on sliced networks, and repair puts some of its nodes off.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from envs.network.inputs import Inputs, narrowed, tensors

Values = dict[fx.Node, Any]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where in the order of execution a walk stands.

    Attributes:
        place: Index of the node to be executed next.
        values: What that node and later ones read.
    """

    place: int = 0
    values: Mapping[fx.Node, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, of views those of what they are views of."""
        held = (one.untyped_storage() for one in tree_leaves(list(self.values.values())) if isinstance(one, Tensor))
        return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


START = Cut()


class Interpreter:
    """Executes the nodes of one program; every value is freed after its last reader.

    Attributes:
        order: The nodes in the order of execution.
    """

    def __init__(self, order: Iterable[fx.Node]) -> None:
        """Notes the last reader of every node.

        Args:
            order: All nodes of a program, each behind those that it reads (`program.nodes` is such an order).
        """
        self.order = tuple(order)
        self._arguments = [node for node in self.order if node.op == "placeholder"]
        last = {source: node for node in self.order for source in node.all_input_nodes}
        self._freed: dict[fx.Node, list[fx.Node]] = {}
        for node in self.order:
            self._freed.setdefault(last.get(node, node), []).append(node)

    def walk(
        self, network: nn.Module, inputs: Inputs, *, cut: Cut = START, stop: int | None = None
    ) -> Iterator[tuple[fx.Node, Values]]:
        """Executes nodes, yielding each one with all values that are still known.

        Args:
            network: Its modules are called; a copy, or sliced from the one that was traced.
            inputs: Arguments of forward, of the form that was traced.
            cut: Where to begin; it is not changed.
            stop: Index of the first node that is not executed, None: all are.
        """
        values = dict(cut.values)
        for node in self.order[cut.place : stop]:
            values[node] = self._argument(node, inputs) if node.op == "placeholder" else execute(node, network, values)
            yield node, values
            for source in self._freed.get(node, ()):
                values.pop(source, None)

    def advance(self, network: nn.Module, inputs: Inputs, *, cut: Cut = START, stop: int) -> Cut:
        """The cut in front of node `stop`, reached from an earlier one without gradients; arguments as in `walk`."""
        values = cut.values
        with torch.no_grad():
            for _, reached in self.walk(network, inputs, cut=cut, stop=stop):
                values = reached
        return Cut(stop, values)

    def cuts(self, network: nn.Module, inputs: Inputs, *, begin: Cut, stop: int) -> Iterator[Cut]:
        """The cuts behind every node from one cut on, up to that in front of node `stop`; arguments as in `walk`."""
        for place, (node, values) in enumerate(self.walk(network, inputs, cut=begin, stop=stop), begin.place + 1):
            gone = self._freed.get(node, ())
            yield Cut(place, {source: value for source, value in values.items() if source not in gone})

    def output(self, network: nn.Module, inputs: Inputs, *, cut: Cut = START) -> Any:
        """The network's output, from a cut on, without gradients; arguments as in `walk`.

        Raises:
            ValueError: If the order has no output.
        """
        with torch.no_grad():
            for node, values in self.walk(network, inputs, cut=cut):
                if node.op == "output":
                    return values[node]
        raise ValueError("a program must have an output, but this order of execution has none: pass all of its nodes")

    def _argument(self, node: fx.Node, inputs: Inputs) -> Tensor:
        if isinstance(inputs, dict):
            return inputs[str(node.target)]
        return tensors(inputs)[self._arguments.index(node)]


class Checkpoints:
    """One kept cut per chunk of inputs, from which walks to later nodes begin, so that nothing runs twice.

    Where a cut would hold too much, the last one before it that does not is kept: between the blocks of a network there
    is less to hold than inside of them.
    """

    def __init__(
        self, interpreter: Interpreter, chunks: Sequence[Inputs], held_bytes: float, dtype: torch.dtype | None = None
    ) -> None:
        """Nothing is kept yet.

        Args:
            interpreter: Executes the nodes.
            chunks: Inputs, B samples each.
            held_bytes: Activations that may be kept for all chunks together; longer samples have a larger share.
            dtype: What floating-point inputs become when they are read, None to leave them.
        """
        self._interpreter, self._chunks, self._dtype = interpreter, chunks, dtype
        self._cuts = [START] * len(chunks)
        sizes = [sum(tensor.numel() for tensor in tensors(chunk)) for chunk in chunks]
        self._most = [held_bytes * size / max(sum(sizes), 1) for size in sizes]

    def advance(self, network: nn.Module, index: int, stop: int) -> Cut:
        """The cut of one chunk in front of node `stop`; it, or one before it, is kept.

        Args:
            network: Executes the nodes; the same one for all walks, but for nodes that have not been reached.
            index: Which chunk.
            stop: Index in the order of execution; one before the kept cut is reached from the start.
        """
        inputs, kept = self._chunks[index], self._cuts[index]
        if self._dtype is not None:
            inputs = narrowed(inputs, self._dtype)
        cut = begin = kept if kept.place <= stop else START
        with torch.no_grad():
            for cut in self._interpreter.cuts(network, inputs, begin=begin, stop=stop):
                if cut.nbytes <= self._most[index]:
                    self._cuts[index] = cut
        return cut


def run(program: fx.Graph, network: nn.Module, inputs: Inputs) -> Iterator[tuple[fx.Node, Any]]:
    """Runs a program on the modules of `network`, yielding each node with its value."""
    for node, values in Interpreter(program.nodes).walk(network, inputs):
        yield node, values[node]


def execute(node: fx.Node, network: nn.Module, values: Mapping[fx.Node, Any]) -> Any:
    """The value of one node that is no argument, given the values of the nodes that it reads."""
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(network)
    if node.op == "output":
        return args[0]
    raise ValueError(f"an operator of kind {node.op!r} cannot stand inside a graph")
