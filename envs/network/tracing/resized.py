"""Modules whose forward takes the sizes of its heads from the tensors at hand, in the place of numbers in its code.

A forward that says `x.view(b, n, 4, 8)`, or `c // self.heads` of a width that stays, runs with the widths that it was
written for only. Here the same forward is recorded by torch.fx, and numbers that are named follow the channels. Which
numbers, and that the module computes the same, is found out in the room `attention`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Sequence
from threading import RLock
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from envs.network.interpreter import Interpreter
from envs.network.tracing.numbers import Resizing, Size
from envs.network.tracing.symbolic import symbolic


class Resized(nn.Module):
    """Stands for a module, and holds what it holds under the same names.

    Attributes:
        resized_class: The class of the module.
        resized_sizes: The numbers that follow.
        resized_record: Stands for the recorded programs, which copies share.
    """

    def __init__(self, module: nn.Module, sizes: Sequence[Size]) -> None:
        """Takes over layers and tensors; the module itself is not changed.

        Args:
            module: The module.
            sizes: The numbers that follow.
        """
        super().__init__()
        vars(self).update(vars(module))
        self.resized_class: type[nn.Module] = module.resized_class if isinstance(module, Resized) else type(module)
        self.resized_sizes, self.resized_record = tuple(sizes), Record()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward gives.

        Args:
            args: Arguments of the module's forward.
            kwargs: The same by name.

        Raises:
            Exception: Whatever torch.fx raises where the forward depends on values.
        """
        leaves, spec = tree_flatten((args, kwargs))
        returned: Any = None
        for node, values in self.program(leaves, spec).walk(self, tuple(filter(_is_tensor, leaves))):
            returned = values[node]
        return returned

    def __getattr__(self, name: str) -> Any:
        """What the module's class has: methods and properties, of what this module holds."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = inspect.getattr_static(vars(self).get("resized_class", nn.Module), name, None)
            if found is None:
                raise
            return found.__get__(self, type(self)) if hasattr(found, "__get__") else found

    def program(self, leaves: Sequence[Any], spec: TreeSpec) -> Interpreter:
        """The program that runs with such arguments, recorded once; arguments as in `recorded`."""
        programs = _programs.setdefault(self.resized_record, {})
        resizing = Resizing(self.resized_sizes)
        held = ((one.dtype, one.device) for one in (*self.parameters(), *self.buffers()))
        own = (value for one in self.modules() for value in vars(one).values() if isinstance(value, bool | float | str))
        key = (str(spec), *map(_constant, leaves), *held, *own)  # whole numbers are sizes, which `Size` lets follow
        with _recording:
            known = programs.setdefault(key, {})
            if _ANY not in known:
                try:
                    known[_ANY] = Interpreter(self.recorded(leaves, spec, resizing, decides=False).nodes)
                except fx.proxy.TraceError:  # forward asks for sizes: programs are those of the sizes at hand
                    known[_ANY] = None
            if (general := known[_ANY]) is not None:
                return general
            shapes = tuple(_example(leaf).shape for leaf in leaves if _is_tensor(leaf))
            if any(type(size) is not int for shape in shapes for size in shape):  # open, while torch.export runs
                return Interpreter(self.recorded(leaves, spec, resizing).nodes)
            if len(known) > MOST_SHAPES:
                known = programs[key] = {_ANY: None}
            if shapes not in known:
                known[shapes] = Interpreter(self.recorded(leaves, spec, resizing).nodes)
            return cast(Interpreter, known[shapes])

    def recorded(self, leaves: Sequence[Any], spec: TreeSpec, resizing: Resizing, *, decides: bool = True) -> fx.Graph:
        """The program of the module's own forward, called with such arguments.

        Args:
            leaves: All arguments, flat; tensors (or what stands for them) become inputs of the program.
            spec: How they are put together.
            resizing: Lets numbers follow.
            decides: Whether conditions on sizes are decided as with these arguments, rather than refused.

        Raises:
            ValueError: If there is an argument that could change unseen.
            Exception: Whatever torch.fx raises where the forward depends on values.
        """
        if strange := [leaf for leaf in leaves if not _is_tensor(leaf) and _constant(leaf) is type(leaf)]:
            raise ValueError(
                f"a module that is recorded takes tensors and numbers, but got a {type(strange[0]).__name__}: give it "
                "what is in it instead"
            )
        itself = self.resized_class.__new__(self.resized_class)
        itself.__dict__ = vars(self)
        called = _Called(itself, leaves, spec)
        given = tuple(_example(leaf) if decides else leaf for leaf in leaves if _is_tensor(leaf))
        program = symbolic(called, given, change=resizing, decides=decides)
        for node in program.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = str(node.target).partition(".")[2]
        return program


class Record:
    """Stands for the programs that copies of one module share; holds nothing, so that no file holds them."""

    def __deepcopy__(self, known: dict[int, Any]) -> Record:
        """Itself."""
        return self


_programs: WeakKeyDictionary[Record, dict[Any, dict[Any, Interpreter | None]]] = WeakKeyDictionary()
"""By what a module is called with: the program for any sizes, None if forward asks for sizes, and those by sizes."""
_ANY = "any"

MOST_SHAPES = 64
"""Programs by sizes that are kept of one way to call a module: texts of a batch may have any length."""
_recording = RLock()
"""torch.fx takes the place of module calls while it records: two threads cannot."""


def _is_tensor(value: Any) -> bool:
    """Whether an argument is a tensor, or stands for one while a network is traced."""
    return isinstance(value, Tensor | fx.Proxy | fx.Node)


def _example(value: Any) -> Any:
    """A tensor, or the one that a record of a trace stands for in its example.

    Raises:
        TraceError: If it stands for none.
    """
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, fx.Proxy) or not hasattr(value.tracer, "example"):
        raise fx.proxy.TraceError("a forward that asks for sizes needs tensors")
    return value.tracer.example.of(value.node)


def _constant(value: Any) -> Any:
    """What of an argument is written into a program."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value
    return Tensor if _is_tensor(value) else type(value)


