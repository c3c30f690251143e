"""Groups of channels read off the operator graph alone, where Torch-Pruning loses them.

Only what is plain: layers whose channels reach other layers through operators that keep every channel in its place.
"""

from __future__ import annotations

from torch import nn

from envs.network.graph import Graph, Node
from envs.network.kinds import WEIGHTED
from hw_profiles.layers import WEIGHTED as WEIGHTED_KINDS

_PASSING = ("norm", "activation", "add", "mul", "pool")


class Island:
    """The axes that hold the output channels of one layer, found by walking forwards and backwards."""

    def __init__(self, graph: Graph, network: nn.Module, layer: str) -> None:
        """Walks; `closed` says whether every way ended at a layer."""
        self._graph, self._network = graph, network
        self._readers: dict[int, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            for source in node.inputs:
                self._readers.setdefault(source, []).append(index)
        self.producers: dict[str, None] = {}
        self.carriers: dict[str, None] = {}
        self.consumers: dict[str, None] = {}
        self.closed = graph.program is not None and graph.calls().get(layer) == 1 and self._walk(graph.order()[layer])

    def _walk(self, start: int) -> bool:
        beyond = self._seen_elsewhere()
        seen, waiting = {start}, [start]
        while waiting:
            index = waiting.pop()
            node = self._graph.nodes[index]
            passes = self._passes(node)
            if (not passes and node.kind not in WEIGHTED_KINDS) or node.source in beyond:
                return False
            if not passes and node.module is not None:
                self.producers[node.module] = None
            elif node.module is not None:
                self.carriers[node.module] = None
            following = list(node.inputs) if passes else []
            for reader in self._readers.get(index, []):
                other = self._graph.nodes[reader]
                if other.kind in WEIGHTED_KINDS and not self._passes(other):
                    self.consumers[str(other.module)] = None
                else:
                    following.append(reader)
            waiting += [one for one in dict.fromkeys(following) if one not in seen]
            seen.update(following)
        return bool(self.consumers)

    def _passes(self, node: Node) -> bool:
        """Whether an operator keeps channels apart: elementwise, a normalization, a depthwise convolution."""
        module = self._network.get_submodule(node.module) if node.module is not None else None
        depthwise = isinstance(module, WEIGHTED) and 1 < getattr(module, "groups", 1) == getattr(
            module, "out_channels", 0
        )
        return node.kind in _PASSING or depthwise

    def _seen_elsewhere(self) -> set[str]:
        """Names of program nodes that are outputs, or read something that is no operator (a parameter)."""
        known = {node.source for node in self._graph.nodes}
        program = self._graph.require_program()
        outputs = {source.name for node in program.nodes if node.op == "output" for source in node.all_input_nodes}
        mixed = {node.name for node in program.nodes if any(s.name not in known for s in node.all_input_nodes)}
        return outputs | mixed
