"""An exported program in the form in which torch.fx records one.

torch.export gives aten operators on lifted parameters. Here layers become calls of modules again, parameters and
buffers what the network holds, operators torch's own functions, sizes and devices those of the inputs at hand: so the
same program runs on copies and on networks with fewer channels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_unflatten

from envs.network.tracing.leaves import constant
from envs.network.tracing.opaque import LayerCall, layer_operator

INNER = "network"
"""Name under which the network stands in the module that is exported."""

_CHECKS = ("_assert", "sym_constrain_range")
"""Beginnings of the names of operators that compute nothing."""

_SAME = ("alias", "detach", "lift_fresh", "lift_fresh_copy")
"""Operators that give what they are given."""

_METHODS = {"view": "reshape", "sym_size": "size", "contiguous": "contiguous", "expand": "expand"}
"""Operators that are methods of tensors only; `view` becomes `reshape`, which also takes channels-last maps."""

_END = 2**63 - 1
"""Where a slice stops that has no stop."""


def rewritten(
    program: Any, network: nn.Module, calls: Sequence[LayerCall], names: Sequence[str], device: torch.device
) -> fx.Graph:
    """The program as a graph of calls of modules, functions and methods.

    Args:
        program: A `torch.export.ExportedProgram` without operators in place.
        network: The network.
        calls: The calls of its layers.
        names: Names of its inputs, in order.
        device: Where it was exported: what the program puts there will be put where the inputs are.

    Raises:
        ValueError: If the forward changes a buffer, or parts of it run under other rules (a precision, a branch).
    """
    nodes = list(program.graph.nodes)
    given = {node.name: node for node in nodes if node.op == "placeholder"}
    signature = program.graph_signature
    if len(signature.user_outputs) != len(nodes[-1].args[0]):
        raise ValueError("its forward changes a buffer")
    writer = _Writer(calls, device)
    for name, inner in zip(names, signature.user_inputs, strict=True):
        writer.add_input(given[inner], name)
    for name, inner in _lifted(signature).items():
        writer.add_tensor(given[name], inner.removeprefix(f"{INNER}."), program.constants.get(inner), network)
    writer.add_operators(nodes)
    writer.add_output(nodes[-1].args[0], program.call_spec.out_spec)
    return writer.graph


def _lifted(signature: Any) -> dict[str, str]:
    """Placeholder -> name of the parameter, the buffer or the tensor that stands for."""
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


class _Writer:
    """Writes a graph, node by node."""

    def __init__(self, calls: Sequence[LayerCall], device: torch.device) -> None:
        self.graph = fx.Graph()
        self._calls, self._device = calls, device
        self._known: dict[fx.Node, Any] = {}
        self._here: fx.Node | None = None

    def add_input(self, node: fx.Node, name: str) -> None:
        """An argument of the network."""
        self._known[node] = self.graph.placeholder(name)

    def add_tensor(self, node: fx.Node, name: str, value: Any, network: nn.Module) -> None:
        """A tensor that the network holds under a name, else a constant."""
        if not node.users:
            return
        try:
            held = operator.attrgetter(name)(network)
        except AttributeError:
            held = None
        if isinstance(held, Tensor):
            self._known[node] = self.graph.create_node("get_attr", name)
        else:
            self._known[node] = self.graph.call_function(constant, (value,))

    def add_operators(self, nodes: Iterable[fx.Node]) -> None:
        """Everything between inputs and outputs."""
        for node in nodes:
            if node.op == "call_function":
                last = next(iter(reversed(self.graph.nodes)))
                self._known[node] = self._written(node)
                while last.next.op != "root":
                    last = last.next
                    last.meta.setdefault("nn_module_stack", _stack(node))  # parts within have their own

    def add_output(self, values: Any, structure: Any) -> None:
        """What the network returns: as it is where torch.fx can hold it, else its tensors in order."""
        leaves = list(self._arguments(values))
        returned = tree_unflatten(leaves, structure)
        plain = isinstance(returned, fx.Node) or type(returned) in (tuple, list, dict)
        self.graph.output(returned if plain else tuple(leaves))

    def _written(self, node: fx.Node) -> Any:
        target: Any = node.target
        if target is layer_operator():
            return self._layer(node)
        if isinstance(target, HigherOrderOperator):
            return self._inlined(node)
        args, kwargs = self._arguments(node.args), self._arguments(node.kwargs)
        if target is operator.getitem and isinstance(args[0], list):
            return args[0][args[1]]
        name = getattr(getattr(target, "overloadpacket", None), "__name__", "")
        if name.startswith(_CHECKS):
            return None
        if name in _SAME or _does_nothing(node, name):
            return args[0]
        if name in _METHODS:
            return self.graph.call_method(_METHODS[name], args, kwargs)
        if name == "slice":
            return self.graph.call_function(operator.getitem, _slice(*args))
        return self.graph.call_function(_function(target, name), args, kwargs)

    def _arguments(self, value: Any) -> Any:
        """Arguments with nodes of this graph, where the inputs are."""

        def known(one: Any) -> Any:
            if isinstance(one, fx.Node):
                return self._known[one]
            return self._inputs_device() if isinstance(one, torch.device) and one == self._device else one

        return fx.node.map_aggregate(value, known)

    def _inputs_device(self) -> fx.Node:
        if self._here is None:
            first = next(iter(self.graph.nodes))
            with self.graph.inserting_after(first):
                self._here = self.graph.call_function(getattr, (first, "device"))
        return self._here

    def _layer(self, node: fx.Node) -> list[fx.Node]:
        """A call of a layer; the tensors that it returns."""
        tensors, place = node.args
        call = self._calls[int(place)]  # type: ignore[arg-type]
        module = self.graph.call_module(call.name, *call.arguments(self._arguments(tensors)))
        return [self._taken(module, path) for path in call.outputs]

    def _taken(self, module: fx.Node, path: Iterable[Any]) -> fx.Node:
        for step in path:
            module = self.graph.call_function(operator.getitem, (module, step))
        return module

    def _inlined(self, node: fx.Node) -> list[Any]:
        """A part that the forward runs with automatic precision switched off, in the place of its call."""
        if str(node.target) != "wrap_with_autocast" or node.args[2] is not False:
            raise ValueError(f"a part of its program runs under other rules ({node.target})")
        module: Any = node.graph.owning_module
        part, *given = node.args[4:]
        inner = list(module.get_submodule(str(part.target)).graph.nodes)  # type: ignore[union-attr]
        ends = [one for one in inner if one.op == "placeholder"]
        self._known |= dict(zip(ends, self._arguments(given), strict=True))
        self.add_operators(inner)
        return list(self._arguments(inner[-1].args[0]))


def _does_nothing(node: fx.Node, name: str) -> bool:
    """Whether an operator gives what it is given: dropout outside of training, a slice of all, a cast to the same."""
    if name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        return node.args[-1] is False
    if name == "slice":
        return tuple(node.args[2:]) in ((0, _END), (0, _END, 1))
    if name in ("to", "_to_copy"):
        source = node.args[0].meta["val"]  # type: ignore[union-attr]
        return bool(source.dtype == node.meta["val"].dtype and source.is_floating_point())
    return False


def _slice(source: fx.Node, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> tuple[fx.Node, Any]:
    """Arguments of `getitem` for a slice of one axis."""
    cut = slice(start, None if stop == _END else stop, None if step == 1 else step)
    whole = slice(None)
    return source, (*[whole] * axis, cut) if axis >= 0 else (Ellipsis, cut, *[whole] * (-1 - axis))


def _function(target: Any, name: str) -> Any:
    """Torch's own function where there is one of the operator's name, else the operator."""
    function = getattr(torch, name, None)
    return function if isinstance(function, BuiltinFunctionType) else target


def _stack(node: fx.Node) -> dict[str, tuple[str, Any]]:
    """The modules whose forwards run a node, from outside to inside, by their names in the network."""
    stack = {}
    for key, (name, kind) in node.meta.get("nn_module_stack", {}).items():
        inner = name.partition("@")[0].removeprefix(INNER).removeprefix(".")
        if name.startswith(INNER):
            stack[key] = (inner, kind)
    return stack
