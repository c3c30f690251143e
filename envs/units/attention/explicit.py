"""Explicit attention in the place of modules whose forward demands the widths that they were made with, and torch's
linear layers in the place of others.

A `Form` says how; it is data, so that a policy can hold it and make the same module again on fresh weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from envs.network.attention import Attention, AttentionCore, Mask, MultiheadAttention
from envs.network.copies import copy_network, in_mode
from envs.network.tracing.numbers import Size
from envs.network.tracing.resized import Resized
from envs.units.attention.linear import as_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one module is made explicit.

    Attributes:
        module: Its name.
        q: Name inside of it of the linear layer that writes queries ("" in an nn.MultiheadAttention, and in a linear
            layer of another class).
        k: The one that writes keys; the same name where one layer writes several.
        v: The one that writes values.
        out: The one that reads what the heads give.
        head_width: Channels of q and k per head, None for a fixed number of heads.
        heads: Query heads where their number is fixed.
        groups: Key and value heads where their number is fixed.
        scale: What products of queries and keys are multiplied by.
        causal: Whether a position sees no later ones.
        interleaved: Whether a layer that writes several writes them head by head, rather than one after the other.
        dropout: Probability that a weight of the attention is dropped in training.
        out_dropout: Probability that a channel of the result is.
        mask: What a further argument of the module says, "" where it has none.
        sizes: Numbers in the module's forward that follow its heads; where there are some, it stays what it is else.
    """

    module: str
    q: str = ""
    k: str = ""
    v: str = ""
    out: str = ""
    head_width: int | None = None
    heads: int = 1
    groups: int = 1
    scale: float = 1.0
    causal: bool = False
    interleaved: bool = False
    dropout: float = 0.0
    out_dropout: float = 0.0
    mask: Mask = ""
    sizes: tuple[Size, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary; `_LATER` fields only where they say something."""
        fields = {name: value for name, value in asdict(self).items() if (name, value) not in _LATER.items()}
        return fields | ({"sizes": [size._asdict() for size in self.sizes]} if self.sizes else {})


_LATER: dict[str, Any] = {"heads": 1, "groups": 1, "mask": "", "sizes": ()}
"""Fields that older files do not have, and what they mean there."""


def made_explicit(network: nn.Module, forms: Iterable[Form]) -> nn.Module:
    """A copy that shares all tensors but those of layers that are taken apart; the network itself without forms.

    Modules that are explicit already stay as they are.

    Args:
        network: The network; it is not changed.
        forms: What is made explicit.

    Raises:
        ValueError: If the network has not the modules that a form names.
    """
    chosen = tuple(forms)
    if not chosen:
        return network
    twin = copy_network(network)
    for form in chosen:
        try:
            module = twin.get_submodule(form.module)
            if not isinstance(module, (Attention, Resized, nn.Linear)):
                twin.set_submodule(form.module, explicit(module, form))
        except (AttributeError, RuntimeError) as error:
            raise ValueError(
                f"explicit attention needs the modules that it was found in, but {form.module!r} is not there or has "
                f"other layers ({error}): use the network that it was found in"
            ) from error
    for stack in twin.modules():
        if isinstance(stack, nn.TransformerEncoder):
            stack.use_nested_tensor = False  # its fused kernel reads an nn.MultiheadAttention's weights
    return in_mode(twin, training=network.training)


def explicit(module: nn.Module, form: Form) -> nn.Module:
    """What stands in the place of one module: attention, or a linear layer of torch's class.

    Args:
        module: The module; it is not changed.
        form: How it is made explicit.
    """
    if isinstance(module, nn.MultiheadAttention):
        return _of_multihead(module, form)
    if form.sizes:
        return Resized(module, form.sizes)
    if not form.q:
        return as_linear(module)
    fixed = (form.heads, form.groups)
    core = AttentionCore(form.head_width, form.scale, causal=form.causal, dropout=form.dropout, fixed=fixed)
    names = (form.q, form.k, form.v)
    q, k, v = (_projection(module, names, place, form) for place in range(3))
    return Attention(q, k, v, _plain(module.get_submodule(form.out)), core, form.out_dropout, form.mask)


def _of_multihead(module: nn.MultiheadAttention, form: Form) -> MultiheadAttention:
    weights: Sequence[Any] = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    width = module.embed_dim // module.num_heads
    head_width = None if module.num_heads == 1 or form.heads > 1 else width
    core = AttentionCore(head_width, width**-0.5, dropout=module.dropout, fixed=(form.heads, form.groups))
    return MultiheadAttention(q, k, v, _plain(module.out_proj), core, bool(module.batch_first))


def _projection(module: nn.Module, names: tuple[str, ...], place: int, form: Form) -> nn.Linear:
    """The layer that writes queries, keys or values alone."""
    layer: Any = module.get_submodule(names[place])
    count = names.count(names[place])
    if count == 1:
        return _plain(layer)
    part = names[:place].count(names[place])
    weight, bias = ((None if t is None else _part(t, part, count, form)) for t in (layer.weight, layer.bias))
    return _linear(weight, bias)


def _part(rows: Tensor, part: int, count: int, form: Form) -> Tensor:
    """The rows of queries, keys or values among those of a layer that writes several."""
    if not form.interleaved:
        return rows.chunk(count)[part]
    width = form.head_width or len(rows) // (count * form.heads)
    by_head = rows.reshape(-1, count, width, *rows.shape[1:])
    return by_head[:, part].flatten(0, 1)


def _plain(layer: Any) -> nn.Linear:
    """A linear layer of torch's own class with the same parameters."""
    if type(layer) is nn.Linear:
        return layer
    twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """A linear layer with tensors of its own."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer
