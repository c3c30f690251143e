"""Which positions of a layer's output reach the network's output: others need not be repaired.

A classifier that reads one token of its last block hears nothing of the others there. Found by behaviour: a position
counts if NaN there arrives at the output, which no activation and no sum hides.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from envs.network.copies import functional_copy
from envs.network.graph import Graph
from envs.network.inputs import Inputs, rows
from envs.network.interpreter import Cut, Interpreter


def heard_positions(network: nn.Module, graph: Graph, example_input: Inputs) -> dict[str, Tensor]:
    """[P] ascending positions that count, for linear layers [B, ..., O] of which some do not.

    Args:
        network: The network; it is not changed.
        graph: Its operator graph; without a program all positions count.
        example_input: Inputs, of which the first is looked at.
    """
    if graph.program is None:
        return {}
    twin = functional_copy(network)
    calls = graph.calls()
    found: dict[str, Tensor] = {}
    interpreter = Interpreter(graph.program.nodes)
    cut = Cut()
    for place, node in enumerate(interpreter.order):
        linear = node.op == "call_module" and isinstance(twin.get_submodule(str(node.target)), nn.Linear)
        if not linear or calls.get(str(node.target)) != 1:
            continue
        cut = interpreter.advance(twin, rows(example_input, 0, 1), cut=cut, stop=place + 1)
        output = cut.values[node]
        if output.ndim < 3:
            continue
        count = output.flatten(1, -2).shape[1]
        if not all(_arrives(interpreter, twin, example_input, cut, node, at) for at in (count - 1, count // 2)):
            heard = [_arrives(interpreter, twin, example_input, cut, node, at) for at in range(count)]
            found[str(node.target)] = torch.tensor(heard, device="cpu").nonzero().flatten()
    return {name: heard for name, heard in found.items() if len(heard)}


def _arrives(
    interpreter: Interpreter, network: nn.Module, example_input: Inputs, cut: Cut, node: fx.Node, position: int
) -> bool:
    """Whether the output hears one position of a layer that has just been executed."""
    broken = cut.values[node].contiguous().clone()
    broken.flatten(1, -2)[:, position] = torch.nan
    values = {**cut.values, node: broken}
    output = interpreter.output(network, rows(example_input, 0, 1), cut=Cut(cut.place, values))
    return any(bool(leaf.isnan().any()) for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
