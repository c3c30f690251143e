"""From a network's forward to a program by torch.export.

torch.export runs the forward on tensors without values, so it follows whatever does not depend on values: masks,
dictionaries, caches, sizes in conditions.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.copies import copy_network
from envs.network.counting import separate_products
from envs.network.inputs import Inputs, argument_names, call, repeated, tensors
from envs.network.tracing.leaves import is_leaf
from envs.network.tracing.opaque import opaque_layers
from envs.network.tracing.resized import Resized, inline
from envs.network.tracing.rewriting import INNER, rewritten
from envs.network.tracing.sizes import follow_sizes


def exported(network: nn.Module, example_input: Inputs) -> fx.Graph:
    """The program of a network's forward, layers whole, for any batch size.

    It holds for other lengths, too, where the forward takes them from its inputs.

    Args:
        network: The network, in eval mode; it is not changed.
        example_input: Tells with which arguments forward is called: one placeholder each, named as the keyword where
            it is one. Other arguments keep their defaults.

    Raises:
        Exception: Whatever torch.export raises where the forward depends on values.
        ValueError: If the forward changes a buffer, or parts of it run under other rules (a precision, a branch).
    """
    twin = copy_network(network)
    _keep_no_cache(twin)
    several = repeated(example_input, 2)  # a batch of one would be taken for a constant
    layers = {
        name: module
        for name, module in network.named_modules()
        if name and (is_leaf(module, name) or isinstance(module, Resized))
    }
    with separate_products(), torch.no_grad(), opaque_layers(twin, layers) as calls:
        program = _functional(_Called(twin, several), tensors(several))
        names = argument_names(network.forward, example_input)
        graph = rewritten(program, network, calls, names, tensors(several)[0].device)
    follow_sizes(graph, network, several)
    inline(graph, network)
    return graph


def _keep_no_cache(network: nn.Module) -> None:
    """Lets a language model of Hugging Face keep no keys and values for words to come, which costs operators.

    What it returns for the words at hand is the same; `network` is changed.
    """
    for module in network.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False


class _Called(nn.Module):
    """A network that is given its tensors in order, whatever the form of its inputs."""

    def __init__(self, network: nn.Module, example_input: Inputs) -> None:
        super().__init__()
        self.add_module(INNER, network)
        self._keywords = tuple(example_input) if isinstance(example_input, dict) else None

    def forward(self, *given: Tensor) -> Any:
        inputs: Inputs = given if self._keywords is None else dict(zip(self._keywords, given, strict=True))
        return call(self.get_submodule(INNER), inputs)


def _functional(network: nn.Module, given: tuple[Tensor, ...]) -> Any:
    """The exported program without operators in place; all sizes of its inputs are open that forward leaves open."""
    from torch.export import Dim, export  # takes a second to import

    sizes = tuple(dict.fromkeys(range(tensor.ndim), Dim.AUTO) for tensor in given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own age
        program = export(network, given, dynamic_shapes={"given": sizes}, strict=False)
        schemas = (getattr(node.target, "_schema", None) for node in program.graph.nodes)
        in_place = any(schema is not None and schema.is_mutable for schema in schemas)
        return program.run_decompositions({}) if in_place else program
