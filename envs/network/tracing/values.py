"""What the nodes of a trace that is under way are with the example inputs: so conditions on sizes are decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils._python_dispatch import _disable_current_modes

from envs.network.copies import copy_network, in_mode
from envs.network.inputs import Inputs, tensors
from envs.network.interpreter import Values, execute

_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__
"""As they are outside of traces."""


class ExampleValues:
    """Runs what a node of a program depends on, once, in eval mode: sizes are the same in both."""

    def __init__(self, network: nn.Module, example_input: Inputs) -> None:
        """Nothing has run.

        Args:
            network: The network that is traced.
            example_input: Its inputs.
        """
        self._network, self._inputs = network, tensors(example_input)
        self._twin = in_mode(copy_network(network))  # forward may assign records to what the network holds, meanwhile
        self._known: Values = {}

    def plain(self, node: fx.Node) -> Any:
        """The value of a node that is a number, a truth value or a sequence.

        Raises:
            TraceError: If it is a tensor, whose values and length may be others with other inputs.
        """
        if isinstance(value := self.of(node), Tensor):
            raise fx.proxy.TraceError(f"forward asks for the values of {node.name!r}")
        return value

    def of(self, node: fx.Node) -> Any:
        """The value of any node.

        Raises:
            TraceError: If the inputs are themselves records.
        """
        if not all(isinstance(one, Tensor) for one in self._inputs):
            raise fx.proxy.TraceError("a trace inside of a trace has no example")
        needed = self._needed(node)
        given = iter(self._inputs)
        with _untraced(), _unseen(self._inputs), torch.no_grad(), torch.random.fork_rng(devices=[]):
            for one in node.graph.nodes:
                argument = next(given) if one.op == "placeholder" else None
                if one in needed:
                    self._known[one] = self._value(one) if argument is None else argument
        return self._known[node]

    def _needed(self, node: fx.Node) -> set[fx.Node]:
        """A node and what it depends on, of what has not run."""
        needed: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one not in needed and one not in self._known:
                needed.add(one)
                waiting += one.all_input_nodes
        return needed

    def _value(self, node: fx.Node) -> Any:
        made = node.op == "get_attr" and not hasattr(self._twin, str(node.target).partition(".")[0])
        return execute(node, self._network if made else self._twin, self._known)  # what torch.fx made it put there


@contextmanager
def _untraced() -> Iterator[None]:
    """Modules run and give their parameters as outside of a trace."""
    traced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = traced  # type: ignore[method-assign]


@contextmanager
def _unseen(inputs: Sequence[Any]) -> Iterator[None]:
    """What runs here is no part of any forward: whoever counts or exports operators does not see it.

    torch.export's tensors without values need the mode that knows their sizes.
    """
    if not any(isinstance(one, FakeTensor) for one in inputs):
        with _disable_current_modes():
            yield
        return
    with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
        yield
