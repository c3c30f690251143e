"""Sizes that a program holds as numbers become those of its tensors, so that it runs on fewer channels, too.

torch.export writes down a width as the number that it was, also where forward asked a tensor for it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.inputs import Inputs
from envs.network.interpreter import run


def follow_sizes(program: fx.Graph, network: nn.Module, example_input: Inputs) -> None:
    """Rewrites the sizes of reshapes and expansions where they are sizes of what is reshaped, or products of these.

    Parts of equal size become so many parts. An axis that is divided keeps its numbers: whether heads or their widths
    follow cannot be told.

    Args:
        program: The program, changed in place.
        network: The network.
        example_input: Inputs of the program.
    """
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    with torch.no_grad():
        for node, value in run(program, network, example_input):
            if isinstance(value, Tensor):
                shapes[node] = tuple(value.shape)
    for node in list(program.nodes):
        if node.target == "expand" and node.op == "call_method":
            _follow_expansion(node, shapes)
        elif node.target in ("reshape", torch.reshape):
            _follow_reshape(program, node, shapes)
        elif node.target is torch.ops.aten.split.Tensor:
            _follow_split(node, shapes)


def _operands(node: fx.Node) -> Any:
    """What is reshaped, and how."""
    return node.args


def _follow_expansion(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
    source, given = _operands(node)
    sizes = list(given)
    before = (None,) * (len(sizes) - len(shapes[source])) + shapes[source]
    kept = [-1 if size == old and type(size) is int else size for size, old in zip(sizes, before, strict=True)]
    node.update_arg(1, kept)


def _follow_split(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
    source, size, *axes = _operands(node)
    axis = axes[0] if axes else 0
    count, rest = divmod(shapes[source][axis], size) if type(size) is int else (0, 1)
    if not rest:
        node.target, node.args = torch.chunk, (source, count, axis)


def _follow_reshape(program: fx.Graph, node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
    source, given = _operands(node)
    sizes = list(given)
    follows = {
        new[0]: old
        for old, new in matched(shapes[source], shapes[node])
        if len(new) == 1 and type(sizes[new[0]]) is int and sizes[new[0]] > 1
    }
    free = -1 not in sizes and len(follows) == 1
    with program.inserting_before(node):
        for place, axes in follows.items():
            read = [] if free else [program.call_method("size", (source, axis)) for axis in axes]
            sizes[place] = -1 if free else reduce(lambda a, b: program.call_function(operator.mul, (a, b)), read)
    node.update_arg(1, sizes)


def matched(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The fewest axes that hold the same elements before and after a reshape, from left to right.

    Args:
        before: [a] sizes.
        after: [b] sizes with the same product.
    """
    old, new = 0, 0
    while old < len(before) and new < len(after):
        first, second = [old], [new]
        left, right = before[old], after[new]
        while left != right:
            if left < right:
                old += 1
                first.append(old)
                left *= before[old]
            else:
                new += 1
                second.append(new)
                right *= after[new]
        yield first, second
        old, new = old + 1, new + 1
