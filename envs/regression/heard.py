"""Which positions of a layer's output reach the network's output: others need not be repaired.

A classifier that reads one token of its last block hears nothing of the others there. Found by behaviour: a position
counts if the output has a gradient there, or if NaN there arrives, which no activation and no sum hides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
    first = rows(example_input, 0, 1)
    places = {
        node: place
        for place, node in enumerate(interpreter.order)
        if node.op == "call_module"
        and isinstance(twin.get_submodule(str(node.target)), nn.Linear)
        and calls.get(str(node.target)) == 1
    }
    cut = Cut()
    try:
        known = _felt(interpreter, twin, first, places)
    except RuntimeError:  # an operator without a derivative: nothing is left out
        return {}
    for node, felt in known.items():
        if bool(felt[len(felt) // 2]) and bool(felt[-1]):
            continue  # so are all others, as far as networks are known
        cut = interpreter.advance(twin, first, cut=cut, stop=places[node] + 1)
        if not all(_arrives(interpreter, twin, first, cut, node, at) for at in (len(felt) - 1, len(felt) // 2)):
            heard = [bool(felt[at]) or _arrives(interpreter, twin, first, cut, node, at) for at in range(len(felt))]
            found[str(node.target)] = torch.tensor(heard, device="cpu").nonzero().flatten()
    return {name: heard for name, heard in found.items() if len(heard)}


def _felt(
    interpreter: Interpreter, network: nn.Module, inputs: Inputs, layers: Collection[fx.Node]
) -> dict[fx.Node, Tensor]:
    """[P] whether the output has a gradient at each position of layers [1, ..., O], in the order of execution."""
    outputs: dict[fx.Node, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    total: Tensor | None = None
    with torch.enable_grad():
        for node, values in interpreter.walk(network, inputs):
            value = values[node]
            if node in layers and value.ndim > 2:
                values[node] = outputs[node] = value if value.requires_grad else value.detach().requires_grad_()
            if node.op == "output":
                leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.requires_grad]
                total = sum((_weighted(leaf, generator) for leaf in leaves), start=torch.zeros((), device="cpu"))
    gradients: Sequence[Tensor | None] = [None] * len(outputs)
    if outputs and total is not None and total.requires_grad:
        gradients = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
    return {
        node: _positions(torch.zeros_like(output) if gradient is None else gradient)
        for (node, output), gradient in zip(outputs.items(), gradients, strict=True)
    }


def _weighted(output: Tensor, generator: torch.Generator) -> Tensor:
    """A random sum of a network's outputs; plain ones of probabilities would be constant."""
    return (output * torch.rand(output.shape, generator=generator, device="cpu").to(output)).sum().cpu()


def _positions(gradient: Tensor) -> Tensor:
    return (gradient != 0).flatten(1, -2).any(-1)[0].cpu()


def _arrives(
    interpreter: Interpreter, network: nn.Module, inputs: Inputs, cut: Cut, node: fx.Node, position: int
) -> bool:
    """Whether the output hears one position of a layer that has just been executed."""
    broken = cut.values[node].contiguous().clone()
    broken.flatten(1, -2)[:, position] = torch.nan
    values = {**cut.values, node: broken}
    output = interpreter.output(network, inputs, cut=Cut(cut.place, values))
    return any(bool(leaf.isnan().any()) for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
