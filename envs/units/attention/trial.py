"""Which explicit attention computes what a module does: tried on random weights and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.attention import Mask
from envs.network.copies import copy_network, in_mode, same_output
from envs.network.graph import Graph
from envs.network.inputs import Inputs
from envs.units.attention.explicit import Form, explicit
from envs.units.attention.found import Found
from envs.units.attention.given import Given, given_to

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
    given = _tokens(given_to(network, found.owner, example_input))
    layers = (found.q, found.k, found.v, found.out)
    inside = all(layer.startswith(f"{found.owner}.") for layer in layers)
    linear = all(isinstance(network.get_submodule(layer), nn.Linear) for layer in layers)
    if not found.owner or not inside or not linear or given is None:
        return None
    generator = torch.Generator().manual_seed(0)
    twin = _shaken(module, generator)
    drawn = given.drawn(generator)
    with torch.no_grad():
        try:
            expected = drawn.call(twin)
        except Exception:  # whatever the module's own code raises on other batches
            return None
        fitting = (form for form in _candidates(module, found, drawn) if _gives(twin, form, drawn, expected))
        form = next(fitting, None)
    if form is None:
        return None
    within, behind = _dropouts(twin, form.out, drawn)
    if fixed and found.heads > 1:
        form = replace(form, head_width=None, heads=found.heads, groups=found.groups)
    return replace(form, dropout=within, out_dropout=behind)


def _dropouts(module: nn.Module, out: str, drawn: _Tokens) -> tuple[float, float]:
    """Probabilities of dropout of the weights, and of the result: of what is called behind the last linear layer."""
    called: list[nn.Module] = []
    dropouts = [one for one in module.modules() if isinstance(one, nn.Dropout) and one.p > 0]
    last = module.get_submodule(out)
    handles = [one.register_forward_hook(lambda one, *_: called.append(one)) for one in (*dropouts, last)]
    with torch.no_grad():
        drawn.call(module)
    for handle in handles:
        handle.remove()
    behind = called[called.index(last) + 1 :] if last in called else []
    within = [one for one in dropouts if one not in behind]
    first, second = (next((one.p for one in some if isinstance(one, nn.Dropout)), 0.0) for some in (within, behind))
    return first, second


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens(Given):
    """Tokens [B, N, D] as the first of what a module is called with.

    Attributes:
        mask: The further tensor, None without one.
    """

    mask: Tensor | None

    def drawn(self, generator: torch.Generator) -> _Tokens:
        """Random tokens of two samples, and a random mask in which everybody sees something."""
        x = self.args[0]
        tokens = torch.randn((2, *x.shape[1:]), generator=generator, device="cpu").to(x)
        mask = None if self.mask is None else _drawn_mask(self.mask, generator)
        args, kwargs = (
            [mask if one is self.mask else one for one in some] for some in (self.args[1:], self.kwargs.values())
        )
        return _Tokens((tokens, *args), dict(zip(self.kwargs, kwargs, strict=True)), mask)


def _drawn_mask(given: Tensor, generator: torch.Generator) -> Tensor:
    """A mask of the kind of a given one; that of keys [1, M] becomes [2, M]."""
    shape = (2, *given.shape[1:]) if len(given) == 1 else given.shape
    noise = torch.randn(shape, generator=generator, device="cpu")
    if given.is_floating_point() and not bool((given == 1).any()):
        return noise.to(given)
    chosen = noise > 0
    chosen[..., 0], chosen[..., -1] = True, False
    return chosen.to(given)


def _tokens(given: Given | None) -> _Tokens | None:
    """What a module reads, if that is tokens [B, N, D], and at most one mask that says something."""
    if given is None or not given.args:
        return None
    value, *others = given.args
    said = [other for other in (*others, *given.kwargs.values()) if other is not None and other is not False]
    if not isinstance(value, Tensor) or value.ndim < 3 or not value.is_floating_point():
        return None
    if len(said) > 1 or not all(isinstance(one, Tensor) and one.ndim > 1 for one in said):
        return None
    return _Tokens(given.args, given.kwargs, said[0] if said else None)


def _masks(mask: Tensor | None) -> tuple[Mask, ...]:
    """What a mask may say, by its kind."""
    if mask is None:
        return ("",)
    if mask.dtype == torch.bool:
        return ("seen", "hidden", "keys")
    return ("seen", "keys") if mask.is_floating_point() else ("keys",)


def _candidates(module: nn.Module, found: Found, given: _Tokens) -> Iterator[Form]:
    """Likely formulas first."""
    q, k, v, out = (name.removeprefix(f"{found.owner}.") for name in (found.q, found.k, found.v, found.out))
    width = found.head_width
    own = [value for value in vars(module).values() if isinstance(value, float)]
    scales = dict.fromkeys([width**-0.5, 1.0, (found.heads * width) ** -0.5, *own])
    orders = [(q, k), (k, q)] if found.separate and found.heads == found.groups else [(q, k)]
    layouts = (False, True) if not found.separate and found.heads > 1 else (False,)
    choices = product((False, True), orders, layouts, scales, _masks(given.mask))
    for causal, (first, second), interleaved, scale, mask in choices:
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
            mask=mask,
        )


def _gives(twin: nn.Module, form: Form, given: _Tokens, expected: Any) -> bool:
    try:
        got = given.call(explicit(twin, form))
    except (RuntimeError, ValueError):  # widths or masks do not fit
        return False
    return isinstance(expected, Tensor) and same_output(expected, got, TOLERANCE)


@torch.no_grad()
def _shaken(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in eval mode with random parameters, under which other formulas give other outputs."""
    twin = in_mode(copy_network(module))
    for part in twin.modules():
        for name, value in part.named_parameters(recurse=False):
            noise = torch.randn(value.shape, generator=generator, device="cpu").to(value)
            fan_in = value.shape[-1] if value.ndim > 1 else 1
            setattr(part, name, nn.Parameter(2 * noise * fan_in**-0.5, requires_grad=False))
    return twin
