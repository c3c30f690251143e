"""Verification: a branch may go only if the network's own code, with a constant in its place, gives what it would give
if that branch were constant, and runs nothing else of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from envs.network.calls import first_tensor
from envs.network.copies import functional_copy, same_output
from envs.network.counting import counting, separate_products
from envs.network.graph import Graph, Node, trace
from envs.network.inputs import Inputs, batch_size, call, repeated, rows
from envs.network.interpreter import Interpreter, run
from envs.network.kinds import WEIGHTED
from envs.units.branches.branch import ACTIVATIONS, Block, Branch, Skip, constant_of, without_branches
from envs.units.branches.found import FoundBranch, find_branches, is_inside, modules_inside
from envs.units.layout import read_layout
from envs.units.slicing import axis_size
from envs.units.units import Fixed
from envs.units.verification.culprit import first_line
from hw_profiles.cost import Macs, Params, cost_of
from hw_profiles.layers import LayerShape, Layout

TOLERANCE = 1e-3
"""Largest accepted difference relative to the output's largest value, as for units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBranch:
    """A branch that can go.

    Attributes:
        branch: How it is removed.
        found: Where it stands.
        extra_params: By how many parameters, beside those of its operators and of the constant, the network changes.
    """

    branch: Branch
    found: FoundBranch
    extra_params: int

    @property
    def name(self) -> str:
        """Its name."""
        return self.branch.name

    def around(self, other: VerifiedBranch) -> bool:
        """Whether another branch lies inside of this one."""
        return self is not other and other.found.sum in self.found.inside


def read_branches(
    network: nn.Module, graph: Graph, example_input: Inputs, dense: Layout, samples: Inputs | None = None
) -> tuple[list[VerifiedBranch], list[Fixed]]:
    """The residual branches that can go, in the order of their additions, and the others with the reason.

    Args:
        network: The network, with explicit attention; it is not changed.
        graph: Its operator graph.
        example_input: Input of batch 1.
        dense: Its layout.
        samples: Real inputs, None for the example.
    """
    if graph.program is None:
        return [], []
    trial = _Trial.create(network, graph, example_input, dense, samples)
    found, fixed = find_branches(graph, trial.values)
    verified: list[VerifiedBranch] = []
    for one in found:
        taken = trial.verified(one)
        if isinstance(taken, str):
            fixed.append(Fixed(_name(one), taken))
        else:
            verified.append(taken)
    return trial.together(verified, fixed), fixed


