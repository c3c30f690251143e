"""What a forward pass calls, module by module: for networks that cannot be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from envs.network.counting import Counter, counting
from envs.network.inputs import Inputs, call
from envs.network.kinds import is_layer

Shape = tuple[int, ...]


class Call(NamedTuple):
    """One operator of a forward pass: shapes of what it read and wrote, and its multiply-accumulates."""

    before: Shape
    after: Shape
    macs: int = 0


class ModuleCall(NamedTuple):
    """One call of a module, or (`rest`) all that a module with others inside multiplies by itself."""

    name: str
    module: nn.Module
    call: Call
    rest: bool = False


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of a structure, None where there is none."""
    return next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)


def observed_modules(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules but those inside a layer (its weight's parametrization, its padding)."""
    yield prefix, network
    if not is_layer(network):
        for name, child in network.named_children():
            yield from observed_modules(child, f"{prefix}.{name}" if prefix else name)


class _Ledger:
    """Attributes what a counter counts to the innermost module that runs."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._inside: list[str] = []
        self._own: dict[str, int] = {}
        self._shapes: dict[str, Call] = {}
        self.calls: list[ModuleCall] = []

    def enter(self, name: str) -> None:
        self._settle()
        self._inside.append(name)

    def leave(self, name: str, module: nn.Module, read: Tensor | None, output: Any) -> None:
        self._settle()
        self._inside.pop()
        wrote = first_tensor(output)
        if wrote is None:
            return
        done = Call(tuple((wrote if read is None else read).shape), tuple(wrote.shape))
        if is_layer(module) or not list(module.children()):
            self.calls.append(ModuleCall(name, module, done._replace(macs=self._own.pop(name, 0))))
        else:
            self._shapes.setdefault(name, done)

    def rest(self, modules: Mapping[str, nn.Module]) -> list[ModuleCall]:
        """What modules with others inside multiplied by themselves."""
        empty = Call((), ())
        return [
            ModuleCall(name, modules[name], self._shapes.get(name, empty)._replace(macs=macs), rest=True)
            for name, macs in self._own.items()
            if macs
        ]

    def _settle(self) -> None:
        macs = self._counter.take()
        if self._inside and macs:
            self._own[self._inside[-1]] = self._own.get(self._inside[-1], 0) + macs


def observe_calls(network: nn.Module, inputs: Inputs) -> tuple[Any, list[ModuleCall]]:
    """The output, and what every module without others inside did, in order; then what the others did themselves."""
    modules = dict(observed_modules(network))
    with counting() as counter:
        ledger = _Ledger(counter)
        handles = [module.register_forward_pre_hook(_entering(ledger, name)) for name, module in modules.items()]
        handles += [
            module.register_forward_hook(_leaving(ledger, name), with_kwargs=True) for name, module in modules.items()
        ]
        try:
            output = call(network, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return output, ledger.calls + ledger.rest(modules)


def _entering(ledger: _Ledger, name: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, args: ledger.enter(name)


def _leaving(ledger: _Ledger, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
    return lambda module, args, kwargs, output: ledger.leave(name, module, first_tensor((args, kwargs)), output)
