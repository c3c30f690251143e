"""Attention as explicit modules: linear layers around a core without weights, whose head counts follow the widths.

Modules of other classes compute their heads from sizes that pruning changes (nn.MultiheadAttention demands
`embed_dim`); these read them off what they are given, so that cutting the linear layers is all that pruning has to do.
Which networks need them, and that they compute the same, is found out in the room `attention`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mask = Literal["", "seen", "hidden", "keys"]
"""What a mask says: nothing; added to the products, or True where something is seen; True where nothing is; [B, M]
above 0 at keys that are seen."""


class AttentionCore(nn.Module):
    """softmax(scale x q k') v for every head (Vaswani et al., Attention Is All You Need, NeurIPS 2017, equation 1).

    The scale is a constant: heads that become narrower keep the one that they were trained with.

    Attributes:
        head_width: Channels of q and k per head, by which heads are counted; None: the number of heads is fixed.
        fixed: Heads of q, and of k and v, where their number is fixed.
        scale: What the products of queries and keys are multiplied by.
        causal: Whether a position sees no later ones.
        dropout: Probability that a weight is dropped in training.
    """

    def __init__(
        self,
        head_width: int | None,
        scale: float,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        fixed: tuple[int, int] = (1, 1),
    ) -> None:
        """Holds no parameters."""
        super().__init__()
        self.head_width, self.scale, self.causal, self.dropout = head_width, scale, causal, dropout
        self.fixed = fixed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, H x value width] float from q [B, N, H x width], k [B, M, K x width] and v [B, M, K x value width].

        Query heads share key and value heads where there are fewer of those (K < H): each of them serves H / K
        neighbours. There may be several axes of batches.

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            mask: Added to the products, or boolean with False where nothing is seen; broadcast to [B, H, N, M].
        """
        heads, shared = self.fixed if self.head_width is None else (self.heads(q), self.heads(k))
        queries, keys, values = _split(q, heads), _split(k, shared), _split(v, shared)
        if shared < heads:
            keys, values = (x.repeat_interleave(heads // shared, dim=-3) for x in (keys, values))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=self.causal, scale=self.scale
        )
        return mixed.transpose(-3, -2).flatten(-2)

    def heads(self, projected: Tensor) -> int:
        """How many heads some queries [B, N, heads x width] have."""
        return self.fixed[0] if self.head_width is None else projected.shape[-1] // self.head_width

    def extra_repr(self) -> str:
        """What it is made with."""
        made = f"head_width={self.head_width}, scale={self.scale:g}, causal={self.causal}"
        return made if self.fixed == (1, 1) else f"{made}, fixed={self.fixed}"


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, heads, N, width] of [B, N, heads x width]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-3, -2)


class Attention(nn.Module):
    """Self-attention: projections to queries, keys and values, the core, and a projection back.

    Attributes:
        q_proj: Linear layer to queries.
        k_proj: Linear layer to keys.
        v_proj: Linear layer to values.
        core: What has no weights.
        out_proj: Linear layer from what the heads give.
        dropout: Of the result, in training.
        mask: What a further argument says, "" where there is none.
    """

    def __init__(
        self,
        q: nn.Linear,
        k: nn.Linear,
        v: nn.Linear,
        out: nn.Linear,
        core: AttentionCore,
        dropout: float = 0.0,
        mask: Mask = "",
    ) -> None:
        """Takes the layers as they are."""
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.core, self.out_proj = q, k, v, core, out
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.mask = mask

    @property
    def num_heads(self) -> int:
        """Query heads that there are now."""
        width = self.core.head_width
        return self.core.fixed[0] if width is None else self.q_proj.out_features // width

    def forward(self, x: Tensor, *further: Any, **named: Any) -> Tensor:
        """[B, N, D] float from [B, N, D].

        Args:
            x: Tokens.
            further: What else the module in whose place this one stands was given: a mask, None or False.
            named: The same.

        Raises:
            ValueError: If more is said than when the module was found.
        """
        said = [value for value in (*further, *named.values()) if value is not None and value is not False]
        if len(said) > bool(self.mask):
            raise ValueError(
                "explicit attention takes the arguments that it was found with, but got a further one: give the "
                "example input of the task what the network is to be used with"
            )
        mask = _seen(said[0], self.mask) if said else None
        out: Tensor = self.dropout(self.out_proj(self.core(self.q_proj(x), self.k_proj(x), self.v_proj(x), mask)))
        return out

    def extra_repr(self) -> str:
        """What it is made with."""
        return f"mask={self.mask}" if self.mask else ""


def _seen(mask: Tensor, says: Mask) -> Tensor:
    """A mask as what `AttentionCore` takes."""
    if says == "hidden":
        return ~mask
    return (mask > 0)[..., None, None, :] if says == "keys" else mask


class MultiheadAttention(Attention):
    """In the place of an nn.MultiheadAttention, called as that one; attention weights are not returned.

    Attributes:
        batch_first: Whether inputs are [B, N, D] rather than [N, B, D].
    """

    in_proj_bias = None
    """As in an nn.MultiheadAttention without biases: so torch's encoder layers do not take their fused kernel."""
    _qkv_same_embed_dim = False

    def __init__(
        self, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear, core: AttentionCore, batch_first: bool
    ) -> None:
        """Takes the layers as they are."""
        super().__init__(q, k, v, out, core)
        self.batch_first = batch_first

    def forward(  # type: ignore[override]  # nn.MultiheadAttention's
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """[B, N, D] float (or [N, B, D]), and no weights; arguments as in nn.MultiheadAttention.

        Args:
            query: [B, N, D] (or [N, B, D]).
            key: [B, M, D'].
            value: [B, M, D''].
            key_padding_mask: [B, M] True where a key is padding, or float to be added.
            need_weights: Not used.
            attn_mask: [N, M] True where nothing is seen, or float to be added.
            average_attn_weights: Not used.
            is_causal: A hint that `attn_mask` is causal; not used.
        """
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = None if attn_mask is None else _added(attn_mask)
        if key_padding_mask is not None:
            padding = _added(key_padding_mask)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        out: Tensor = self.out_proj(self.core(self.q_proj(query), self.k_proj(key), self.v_proj(value), mask))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _added(mask: Tensor) -> Tensor:
    """A mask as what is added to products: minus infinity where it is True."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=torch.get_default_dtype()).masked_fill(mask, -torch.inf)
