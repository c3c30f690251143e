"""Where a traced network has residual branches: found by structure, whatever its modules are called.

A branch is all that one addend of an addition is computed from and nothing else is, where the other addend, the
shortcut, runs through fewer layers with a weight from what both begin with. That it can go is verified elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from envs.network.graph import Graph, Node
from envs.units.units import Fixed
from hw_profiles.layers import WEIGHTED as WEIGHTED_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBranch:
    """One branch.

    Attributes:
        sum: The addition.
        exit: The addend that the branch computes.
        other: The other one, the shortcut.
        inside: All nodes of the branch, its exit among them.
        rows: Their places among the graph's operators.
        row: The addition's.
        layers: Layers with a weight inside, in execution order.
    """

    sum: fx.Node
    exit: fx.Node
    other: fx.Node
    inside: frozenset[fx.Node]
    rows: tuple[int, ...]
    row: int
    layers: tuple[str, ...]


def find_branches(graph: Graph, values: Mapping[fx.Node, object]) -> tuple[list[FoundBranch], list[Fixed]]:
    """The branches of a traced network in the order of their additions, and additions that have none, with the reason.

    Args:
        graph: Its operator graph, with a program.
        values: What its nodes give.
    """
    program = graph.require_program()
    places = {node.source: place for place, node in enumerate(graph.nodes)}
    weighted = {node.source for node in graph.nodes if node.kind in WEIGHTED_KINDS}
    found: list[FoundBranch] = []
    fixed: list[Fixed] = []
    for node in program.nodes:
        place = places.get(node.name)
        if place is None or graph.nodes[place].kind != "add" or len(node.all_input_nodes) != 2:
            continue
        chosen = _branch_of(program, node, weighted)
        if chosen is None:
            continue
        out, other = chosen
        inside = _only_for(program, out, node)
        rows = sorted(places[one.name] for one in inside if one.name in places)
        layers = tuple(graph.nodes[row].name for row in rows if graph.nodes[row].kind in WEIGHTED_KINDS)
        if reason := _unfit(node, out, other, values, layers):
            if layers:
                fixed.append(Fixed(f"{layers[-1]}.branch", reason))
            continue
        found.append(
            FoundBranch(
                sum=node,
                exit=out,
                other=other,
                inside=frozenset(inside),
                rows=tuple(rows),
                row=place,
                layers=layers,
            )
        )
    return found, fixed


def _branch_of(program: fx.Graph, addition: fx.Node, weighted: set[str]) -> tuple[fx.Node, fx.Node] | None:
    """The addend that is a branch and the one that is its shortcut, None where neither is."""
    first, second = addition.all_input_nodes
    ways = _ways(program, first, weighted), _ways(program, second, weighted)
    common = ways[0].keys() & ways[1].keys()
    longer = {ways[0][node] > ways[1][node] for node in common if ways[0][node] != ways[1][node]}
    if len(longer) != 1:
        return None
    out, other = (first, second) if longer == {True} else (second, first)
    alone = len(out.users) == 1 and out.op not in ("placeholder", "get_attr")
    return (out, other) if alone else None


def _ways(program: fx.Graph, end: fx.Node, weighted: set[str]) -> dict[fx.Node, int]:
    """Each node that another one depends on -> layers with a weight on the shortest way from it, parameters apart."""
    found = {end: 0}
    for node in reversed(program.nodes):
        if node not in found:
            continue
        step = found[node] + (node.name in weighted)
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                found[source] = min(step, found.get(source, step))
    return found


def _only_for(program: fx.Graph, out: fx.Node, addition: fx.Node) -> set[fx.Node]:
    """All nodes that nothing but one addend of an addition depends on, the addend among them."""
    inside = {out}
    for node in reversed(program.nodes):
        computed = node is not addition and node.op not in ("placeholder", "output")
        if computed and node.users and all(user in inside for user in node.users):
            inside.add(node)
    return inside


def _unfit(
    addition: fx.Node, out: fx.Node, other: fx.Node, values: Mapping[fx.Node, object], layers: tuple[str, ...]
) -> str:
    """Why a branch cannot go, or ''."""
    if not layers:
        return "no layer with a weight is its own"
    shapes = [one.shape for one in (values[node] for node in (addition, out, other)) if isinstance(one, Tensor)]
    if len(shapes) != 3 or len(set(shapes)) != 1 or len(shapes[0]) < 2:
        return "the branch and its shortcut have not the same shape"
    return ""


def modules_inside(network: nn.Module, graph: Graph, found: FoundBranch) -> Iterator[str]:
    """Names of the modules all of whose operators are inside of a branch, each behind those around it."""
    mine = {graph.nodes[row].source for row in found.rows}
    for name in sorted(_around(graph, found), key=lambda text: (text.count("."), text)):
        module = network.get_submodule(name)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue
        if all(node.source in mine for node in graph.nodes if is_inside(node, name)):
            yield name


def _around(graph: Graph, found: FoundBranch) -> set[str]:
    owners = {graph.nodes[row].owner for row in found.rows}
    return {owner.rsplit(".", count)[0] for owner in owners if owner for count in range(owner.count(".") + 1)}


def is_inside(node: Node, module: str) -> bool:
    """Whether an operator runs in a module's forward, or in one within it."""
    return node.owner == module or node.owner.startswith(f"{module}.")
