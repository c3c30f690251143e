"""Programs of torch.export that read attributes of modules off the network that they run on."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

from torch import fx, nn

from envs.network.inputs import Inputs
from envs.network.kinds import plain_name
from envs.network.tracing.exported import exported


def exported_reading(network: nn.Module, example_input: Inputs, attributes: Collection[str]) -> fx.Graph:
    """The program of torch.export with sizes that equal a number of the module that runs them read off that module.

    Two numbers of the same value cannot be told apart: the last one named counts, and verification says whether it was
    the right one.

    Args:
        network: The network, in eval mode; it is not changed.
        example_input: As in `exported`.
        attributes: Whole numbers that modules hold; buffers are read off in any case.
    """
    program = exported(network, example_input)
    first = next(iter(program.nodes))
    for name in attributes:
        value = operator.attrgetter(name)(network)
        if not isinstance(value, int):
            continue
        with program.inserting_before(first):
            read = program.create_node("get_attr", name)
        for node in program.nodes:
            if _owner(node) == name.rpartition(".")[0]:
                node.args = tuple(_replaced(node, place, value, read) for place in range(len(node.args)))
    return program


def _owner(node: fx.Node) -> str:
    stack = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    return str(stack[-1]) if stack and node.op != "call_module" else ""


def _replaced(node: fx.Node, place: int, value: int, read: fx.Node) -> Any:
    """An argument with the number in the place of sizes that equal it; axes are no sizes."""
    argument = node.args[place]
    if isinstance(argument, (list, tuple)):
        return [read if type(one) is int and one == value else one for one in argument]
    sized = plain_name(node.target) in ("split", "repeatinterleave") and place == 1
    return read if sized and argument == value else argument