class _Called(nn.Module):
    """A module that is given the tensors among its arguments in order; the others are as they were."""

    def __init__(self, module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> None:
        super().__init__()

        def arguments(given: Iterator[Any]) -> Any:  # copies of this module share it
            return tree_unflatten([next(given) if _is_tensor(leaf) else leaf for leaf in leaves], spec)

        self.module, self._arguments = module, arguments

    def forward(self, *given: Any) -> Any:
        args, kwargs = self._arguments(iter(given))
        return type(self.module).forward(self.module, *args, **kwargs)


def inline(graph: fx.Graph, network: nn.Module) -> None:
    """Puts the programs of a network's `Resized` modules in the place of their calls, in place."""
    for node in list(graph.nodes):
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, Resized):
            continue
        with graph.inserting_before(node):
            returned = _copied(graph, str(node.target), module, node)
        if isinstance(returned, fx.Node):
            node.replace_all_uses_with(returned)
        for taken in [one for one in node.users if one.target is operator.getitem]:
            taken.replace_all_uses_with(returned[taken.args[1]])
            graph.erase_node(taken)
        graph.erase_node(node)


def _copied(graph: fx.Graph, name: str, module: Resized, call: fx.Node) -> Any:
    """What the program of a module returns, written into a graph with the arguments of a call of the module."""
    leaves, spec = tree_flatten((call.args, dict(call.kwargs)))
    given = iter([leaf for leaf in leaves if isinstance(leaf, fx.Node)])
    twins: dict[fx.Node, Any] = {}
    for node in module.program(leaves, spec).order:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], twins.__getitem__)
        if node.op == "placeholder":
            twins[node] = next(given)
            continue
        twin = twins[node] = graph.node_copy(node, twins.__getitem__)
        twin.meta = {"nn_module_stack": {**call.meta.get("nn_module_stack", {}), name: (name, type(module))}}
        if node.op in ("call_module", "get_attr"):
            twin.target = f"{name}.{node.target}"
    raise ValueError(f"the program of {name!r} returns nothing")
