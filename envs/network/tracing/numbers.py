"""Numbers that operators of a program are told: sizes of reshapes and of parts, bounds of slices.

Some of them can follow the tensors at hand, in the place of those that the program was recorded with.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import fx

from envs.network.kinds import plain_name

SIZED = ("reshape", "unflatten", "expand", "split", "splitwithsizes", "getitem")
"""Operators that are told sizes, by `plain_name`; of `getitem` those with slices."""


class Size(NamedTuple):
    """One number in a forward, and what it is from now on.

    Attributes:
        place: The operator that is told it: its place among those of `SIZED` in the program that read what layers give.
        entry: Its place among the numbers that the operator is told (`told`).
        axis: Axis of the tensor that the operator reads with which it changes in proportion; -1: it is `width`.
        width: How wide that axis is in the dense network.
    """

    place: int
    entry: int
    axis: int
    width: int


class Resizing:
    """Lets numbers of a program be what `Size` says, node by node while it is written."""

    def __init__(self, sizes: Sequence[Size] = ()) -> None:
        """Nothing is written.

        Args:
            sizes: The numbers that follow.
        """
        self._sizes = sizes
        self._graph: fx.Graph | None = None
        self._behind: set[fx.Node] = set()
        self.places: list[fx.Node] = []
        """The operators that are told sizes of what layers give, so far: those of masks come and go with the mask."""

    def __call__(self, node: fx.Node) -> None:
        """Takes the next node of the program, or the first one of another attempt to record it."""
        if node.graph is not self._graph:
            self._graph, self._behind, self.places = node.graph, set(), []
        if node.op == "call_module" or self._behind.intersection(node.all_input_nodes):
            self._behind.add(node)
        if not _is_sized(node) or read_by(node) not in self._behind:
            return
        for size in self._sizes:
            if size.place == len(self.places):
                _rewrite(node, size)
        self.places.append(node)


def _is_sized(node: fx.Node) -> bool:
    """Whether a node is an operator of a tensor (or of sizes) that is told numbers."""
    called = node.op in ("call_function", "call_method") and plain_name(node.target) in SIZED
    return called and bool(node.args) and isinstance(node.args[0], fx.Node) and bool(told(node))


def read_by(node: fx.Node) -> fx.Node:
    """What an operator of `SIZED` splits, merges or takes a part of."""
    read = node.args[0]
    assert isinstance(read, fx.Node)
    return read


def told(node: fx.Node) -> list[Any]:
    """The numbers that an operator is told: sizes of a reshape or of parts, or starts and stops of slices in turns.

    Args:
        node: One of `SIZED`.
    """
    numbers: list[Any] = []

    def note(number: Any) -> Any:
        numbers.append(number)
        return number

    _through(node, note)
    return numbers


def tell(node: fx.Node, numbers: Sequence[Any]) -> None:
    """Puts other numbers in the place of those that `told` gives, in place."""
    rest = iter(numbers)
    node.args = _through(node, lambda _: next(rest))


def _rewrite(node: fx.Node, size: Size) -> None:
    """Lets one number of an operator be what `size` says, in place."""
    numbers: list[Any] = told(node)
    number: Any = size.width
    if size.axis >= 0 and plain_name(node.target) in ("reshape", "unflatten") and -1 not in numbers:
        number = -1  # also where the axis holds the batch
    elif size.axis >= 0:
        with node.graph.inserting_before(node):
            now = node.graph.call_method("size", (read_by(node), size.axis))
            scaled = node.graph.call_function(operator.mul, (numbers[size.entry], now))
            number = node.graph.call_function(operator.floordiv, (scaled, size.width))
    numbers[size.entry] = number
    tell(node, numbers)


def _through(node: fx.Node, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The arguments of an operator with every number that it is told changed."""
    name, args = plain_name(node.target), list(node.args)
    if name == "getitem":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        cut = tuple(slice(change(i.start), change(i.stop), i.step) if isinstance(i, slice) else i for i in index)
        return args[0], cut if isinstance(args[1], tuple) else cut[0]
    first = 2 if name == "unflatten" else 1
    last = first + 1 if name.startswith("split") else len(args)
    return (*args[:first], *(_each(one, change) for one in args[first:last]), *args[last:])


def _each(one: Any, change: Callable[[Any], Any]) -> Any:
    return type(one)(map(change, one)) if isinstance(one, list | tuple) else change(one)
