"""The traced program of a network without some branches: their operators are gone, constants are added instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from envs.network.graph import Graph, Node
from envs.units.branches.trial import VerifiedBranch


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is left of a traced network.

    Attributes:
        graph: Its operator graph; runs on the network without the branches.
        nodes: Node of the dense program -> the one that stands for it; what a branch gave, its constant.
        constants: Name of a branch -> the node of its constant, whose only argument is the shortcut.
    """

    graph: Graph
    nodes: Mapping[fx.Node, fx.Node]
    constants: Mapping[str, fx.Node]


def remaining(graph: Graph, gone: Sequence[VerifiedBranch]) -> Remaining:
    """The traced network without some branches, none inside of another.

    Args:
        graph: The dense network's, with a program.
        gone: What is removed.
    """
    program = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    constants: dict[str, fx.Node] = {}
    dropped = {node for one in gone for node in one.found.inside}
    sums = {one.found.sum: one for one in gone}
    for node in graph.require_program().nodes:
        if node in dropped:
            continue
        if (one := sums.get(node)) is not None:
            constant = program.call_module(one.branch.constant, (nodes[one.found.other],))
            constants[one.name] = nodes[one.found.exit] = constant
        nodes[node] = program.node_copy(node, nodes.__getitem__)
    operators = _operators(graph, {row for one in gone for row in one.found.rows}, nodes)
    return Remaining(graph=replace(graph, nodes=operators, program=program), nodes=nodes, constants=constants)


def _operators(graph: Graph, gone: set[int], nodes: Mapping[fx.Node, fx.Node]) -> tuple[Node, ...]:
    names = {old.name: new.name for old, new in nodes.items()}
    places: dict[int, int] = {}
    kept: list[Node] = []
    for row, node in enumerate(graph.nodes):
        if row not in gone:
            places[row] = len(kept)
            inputs = tuple(places[source] for source in node.inputs if source in places)
            kept.append(replace(node, inputs=inputs, source=names.get(node.source, "")))
    return tuple(kept)
