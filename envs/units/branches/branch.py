"""How a residual branch is removed: data, so that a policy can hold it and do the same to fresh weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from envs.network.copies import copy_network, in_mode
from envs.units.branches.modules import Constant, ConstantTuple, Shortcut, Skipped
from envs.units.slicing import Axes, axis_size

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
"""Functions (by `plain_name`) that may stand behind an addition, and the modules that compute the same."""
TAIL = "activation"
"""Name of the module that stands for a function behind the addition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """One module inside of a branch, which gives nothing once the branch is gone.

    Attributes:
        module: Its name.
        rank: Axes of what it gives.
        outputs: Length of the tuple that it gives, 0 where it gives a tensor.
    """

    module: str
    rank: int
    outputs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block that is replaced as a whole, because its own code works in place on what its branch gives.

    Attributes:
        shortcut: Name inside of it of the module that the shortcut runs through, "" without one.
        tail: Name inside of it of the module behind the addition, "" without one.
        function: Name in `ACTIVATIONS` of the function behind the addition, "" without one.
    """

    shortcut: str = ""
    tail: str = ""
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A residual branch f of x + f(x), and how it is removed.

    Attributes:
        module: Name of the module that becomes a constant: the last one of the branch, or the whole block.
        layer: Name of the last layer with a weight, whose outputs are the branch's channels.
        axis: Axis of the channels in what the branch gives.
        rank: Axes of that.
        outputs: Length of the tuple that the module gives, 0 where it gives a tensor.
        skipped: The other modules inside of the branch.
        block: How the whole block is replaced, None where its own code runs without the branch.
    """

    module: str
    layer: str
    axis: int
    rank: int
    outputs: int = 0
    skipped: tuple[Skip, ...] = ()
    block: Block | None = None

    @property
    def name(self) -> str:
        """How decisions, files and messages name it."""
        return f"{self.module}.branch"

    @property
    def constant(self) -> str:
        """Name of the constant in a network without the branch."""
        return self.module if self.block is None else f"{self.module}.constant"

    def named(self) -> tuple[str, ...]:
        """Names of all modules of the dense network that it speaks of."""
        parts = [] if self.block is None else [self.block.shortcut, self.block.tail]
        inner = [f"{self.module}.{part}" for part in parts if part]
        return (self.module, self.layer, *inner, *(skip.module for skip in self.skipped))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self) | {"skipped": [asdict(skip) for skip in self.skipped]}


def without_branches(network: nn.Module, branches: Iterable[Branch]) -> nn.Module:
    """A copy that shares all tensors, with constants of zero in the place of branches; itself where none is to go.

    A branch inside of another one goes with it.

    Args:
        network: The network, pruned or not; it is not changed.
        branches: What is removed.

    Raises:
        ValueError: If the network has not the modules that a branch names.
    """
    chosen = tuple(branches)
    if not chosen:
        return network
    twin = copy_network(network)
    for branch in chosen:
        try:
            _remove(twin, network, branch)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"a branch needs the modules that it was found in, but {branch.name!r} has others ({error}): use the "
                "network that it was found in"
            ) from error
    return in_mode(twin, training=network.training)


def constant_of(network: nn.Module, branch: Branch) -> Constant | None:
    """The constant of a removed branch, None where it went with another one."""
    try:
        found = network.get_submodule(branch.constant)
    except AttributeError:
        return None
    return found if isinstance(found, Constant) else None


def cut_constants(network: nn.Module, branches: Iterable[Branch], axes: Mapping[str, Axes]) -> None:
    """Cuts the constants of removed branches to the channels that stay, in place (with new tensors).

    Args:
        network: Without the branches, or with them: then nothing is cut.
        branches: What was removed.
        axes: What stays of each layer of the dense network.
    """
    for branch in branches:
        constant, kept = constant_of(network, branch), axes.get(branch.layer, Axes()).outputs
        if constant is not None and kept is not None:
            cut = constant.value.detach().index_select(branch.axis, kept.to(constant.value.device))
            constant.value = nn.Parameter(cut, requires_grad=constant.value.requires_grad)


def is_gone(network: nn.Module, name: str) -> bool:
    """Whether a layer of the dense network is not there, or something without weights stands in its place."""
    try:
        return isinstance(network.get_submodule(name), (Constant, Skipped))
    except AttributeError:
        return True


def _remove(twin: nn.Module, network: nn.Module, branch: Branch) -> None:
    layer = network.get_submodule(branch.layer)
    width = axis_size(layer, "producer")
    if not _stands(twin, branch.module):
        return
    old = twin.get_submodule(branch.module)
    batch_first = bool(getattr(old, "batch_first", False))
    constant = (
        ConstantTuple(width, branch.axis, branch.rank, branch.outputs, batch_first=batch_first)
        if branch.outputs
        else Constant(width, branch.axis, branch.rank)
    )
    constant.to(layer.weight.device, layer.weight.dtype)  # type: ignore[arg-type]
    fresh = constant if branch.block is None else _shortcut(old, constant, branch.block)
    twin.set_submodule(branch.module, fresh)
    for skip in branch.skipped:
        gone = twin.get_submodule(skip.module)
        first = bool(getattr(gone, "batch_first", False))
        nothing = Skipped(skip.rank, skip.outputs, batch_first=first)
        twin.set_submodule(skip.module, nothing.to(layer.weight.device, layer.weight.dtype))  # type: ignore[arg-type]


def _stands(network: nn.Module, name: str) -> bool:
    """Whether a module is still there, and was not replaced with a branch around it."""
    try:
        return not isinstance(network.get_submodule(name), Skipped)
    except AttributeError:
        return False


def _shortcut(old: nn.Module, constant: Constant, block: Block) -> Shortcut:
    tail = TAIL if block.function else block.tail
    fresh = Shortcut(constant, block.shortcut, tail)
    for name in (block.shortcut, block.tail):
        if name:
            fresh.add_module(name, old.get_submodule(name))
    if block.function:
        fresh.add_module(TAIL, ACTIVATIONS[block.function]())
    return fresh