class _Given(NamedTuple):
    """What a module gave: axes of its (first) tensor and its shape, and the length of a tuple (0: a tensor)."""

    shape: tuple[int, ...]
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A network in eval mode on real inputs of at least two samples, so that no constant has the batch by chance."""

    network: nn.Module
    graph: Graph
    example: Inputs
    dense: Layout
    samples: Inputs
    plain: Layout
    values: dict[fx.Node, Any]
    given: dict[str, _Given]

    @classmethod
    def create(
        cls, network: nn.Module, graph: Graph, example_input: Inputs, dense: Layout, samples: Inputs | None
    ) -> _Trial:
        inputs = example_input if samples is None else samples
        inputs = inputs if batch_size(inputs) > 1 else repeated(inputs, 2)
        twin = functional_copy(network)
        with torch.no_grad():
            values = dict(run(graph.require_program(), twin, rows(inputs, 0, 2)))
        return cls(
            network=twin,
            graph=graph,
            example=example_input,
            dense=dense,
            samples=inputs,
            plain=read_layout(twin, graph, example_input),
            values=values,
            given=_outputs_of(twin, rows(inputs, 0, 2)),
        )

    def verified(self, found: FoundBranch) -> VerifiedBranch | str:
        """The first way of removing a branch that is true, or why there is none."""
        reason = "no module of the network gives what the branch adds"
        for branch in self._candidates(found):
            try:
                return self._tried(branch, found)
            except ValueError as error:
                reason = str(error)
        return reason

    def together(self, verified: Sequence[VerifiedBranch], fixed: list[Fixed]) -> list[VerifiedBranch]:
        """Those that can go together, at the costs that each foretells; the others are written down as fixed."""
        outer = outermost(verified)
        inner = [one for one in verified if one not in outer]
        if not any(self._clash(some) for some in (outer, *([one] for one in inner)) if some):
            return list(verified)
        kept: list[VerifiedBranch] = []
        for one in verified:
            beside = outermost([*kept, one])
            if reason := self._clash([one]) or ("" if beside == [one] else self._clash(beside)):
                fixed.append(Fixed(_name(one.found), reason))
            else:
                kept.append(one)
        return kept

    def _clash(self, branches: Sequence[VerifiedBranch]) -> str:
        """Why some branches, none inside of another, cannot go together, or ''."""
        try:
            small = self._without(branches)
            self._check_operators(small, branches)
        except ValueError as error:
            return str(error)
        return "" if _params(small) == self._foretold(branches) else "it shares parameters with another branch"

    def _tried(self, branch: Branch, found: FoundBranch) -> VerifiedBranch:
        one = VerifiedBranch(branch=branch, found=found, extra_params=0)
        return replace(one, extra_params=_params(self._without([one])) - self._foretold([one]))

    def _foretold(self, branches: Sequence[VerifiedBranch]) -> int:
        """Parameters that the network has without some branches."""
        extra = sum(one.extra_params for one in branches)
        layout = self.dense.without(_gone(branches), {one.found.row for one in branches}, extra)
        return int(cost_of(Params(), layout))

    def _without(self, branches: Sequence[VerifiedBranch]) -> nn.Module:
        """The network without some branches, tried on the samples.

        Raises:
            ValueError: If it computes something else, or multiplies for them; the text is the reason.
        """
        small = without_branches(self.network, [one.branch for one in branches])
        constants = self._filled(small, branches)
        try:
            with torch.no_grad(), separate_products():
                got = call(small, self.samples)
            with counting() as counter:
                call(small, self.example)
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(f"the network's code does not run without the branch ({first_line(error)})") from error
        if not same_output(self._with_constants(constants), got, TOLERANCE):
            raise ValueError("removing the branch is not the same as making it constant")
        if counter.take() != cost_of(Macs(), self.plain.without(_gone(branches))):
            raise ValueError("what the branch multiplies outside of its layers would still run")
        return small

    def _check_operators(self, small: nn.Module, branches: Sequence[VerifiedBranch]) -> None:
        """Traces a network without some branches anew.

        Raises:
            ValueError: If it has other operators than those outside of the branches; the text is the reason.
        """
        graph = trace(small, self.example)
        if graph.program is None:
            raise ValueError(f"the network cannot be traced without the branch ({graph.reason})")
        wanted = [_plain(layer) for layer in self.plain.without(_gone(branches)).layers]
        left = [_plain(layer) for layer in read_layout(small, graph, self.example).layers]
        if left != wanted:
            raise ValueError(f"some of its code still runs without the branch{_culprit(graph, left, wanted)}")

    def _filled(self, small: nn.Module, branches: Sequence[VerifiedBranch]) -> dict[fx.Node, Tensor]:
        """Gives every constant random values; exit of a branch -> its constant."""
        generator = torch.Generator().manual_seed(0)
        filled: dict[fx.Node, Tensor] = {}
        for one in branches:
            constant = constant_of(small, one.branch)
            if constant is None:
                raise ValueError("the branch has no module of its own that could be constant")
            drawn = torch.randn(constant.value.shape, generator=generator, device="cpu")
            constant.value = nn.Parameter(drawn.to(constant.value), requires_grad=False)
            filled[one.found.exit] = constant.value
        return filled

    def _with_constants(self, constants: dict[fx.Node, Tensor]) -> Any:
        """The output of the dense network with some of its values replaced."""
        with torch.no_grad(), separate_products():
            for node, values in Interpreter(self.graph.require_program().nodes).walk(self.network, self.samples):
                if node in constants:
                    values[node] = constants[node].expand_as(values[node])
                if node.op == "output":
                    return values[node]
        raise ValueError("a program must have an output")

    def _candidates(self, found: FoundBranch) -> Iterator[Branch]:
        """Ways to remove a branch: the outermost modules first, at last the whole block."""
        layer = self._last_layer(found)
        shape = self.values[found.exit].shape
        if layer is None:
            return
        axis = self._axis(layer, shape)
        if axis is None:
            return
        inside = list(modules_inside(self.network, self.graph, found))
        owner = self._exit_owner(found)
        for name in inside:
            given = self.given.get(name)
            if not _within(owner, name) or given is None or given.shape != tuple(shape):
                continue
            others = _outermost_of([other for other in inside if not _within(other, name) and not _within(name, other)])
            skipped = [
                Skip(module=other, rank=len(self.given[other].shape), outputs=self.given[other].outputs)
                for other in others
                if other in self.given
            ]
            yield Branch(
                module=name,
                layer=layer,
                axis=axis,
                rank=len(shape),
                outputs=given.outputs,
                skipped=tuple(skipped),
            )
        block = self._block(found)
        if block is not None:
            yield Branch(module=self.graph.nodes[found.row].owner, layer=layer, axis=axis, rank=len(shape), block=block)

    def _axis(self, layer: str, shape: Sequence[int]) -> int | None:
        """The axis on which a branch has the outputs of its last layer, None where that cannot be told."""
        width = axis_size(self.network.get_submodule(layer), "producer")
        usual = len(shape) - 1 if isinstance(self.network.get_submodule(layer), nn.Linear) else 1
        others = [axis for axis in range(1, len(shape)) if shape[axis] == width]
        if shape[usual] == width:
            return usual
        return others[0] if len(others) == 1 else None

    def _last_layer(self, found: FoundBranch) -> str | None:
        """The layer whose outputs are the branch's channels: that nearest to its exit, if all nearest are of a kind."""
        nearest: dict[str, None] = {}
        waiting, seen = [found.exit], set[fx.Node]()
        while waiting:
            node = waiting.pop()
            if node in seen or node not in found.inside:
                continue
            seen.add(node)
            module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, WEIGHTED):
                nearest[str(node.target)] = None
            else:
                waiting += node.all_input_nodes
        kinds = {isinstance(self.network.get_submodule(name), nn.Linear) for name in nearest}
        return next(iter(nearest)) if len(kinds) == 1 else None

    def _exit_owner(self, found: FoundBranch) -> str:
        """Name of the module whose forward gives the exit, looking through operators that give what they read."""
        owners = {node.source: node.owner for node in self.graph.nodes}
        block, node = self.graph.nodes[found.row].owner, found.exit
        while owners[node.name] == block and len(node.all_input_nodes) == 1:
            source = node.all_input_nodes[0]
            if source.name not in owners or not same_output(self.values[node], self.values[source], 0.0):
                break
            node = source
        return owners[node.name]

    def _block(self, found: FoundBranch) -> Block | None:
        """How the block around the addition is replaced as a whole, None where it is of another form."""
        name = self.graph.nodes[found.row].owner
        if not name:
            return None
        mine = [row for row, node in enumerate(self.graph.nodes) if is_inside(node, name)]
        rest = [row for row in mine if row not in found.rows and row != found.row]
        shortcut = [self.graph.nodes[row] for row in rest if row < found.row]
        tail = [self.graph.nodes[row] for row in rest if row > found.row]
        through = _child(name, shortcut)
        if through is None:
            return None
        if len(tail) == 1 and tail[0].owner == name and tail[0].function in ACTIVATIONS:
            return Block(shortcut=through, function=tail[0].function)
        behind = _child(name, tail)
        return None if behind is None else Block(shortcut=through, tail=behind)


