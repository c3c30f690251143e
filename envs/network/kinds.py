"""What kind of operator a module or a function is, as the hardware sees it."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from envs.network.attention import AttentionCore
from hw_profiles.layers import Kind

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

LAYERS = (*WEIGHTED, *NORMS, nn.PReLU, nn.RNNBase, nn.MultiheadAttention, AttentionCore)
"""Modules that are one operator, subclasses included: what their forward does inside is theirs."""

VIEWS = ("permute", "transpose", "movedim", "squeeze", "unsqueeze")
"""Views that reorder axes: named, because on a map with equal axes they look like an activation."""

FUNCTION_KINDS: dict[Any, Kind] = {
    operator.add: "add",
    torch.add: "add",
    "add": "add",
    operator.mul: "mul",
    torch.mul: "mul",
    "mul": "mul",
    torch.cat: "concat",
    torch.concat: "concat",
    F.scaled_dot_product_attention: "attention",
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm, torch.einsum, "matmul", "bmm"), "product"),
    torch.flatten: "reshape",
    torch.reshape: "reshape",
    "flatten": "reshape",
    "view": "reshape",
    "reshape": "reshape",
    "unflatten": "reshape",
    torch.unflatten: "reshape",
    "contiguous": "reshape",
    getattr: "reshape",  # getattr: x.T
    **dict.fromkeys(VIEWS, "reshape"),
    **{getattr(torch, name): "reshape" for name in VIEWS},
}
"""Kind of a called function, or of a method by its name; others are an "activation" or "other" by what they return."""

MODULE_KINDS: dict[tuple[type[nn.Module], ...], Kind] = {
    CONVOLUTIONS: "conv",
    TRANSPOSED: "transposed",
    (nn.Linear,): "linear",
    (AttentionCore,): "attention",
    NORMS: "norm",
    (nn.Flatten,): "reshape",
}
"""Kind of a called module, by the first classes that it belongs to; others as functions, and pooling by its name."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one operator, whatever modules it holds and however its class computes."""
    return isinstance(module, LAYERS)


def function_kind(target: Any, tensors: int, same_shape: bool) -> Kind:
    """Kind of a called function or method.

    Args:
        target: The function, or the name of the method.
        tensors: Number of tensors that it reads.
        same_shape: Whether it maps one tensor to one of the same shape.
    """
    kind = FUNCTION_KINDS.get(target, "activation" if same_shape else "other")
    return "activation" if kind in ("add", "mul") and tensors == 1 else kind


def module_kind(module: nn.Module, same_shape: bool) -> Kind:
    """Kind of a called module; `same_shape` says whether it maps one tensor to one of the same shape."""
    known = next((kind for classes, kind in MODULE_KINDS.items() if isinstance(module, classes)), None)
    if known is not None:
        return known
    if "Pool" in type(module).__name__:
        return "pool"
    return "activation" if same_shape else "other"


def plain_name(called: Any) -> str:
    """Name of a class, function or method, without case and underscores: nn.ReLU6 and F.relu6 are both "relu6".

    An operator of torch.ops is called as its function is: aten.relu6.default is "relu6", too.
    """
    called = getattr(called, "overloadpacket", called)
    return str(getattr(called, "__name__", called)).lower().replace("_", "")
