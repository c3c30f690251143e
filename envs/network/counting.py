"""Multiply-accumulates of the operators that torch really runs, whatever module or function calls them.

Formulas are those of torch's `FlopCounterMode` (in FLOPs, two per multiply-accumulate), and ours for what it leaves
out: attention fused for the CPU, recurrent layers of oneDNN, products with vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

Sizes = Sequence[int]
_aten = torch.ops.aten


def _attention(query: Sizes, key: Sizes, value: Sizes, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(
    inputs: Sizes, weight: Sizes, recurrent: Sizes, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    return 2 * prod(inputs[:-1]) * (prod(weight) + prod(recurrent))


def _matrix_vector(matrix: Sizes, vector: Sizes, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * prod(matrix)


def _added_matrix_vector(base: Sizes, matrix: Sizes, vector: Sizes, out_shape: Any = None, **options: Any) -> int:
    return 2 * prod(matrix)


def _added_batches(base: Sizes, first: Sizes, second: Sizes, out_shape: Any = None, **options: Any) -> int:
    return 2 * prod(first) * second[-1]


def _added_matrices(base: Sizes, first: Sizes, second: Sizes, out_shape: Any = None, **options: Any) -> int:
    return 2 * prod(first) * second[-1]


def _trilinear(a: Sizes, b: Sizes, c: Sizes, *axes: Any, out_shape: Any = None, **options: Any) -> int:
    """`nn.Bilinear`: each weight is multiplied once per output position."""
    expanded: list[tuple[int, ...]] = []
    for sizes, places in zip((a, b, c), axes, strict=False):
        full = list(sizes)
        for place in sorted(places):
            full.insert(place, 1)
        expanded.append(tuple(full))
    positions: int = prod(max(sizes) for sizes in zip(*expanded, strict=True))
    return 2 * positions


FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten.mv: _matrix_vector,
    _aten.dot: _matrix_vector,
    _aten.vdot: _matrix_vector,
    _aten.addmv: _added_matrix_vector,
    _aten.addbmm: _added_batches,
    _aten._addmm_activation: _added_matrices,
    _aten._trilinear: _trilinear,
}
"""FLOPs from shapes, for operators that torch's own registry lacks."""


def _convolved(inputs: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    return (inputs if transposed else out).numel() * weight[0].numel()


_QUICK: dict[Any, Callable[[tuple[Any, ...], Tensor], int]] = {
    _aten.convolution: lambda args, out: _convolved(args[0], args[1], out, args[6]),
    _aten.mm: lambda args, out: out.numel() * args[0].shape[1],
    _aten.bmm: lambda args, out: out.numel() * args[0].shape[2],
    _aten.addmm: lambda args, out: out.numel() * args[1].shape[1],
}
"""Multiply-accumulates of the commonest operators, at a tenth of the registry's time."""

_MULTIPLIES = re.compile(
    r"(^|_)b?mm(_|$)|addmm|matmul|(^|_)mv|dot_product|conv(olution|_|\d|$)|(?<!bi)(?<!tri)linear(_|$)|lstm|gru|rnn|attention"
    r"|transformer|fft_[chr]|cdist|pdist|euclidean|linalg_(?!vector_norm|check|cross|_?powsum)|cholesky|solve|(^|_)lu_"
    r"|inverse|geqrf|householder|ormqr|matrix_exp|(^|_)qr"
)
"""Names of torch's own operators that multiply matrices or transform; all others work value by value or move data."""


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Adds up the multiply-accumulates of every operator that runs within the context."""

    def __init__(self) -> None:
        """Starts at nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._macs = 0
        self._whole: set[Any] = set()  # operators that have no parts
        self.uncounted: dict[str, None] = {}

    def take(self) -> int:
        """Multiply-accumulates since the last call."""
        taken, self._macs = self._macs, 0
        return taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator and counts it; an unknown one that plausibly multiplies is kept by name."""
        packet = getattr(func, "_overloadpacket", func)
        quick, formula = _QUICK.get(packet), formula_of(packet)
        if quick is None and formula is None and func not in self._whole:
            with self:  # in inference mode, torch leaves operators whole that it splits elsewhere
                parts = func.decompose(*args, **(kwargs or {})) if hasattr(func, "decompose") else NotImplemented
            if parts is not NotImplemented:
                return parts
            self._whole.add(func)
        out = func(*args, **(kwargs or {}))
        if quick is not None:
            self._macs += quick(args, out)
        elif formula is not None:
            self._macs += formula(*args, **(kwargs or {}), out_val=out) // 2
        elif may_multiply(func):
            self.uncounted[str(packet)] = None
        return out


def formula_of(packet: Any) -> Callable[..., int] | None:
    """FLOPs of an operator by its arguments: from `FORMULAS` or torch's own registry; None if neither has it."""
    own, torchs = FORMULAS.get(packet), flop_registry.get(packet)
    return torchs if own is None else shape_wrapper(own)  # type: ignore[no-untyped-call]  # torch's


@cache
def may_multiply(operator: Any) -> bool:
    """Whether an operator without a formula plausibly multiplies: a matrix operator of torch's, or not torch's own."""
    space, _, name = str(getattr(operator, "_name", operator)).rpartition("::")
    return bool(_MULTIPLIES.search(name.partition(".")[0])) if space in ("aten", "prim") else True


@contextmanager
def separate_products() -> Iterator[None]:
    """Multi-head attention and encoder layers run operator by operator, not as one fused kernel.

    The switch is torch's, for the whole process; it is put back.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def counting() -> Iterator[Counter]:
    """Counts within the context, without gradients and without fused encoder layers."""
    with separate_products(), torch.no_grad(), Counter() as counter:
        yield counter