def _name(found: FoundBranch) -> str:
    """How a branch is named that has no module of its own."""
    return f"{found.layers[-1]}.branch"


def outermost(branches: Sequence[VerifiedBranch]) -> list[VerifiedBranch]:
    """Those that lie inside of no other one."""
    return [one for one in branches if not any(other.around(one) for other in branches)]


def _gone(branches: Sequence[VerifiedBranch]) -> set[int]:
    return {row for one in branches for row in one.found.rows}


def _params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _outputs_of(network: nn.Module, inputs: Inputs) -> dict[str, _Given]:
    """What every module gives, where that is a tensor or a tuple of tensors."""
    given: dict[str, _Given] = {}

    def noting(name: str) -> Any:
        def note(module: nn.Module, read: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and isinstance(output, Tensor | tuple):
                given[name] = _Given(tuple(tensor.shape), len(output) if isinstance(output, tuple) else 0)

        return note

    handles = [module.register_forward_hook(noting(name)) for name, module in network.named_modules()]
    try:
        with torch.no_grad(), separate_products():
            call(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return given


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _outermost_of(names: Collection[str]) -> list[str]:
    return [name for name in names if not any(other != name and _within(name, other) for other in names)]


def _child(block: str, nodes: Sequence[Node]) -> str | None:
    """The one part of a block that some operators run in, "" without operators, None where there is no such part."""
    parts = {node.owner.removeprefix(block).removeprefix(".").partition(".")[0] for node in nodes}
    if not parts:
        return ""
    part = parts.pop()
    return part if part and not parts else None


def _plain(layer: LayerShape) -> LayerShape:
    """An operator without its name."""
    return replace(layer, name="-")


def _culprit(graph: Graph, left: Sequence[LayerShape], wanted: Sequence[LayerShape]) -> str:
    """The first operator of a network without branches that should not be there."""
    pairs = zip_longest(left, wanted)
    place = next((place for place, (one, other) in enumerate(pairs) if one != other), len(left))
    return f": {graph.nodes[place]}" if place < len(left) else ""
