"""What the nodes of a trace that is under way are with the example inputs: so conditions on sizes are decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from envs.network.copies import copy_network
from envs.network.inputs import Inputs, tensors
from envs.network.interpreter import Values, execute

Change: TypeAlias = Callable[[fx.Graph], fx.Graph]
"""What is done to a program, or to its beginning, in place."""


def unchanged(program: fx.Graph) -> fx.Graph:
    """Nothing is done."""
    return program


_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__
"""As they are outside of traces."""


class ExampleValues:
    """Runs the beginning of a program as far as somebody asks, changed as the program will be."""

    def __init__(self, network: nn.Module, example_input: Inputs, change: Change) -> None:
        """Nothing has run.

        Args:
            network: The network that is traced.
            example_input: Its inputs.
            change: What is done to the program; the network may not run without.
        """
        self._network, self._inputs, self._change = network, tensors(example_input), change
        self._known: Values = {}
        self._twin = copy_network(network)  # in a trace forward may assign records to what the network holds

    def plain(self, node: fx.Node) -> Any:
        """The value of a node that is a number, a truth value or a sequence.

        Raises:
            TraceError: If it is a tensor, whose values and length may be others with other inputs.
        """
        if not all(isinstance(one, Tensor) for one in self._inputs):
            raise fx.proxy.TraceError("a trace inside of a trace has no example")
        begun, twins = fx.Graph(), dict[fx.Node, fx.Node]()
        begun.graph_copy(node.graph, twins)
        given = iter(self._inputs)
        values = {twins[one]: value for one, value in self._known.items()}
        with _untraced(), torch.no_grad():
            for one in self._change(begun).nodes:
                argument = next(given) if one.op == "placeholder" else None
                if one not in values:
                    values[one] = self._value(one, values) if argument is None else argument
        self._known = {one: values[twin] for one, twin in twins.items()}
        if isinstance(value := self._known[node], Tensor):
            raise fx.proxy.TraceError(f"forward asks for the values of {node.name!r}")
        return value

    def _value(self, node: fx.Node, values: Values) -> Any:
        made = node.op == "get_attr" and not hasattr(self._twin, str(node.target).partition(".")[0])
        return execute(node, self._network if made else self._twin, values)  # torch.fx puts tensors there that it made


@contextmanager
def _untraced() -> Iterator[None]:
    """Modules run and give their parameters as outside of a trace."""
    traced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = traced  # type: ignore[method-assign]
