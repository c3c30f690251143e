"""What a convolution or linear layer really multiplies, whatever its class does before: seen at the functional call.

A subclass may pad or scale its input by itself. Its rows are known only if its forward multiplies once, by its own
weight and bias as they stand, and returns that result as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from envs.network.kinds import CONVOLUTIONS

_CONVOLUTIONS: tuple[Callable[..., Any], ...] = (F.conv1d, F.conv2d, F.conv3d)
_PRODUCTS: tuple[Callable[..., Any], ...] = (
    *_CONVOLUTIONS,
    F.linear,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.mm,
    Tensor.__matmul__,
    torch.convolution,
)


class Multiplication(NamedTuple):
    """The arguments of one functional call; geometry is None for a linear layer."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class _Seen(BaseException):
    """Ends a forward early; no error, so that no layer takes it for one."""


class _Calls(TorchFunctionMode):
    """Notes every product within the context; ends the forward at the first one where `stop` is set."""

    def __init__(self, *, stop: bool) -> None:
        super().__init__()
        self._stop = stop
        self.found: list[tuple[Multiplication | None, Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        call = _multiplication(func, args, kwargs or {})
        if self._stop:
            self.found.append((call, None))
            raise _Seen
        result = func(*args, **(kwargs or {}))
        self.found.append((call, result))
        return result


def has_stock_forward(module: nn.Module) -> bool:
    """Whether a convolution or linear layer computes as torch's own class does."""
    if "forward" in vars(module):
        return False
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    for stock in CONVOLUTIONS:
        if isinstance(module, stock):
            kind: Any = type(module)
            return kind.forward is stock.forward and kind._conv_forward is stock._conv_forward
    return False


def is_plain(module: nn.Module) -> bool:
    """Whether a layer's output is its weight times (a function of) its input plus its bias, in any class.

    A bias that is set counts, too, because folding a normalization sets one.
    """
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return False
    if has_stock_forward(module):
        return True
    weight = module._parameters.get("weight")
    if weight is None:
        return False
    bias = module._parameters.get("bias")
    if bias is None:
        outputs = weight.shape[0]
        bias = nn.Parameter(weight.new_zeros(outputs), requires_grad=False)
    twin = _with_bias(module, bias)
    with suppress(Exception), torch.no_grad(), _Calls(stop=False) as calls:  # whatever its own code raises
        result = twin.forward(_example(module, weight))
        (call, product), *more = calls.found
        return call is not None and not more and result is product and call.weight is weight and call.bias is bias
    return False


def multiplication(module: nn.Module, inputs: Tensor) -> Multiplication:
    """What a plain layer multiplies for some inputs; nothing behind is computed.

    Raises:
        ValueError: If its forward does not multiply.
    """
    calls = _Calls(stop=True)
    with suppress(_Seen), torch.no_grad(), calls:
        module.forward(inputs)  # hooks are not asked: one of them may be asking here
    if not calls.found or calls.found[0][0] is None:
        raise ValueError(f"rows need a layer whose forward multiplies once, but {type(module).__name__} does not")
    return calls.found[0][0]


def _with_bias(module: nn.Module, bias: nn.Parameter) -> nn.Module:
    """A shallow twin without hooks whose bias is a given one."""
    twin = type(module).__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    twin.__dict__["_parameters"] = {**module._parameters, "bias": bias}
    twin.eval()
    return twin


def _example(module: nn.Module, weight: Tensor) -> Tensor:
    """A small input that the layer takes."""
    if isinstance(module, nn.Linear):
        return weight.new_ones(1, module.in_features)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    sizes = [d * (k - 1) + 1 + 2 * s for k, d, s in zip(kernel, dilation, stride, strict=True)]  # type: ignore[arg-type]
    return weight.new_ones(1, int(module.in_channels), *sizes)  # type: ignore[arg-type]


def _multiplication(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Multiplication | None:
    if func is F.linear:
        names: tuple[str, ...] = ("input", "weight", "bias")
    elif func in _CONVOLUTIONS:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    else:
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    given["inputs"] = given.pop("input")
    given.setdefault("bias", None)
    return Multiplication(**given)
