"""Which operator stands in the way: where a network without some channels first fails or gives something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from envs.network.calls import observed_modules
from envs.network.copies import same_output
from envs.network.graph import Graph, Node
from envs.network.inputs import Inputs, call
from envs.network.interpreter import run
from envs.network.kinds import plain_name

PER_CHANNEL = ("conv", "transposed", "linear", "norm", "activation", "add", "mul", "pool", "input")
"""Kinds of operators that are known to keep channels apart, or to read them by weight."""


class Step(NamedTuple):
    """One operator's value, or the error that it raised."""

    label: str
    value: Any
    node: fx.Node | None = None
    error: Exception | None = None


def find_culprit(
    graph: Graph, silent: nn.Module, small: nn.Module, inputs: Inputs, stays: Sequence[int], tolerance: float
) -> str:
    """Names the first operator that fails without the channels, or differs; '' where none does.

    Args:
        graph: The network's operators.
        silent: The network with the channels silenced.
        small: The network without them.
        inputs: B samples.
        stays: Channels that stay.
        tolerance: Largest accepted difference, relative to the largest value.
    """
    changed: set[fx.Node] = set()
    for full, cut in zip(_steps(graph, silent, inputs), _steps(graph, small, inputs), strict=False):
        if cut.error is not None:
            return f"{cut.label} does not run ({first_line(cut.error)}){_behind(graph, cut.node, changed)}"
        if full.error is not None or _differs(full.value, cut.value, stays, tolerance):
            return f"{cut.label} gives something else{_behind(graph, cut.node, changed)}"
        if cut.node is not None and _sizes(full.value) != _sizes(cut.value):
            changed.add(cut.node)
    return ""


def first_line(error: Exception) -> str:
    """Class and first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def failing_module(network: nn.Module, inputs: Inputs) -> str:
    """Name and class of the innermost module in which a forward pass fails, '' where it does not."""
    step = next((step for step in _module_steps(network, inputs) if step.error is not None), None)
    return step.label if step is not None else ""


def _steps(graph: Graph, network: nn.Module, inputs: Inputs) -> Iterator[Step]:
    if graph.program is None:
        yield from _module_steps(network, inputs)
        return
    labels = {node.source: str(node) for node in graph.nodes}
    nodes = iter(graph.program.nodes)
    with torch.no_grad():
        walk = run(graph.program, network, inputs)
        while True:
            node = next(nodes, None)
            if node is None:
                return
            label = labels.get(node.name, repr(plain_name(node.target)))
            try:
                _, value = next(walk)
            except Exception as error:  # whatever the network's own code raises
                yield Step(label, None, node, error)
                return
            yield Step(label, value, node)


def _module_steps(network: nn.Module, inputs: Inputs) -> Iterator[Step]:
    """The output of every module in the order in which they end; at last the error, with the module that raised it."""
    steps: list[Step] = []
    inside: list[str] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        steps.append(Step(inside.pop(), output))

    modules = [
        (f"{name or 'forward'!r} ({type(module).__name__})", module) for name, module in observed_modules(network)
    ]
    handles = [
        module.register_forward_pre_hook(lambda module, args, label=label: inside.append(label))
        for label, module in modules
    ]
    handles += [module.register_forward_hook(leave) for _, module in modules]
    try:
        with torch.no_grad():
            call(network, inputs)
    except Exception as error:  # whatever the network's own code raises
        steps.append(Step(inside[-1], None, None, error))
    finally:
        for handle in handles:
            handle.remove()
    yield from steps


def _sizes(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _differs(full: Any, cut: Any, stays: Sequence[int], tolerance: float) -> bool:
    """Whether two values differ on the channels that stay; where that cannot be told, they do not."""
    if not (isinstance(full, Tensor) and isinstance(cut, Tensor)) or full.ndim != cut.ndim:
        return False
    axes = [axis for axis, (a, b) in enumerate(zip(full.shape, cut.shape, strict=True)) if a != b]
    if len(axes) == 1 and cut.shape[axes[0]] == len(stays) and max(stays, default=0) < full.shape[axes[0]]:
        full = full.index_select(axes[0], torch.tensor(list(stays), device=full.device))
        axes = []
    return not axes and not same_output(full, cut, tolerance)


def _behind(graph: Graph, node: fx.Node | None, changed: set[fx.Node]) -> str:
    """The nearest operator before `node` that rearranges what it reads of the channels."""
    if node is None or graph.program is None:
        return ""
    known = {one.source: one for one in graph.nodes}
    before = _ancestors(node)
    for source in reversed(list(graph.program.nodes)):
        operator: Node | None = known.get(source.name)
        if source in before and source in changed and operator is not None and operator.kind not in PER_CHANNEL:
            return f" behind {operator}"
    return ""


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting = list(chain(waiting, one.all_input_nodes))
    return found
