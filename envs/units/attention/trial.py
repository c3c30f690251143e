"""Which explicit attention computes what a module does: tried on random weights and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.copies import copy_network, same_output
from envs.network.graph import Graph
from envs.network.inputs import Inputs, call
from envs.units.attention.explicit import Form, explicit
from envs.units.attention.found import Found

TOLERANCE = 1e-4
"""Largest accepted difference relative to the output's largest value; other formulas differ by a tenth and more."""


def multihead_forms(network: nn.Module, graph: Graph, *, fixed: bool = False) -> list[Form]:
    """The nn.MultiheadAttention modules that an explicit one can stand for: nobody reads their attention weights.

    Args:
        network: The network.
        graph: Its operator graph.
        fixed: Whether the number of heads stays, and not their width.
    """
    if graph.program is None:
        return []
    calls = graph.calls()

    def heads(node: fx.Node) -> int:
        return int(network.get_submodule(str(node.target)).num_heads) if fixed else 1  # type: ignore[arg-type]

    return [
        Form(module=str(node.target), heads=heads(node), groups=heads(node))
        for node in graph.program.nodes
        if node.op == "call_module" and calls.get(str(node.target)) == 1 and _is_simple(network, node)
    ]


def _is_simple(network: nn.Module, node: fx.Node) -> bool:
    module = network.get_submodule(str(node.target))
    if type(module) is not nn.MultiheadAttention or module.bias_k is not None or module.add_zero_attn:
        return False
    return all(len(user.args) == 2 and user.args[1] == 0 for user in node.users)


def form_of(network: nn.Module, found: Found, example_input: Inputs, *, fixed: bool = False) -> Form | None:
    """How the module around an attention is made explicit, None where no formula gives what it computes.

    Args:
        network: The network; it is not changed.
        found: The attention.
        example_input: Input of batch 1, which tells what the module is given.
        fixed: Whether the number of heads stays, and not their width.
    """
    module = network.get_submodule(found.owner)
    given = _given(network, module, example_input)
    layers = (found.q, found.k, found.v, found.out)
    inside = all(layer.startswith(f"{found.owner}.") for layer in layers)
    if not found.owner or not inside or given is None:
        return None
    generator = torch.Generator().manual_seed(0)
    twin = _shaken(module, generator)
    inputs = torch.randn((2, *given.shape[1:]), generator=generator, device="cpu").to(given)
    with torch.no_grad():
        try:
            expected = twin(inputs)
        except Exception:  # whatever the module's own code raises on other batches
            return None
        fitting = (form for form in _candidates(module, found) if _gives(twin, form, inputs, expected))
        form = next(fitting, None)
    if form is None:
        return None
    within, behind = _dropouts(twin, form.out, inputs)
    if fixed and found.heads > 1:
        form = replace(form, head_width=None, heads=found.heads, groups=found.groups)
    return replace(form, dropout=within, out_dropout=behind)


def _dropouts(module: nn.Module, out: str, inputs: Tensor) -> tuple[float, float]:
    """Probabilities of dropout of the weights, and of the result: of what is called behind the last linear layer."""
    called: list[nn.Module] = []
    dropouts = [one for one in module.modules() if isinstance(one, nn.Dropout) and one.p > 0]
    last = module.get_submodule(out)
    handles = [one.register_forward_hook(lambda one, *_: called.append(one)) for one in (*dropouts, last)]
    with torch.no_grad():
        module(inputs)
    for handle in handles:
        handle.remove()
    behind = called[called.index(last) + 1 :] if last in called else []
    within = [one for one in dropouts if one not in behind]
    first, second = (next((one.p for one in some if isinstance(one, nn.Dropout)), 0.0) for some in (within, behind))
    return first, second


def _given(network: nn.Module, module: nn.Module, example_input: Inputs) -> Tensor | None:
    """What a module reads, if that is one tensor [B, N, D] in one call, and nothing else that says something."""
    twin = copy_network(network).eval()
    name = next(name for name, one in network.named_modules() if one is module)
    taken: list[Any] = []
    twin.get_submodule(name).register_forward_pre_hook(
        lambda module, args, kwargs: taken.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        call(twin, example_input)
    if len(taken) != 1 or not taken[0][0]:
        return None
    (value, *others), named = taken[0]
    if any(other is not None and other is not False for other in (*others, *named.values())):
        return None
    return value if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() else None


def _candidates(module: nn.Module, found: Found) -> Iterator[Form]:
    """Likely formulas first."""
    q, k, v, out = (name.removeprefix(f"{found.owner}.") for name in (found.q, found.k, found.v, found.out))
    width = found.head_width
    own = [value for value in vars(module).values() if isinstance(value, float)]
    scales = dict.fromkeys([width**-0.5, 1.0, (found.heads * width) ** -0.5, *own])
    orders = [(q, k), (k, q)] if found.separate and found.heads == found.groups else [(q, k)]
    layouts = (False, True) if not found.separate and found.heads > 1 else (False,)
    for causal, (first, second), interleaved, scale in product((False, True), orders, layouts, scales):
        yield Form(
            module=found.owner,
            q=first,
            k=second,
            v=v,
            out=out,
            head_width=None if found.heads == 1 else width,
            scale=scale,
            causal=causal,
            interleaved=interleaved,
        )


def _gives(twin: nn.Module, form: Form, inputs: Tensor, expected: Any) -> bool:
    try:
        got = explicit(twin, form)(inputs)
    except RuntimeError:  # widths do not fit
        return False
    return same_output(expected, got, TOLERANCE)


@torch.no_grad()
def _shaken(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in eval mode with random parameters, under which other formulas give other outputs."""
    twin = copy_network(module).eval()
    for part in twin.modules():
        for name, value in part.named_parameters(recurse=False):
            noise = torch.randn(value.shape, generator=generator, device="cpu").to(value)
            fan_in = value.shape[-1] if value.ndim > 1 else 1
            setattr(part, name, nn.Parameter(2 * noise * fan_in**-0.5, requires_grad=False))
    return twin
