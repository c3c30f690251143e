"""One traced operator graph per network: the only source for layouts, folding and repair.

Tracing is torch.fx, where it cannot torch.export; a network that neither can trace still gets a `Graph` of its
modules in execution order, without edges. Module names are keys here, never read for meaning.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.network.calls import Call, first_tensor, observe_calls
from envs.network.copies import functional_copy, runs_channels_last, same_output
from envs.network.counting import counting, separate_products
from envs.network.inputs import Inputs, call, sizes
from envs.network.interpreter import START, Cut, Interpreter, run
from envs.network.kinds import function_kind, module_kind, plain_name
from envs.network.tracing.exported import exported
from envs.network.tracing.leaves import constant, is_leaf
from envs.network.tracing.reading import exported_reading
from envs.network.tracing.symbolic import symbolic
from hw_profiles.layers import Kind

logger = logging.getLogger(__name__)


class DataDependent(ValueError):
    """Other layers run than when the network was read."""


REST = "rest"
"""Marks what a module with others inside multiplies by itself, where there is no program."""


@dataclass(frozen=True, slots=True)
class Node:
    """One tensor-valued operator.

    Attributes:
        name: Unique name: the module's for a module called once, else the graph's.
        kind: What it does.
        module: Name of the module it calls, None for a function.
        inputs: Indices of the operators that it reads.
        function: What is computed, by `plain_name` ("relu", "maxpool2d"), and in which variant ("gelutanh").
        owner: Name of the module whose forward runs it ("" is the network itself).
        source: Name of its node in the program, "" without one.
    """

    name: str
    kind: Kind
    module: str | None
    inputs: tuple[int, ...]
    function: str = ""
    owner: str = ""
    source: str = ""

    def __str__(self) -> str:
        """How messages name it: a layer by its name, anything else by what it does and the module that runs it."""
        if self.module is not None:
            weighted = self.kind in ("conv", "transposed", "linear")
            return repr(self.name) if weighted else f"{self.name!r} ({self.function})"
        return f"{self.function!r} in {self.owner!r}" if self.owner else f"{self.function!r}"


@dataclass(frozen=True, slots=True)
class Graph:
    """A network's operators in execution order.

    Attributes:
        nodes: The tensor-valued operators.
        program: The program they came from (None: not traceable), free of in-place operators.
        channels_last: Whether the network also runs on channels-last maps (a `view` in its code can forbid it).
        reason: Why there is no program.
    """

    nodes: tuple[Node, ...]
    program: fx.Graph | None
    channels_last: bool
    reason: str = ""

    @property
    def traced(self) -> bool:
        """Whether the data flow between operators is known."""
        return self.program is not None

    def require_program(self) -> fx.Graph:
        """The program.

        Raises:
            ValueError: If the network could not be traced.
        """
        if self.program is None:
            raise ValueError(f"this needs a network that can be traced, but it cannot: {self.reason}")
        return self.program

    def order(self) -> dict[str, int]:
        """First position of every module that is called."""
        positions: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            if node.module is not None:
                positions.setdefault(node.module, index)
        return positions

    def calls(self) -> dict[str, int]:
        """How often every module is called."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            if node.module is not None:
                counts[node.module] = counts.get(node.module, 0) + 1
        return counts

    def folds(self) -> dict[str, str]:
        """Module -> the module that alone reads its output, both called once (candidates for folding)."""
        if self.program is None:
            return {}
        calls = self.calls()
        pairs = {}
        for node in self.program.nodes:
            reader = next(iter(node.users)) if len(node.users) == 1 else None
            if node.op == "call_module" and reader is not None and reader.op == "call_module":
                source, target = str(node.target), str(reader.target)
                if calls.get(source) == 1 and calls.get(target) == 1:
                    pairs[source] = target
        return pairs


def trace(
    network: nn.Module,
    example_input: Inputs,
    samples: Inputs | None = None,
    attributes: Collection[str] = (),
    *,
    like: Graph | None = None,
) -> Graph:
    """Traces `network` with torch.fx, else with torch.export; falls back to module order where neither can.

    Args:
        network: Any module that maps tensors to a tensor (or a structure of tensors).
        example_input: Input of batch 1.
        samples: A few real inputs, which may be longer or shorter: what is traced must hold for them, too.
        attributes: Numbers and buffers of its modules that the program reads off the network that it runs on.
        like: The graph of the network that this one was sliced from: where torch.fx cannot trace it and the program
            there computes what it does, torch.export, which takes seconds, need not.

    Raises:
        ValueError: If the network does not run on the example input, or is scripted.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError("a scripted network has no layers that can be sliced: pass the module that it was made from")
    twin = functional_copy(network)
    with counting() as counter:
        expected = _output(twin, example_input)
        macs = counter.take()
    fast = runs_channels_last(twin, example_input, expected)
    reasons: list[str] = []
    for tracer in _tracers(attributes, like):
        try:
            program = tracer(twin, example_input)
            values, multiplied = _run_counted(program, twin, example_input)
            _confirm(program, twin, samples, values, expected, sum(multiplied.values()), macs)
        except Exception as error:  # whatever the traced code raises
            reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            logger.info("%s: no program by %s (%s)", type(network).__name__, tracer, reasons[-1])
            continue
        _erase_unheard(program, values, multiplied)
        return Graph(_nodes_of(program, values, multiplied, twin), program, fast)
    return Graph(_nodes_by_hooks(twin, example_input), None, fast, "; ".join(reasons))


_Tracer = Callable[[nn.Module, Inputs], fx.Graph]


def _tracers(attributes: Collection[str], like: Graph | None) -> list[_Tracer]:
    """How programs are had, the quickest way first; where a network had none, what is sliced from it has none."""
    recorded = partial(symbolic, attributes=attributes)
    if attributes:
        return [recorded, partial(exported_reading, attributes=attributes)]
    if like is None:
        return [recorded, exported]
    return [recorded] if like.program is None else [recorded, partial(_known, like.program), exported]


def _known(program: fx.Graph, network: nn.Module, example_input: Inputs) -> fx.Graph:
    """A program that is known already, if all modules that it calls are still layers."""
    for name in {str(node.target) for node in program.nodes if node.op == "call_module"}:
        if not is_leaf(network.get_submodule(name), name):
            raise ValueError(f"{name!r} is no layer any more")
    return program


def _confirm(
    program: fx.Graph,
    network: nn.Module,
    samples: Inputs | None,
    values: dict[fx.Node, Any],
    expected: Any,
    found: int,
    macs: int,
) -> None:
    """Checks that a program computes and multiplies what its network does.

    Raises:
        ValueError: If it does not.
    """
    traced = values[next(node for node in program.nodes if node.op == "output")]
    if not same_output(expected, traced, tolerance=1e-4):
        raise ValueError("its traced operators do not reproduce its output")
    if samples is not None and not _reproduced(program, network, samples):
        raise ValueError(f"what it computes for inputs of shape {sizes(samples)} is not what was traced")
    if found != macs:
        raise ValueError(f"its traced operators multiply {found:,} times, but its forward {macs:,} times")


def _reproduced(program: fx.Graph, network: nn.Module, samples: Inputs) -> bool:
    with torch.no_grad(), separate_products():
        expected = call(network, samples)
    return same_output(expected, Interpreter(program.nodes).output(network, samples), tolerance=1e-4)


def _run_counted(
    program: fx.Graph, network: nn.Module, example_input: Inputs
) -> tuple[dict[fx.Node, Any], dict[fx.Node, int]]:
    """Each node's value and multiply-accumulates."""
    values: dict[fx.Node, Any] = {}
    multiplied: dict[fx.Node, int] = {}
    with counting() as counter:
        for node, value in run(program, network, example_input):
            values[node] = value
            multiplied[node] = counter.take()
    return values, multiplied


def _output(network: nn.Module, example_input: Inputs) -> Any:
    try:
        with torch.no_grad():
            return call(network, example_input)
    except Exception as error:
        raise ValueError(
            f"the network must run on the example input of shape {sizes(example_input)}, "
            f"but it raised {type(error).__name__}: {error}"
        ) from error


def _erase_unheard(program: fx.Graph, values: dict[fx.Node, Any], multiplied: dict[fx.Node, int]) -> None:
    """Erases what is not read and is no tensor, or depends on no input (what a branch that is gone still computes).

    Any other unread tensor is computed all the same, and so it counts.
    """
    moving: set[fx.Node] = set()
    for node in program.nodes:
        if node.op == "placeholder" or any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    for node in reversed(program.nodes):
        unread = not node.users and node.op not in ("placeholder", "output")
        still = node not in moving and not multiplied[node]
        if unread and (still or first_tensor(values[node]) is None):
            program.erase_node(node)


def _nodes_of(
    program: fx.Graph, values: dict[fx.Node, Any], multiplied: dict[fx.Node, int], network: nn.Module
) -> tuple[Node, ...]:
    index_of: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    calls = [node.target for node in program.nodes if node.op == "call_module"]
    for node in program.nodes:
        value = values[node]
        works = node.op == "call_module" or multiplied[node] > 0  # not: a tuple of pieces
        tensors = isinstance(value, Tensor) or (works and first_tensor(value) is not None)
        if node.op in ("output", "get_attr") or node.target is constant or not tensors:
            continue
        inputs = tuple(dict.fromkeys(index_of[source] for source in _tensor_sources(node, index_of, values)))
        name = str(node.target) if calls.count(node.target) == 1 and node.op == "call_module" else node.name
        module = str(node.target) if node.op == "call_module" else None
        index_of[node] = len(nodes)
        kind = _kind(node, network, values, index_of)
        nodes.append(Node(name, kind, module, inputs, _function(node, network), _owner(node), node.name))
    return tuple(nodes)


def _function(node: fx.Node, network: nn.Module) -> str:
    """What a node computes, by name."""
    if node.op != "call_module":
        return plain_name(node.target) + _variant(node.kwargs)
    module = network.get_submodule(str(node.target))
    return plain_name(type(module)) + _variant(vars(module))


def _variant(settings: Mapping[str, Any]) -> str:
    """What of a function's settings changes which operators run: an approximation, a causal mask."""
    approximate = settings.get("approximate", "none")
    if isinstance(approximate, str) and approximate != "none":
        return approximate
    return "causal" if settings.get("is_causal") is True or settings.get("causal") is True else ""


def _owner(node: fx.Node) -> str:
    """Name of the module whose forward runs a node."""
    stack = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module":
        return str(node.target)
    return str(stack[-1]) if stack else ""


def _tensor_sources(node: fx.Node, known: dict[fx.Node, int], values: dict[fx.Node, Any]) -> list[fx.Node]:
    """Tensor nodes that `node` reads, looking through tuples (split, chunk) but not through sizes."""
    sources: list[fx.Node] = []
    for source in node.all_input_nodes:
        if source in known:
            sources.append(source)
        elif isinstance(value := values.get(source), (tuple, list)) and any(isinstance(one, Tensor) for one in value):
            sources.extend(_tensor_sources(source, known, values))
    return sources


def _kind(node: fx.Node, network: nn.Module, values: dict[fx.Node, Any], known: dict[fx.Node, int]) -> Kind:
    if node.op == "placeholder":
        return "input"
    sources = node.all_input_nodes
    if node.target is operator.getitem and sources[0] in known and not isinstance(values[sources[0]], Tensor):
        return "reshape"  # one of the tensors that a module returns
    inputs = [values[source] for source in sources if isinstance(values.get(source), Tensor)]
    wrote = values[node]
    same_shape = len(inputs) == 1 and isinstance(wrote, Tensor) and inputs[0].shape == wrote.shape
    if node.op == "call_module":
        return module_kind(network.get_submodule(str(node.target)), same_shape)
    return function_kind(node.target, len(inputs), same_shape)


def record(
    graph: Graph,
    network: nn.Module,
    inputs: Inputs,
    *,
    cut: Cut = START,
    stop: int | None = None,
    known: Sequence[Call] = (),
) -> tuple[Any, list[Call]]:
    """One forward pass: the output, and what every operator of `graph.nodes` read, wrote and multiplied.

    Args:
        graph: Operator graph of the network (or of the network it was sliced from).
        network: Modules without in-place activations (`functional_copy`).
        inputs: B samples.
        cut: Where in a traced program to begin.
        stop: Index of the first node of the program that is not executed, None: all are.
        known: What the operators do, for those that are not executed.

    Raises:
        DataDependent: If other modules run than when the graph was made.
    """
    if graph.program is None:
        return _record_by_hooks(graph, network, inputs)
    wanted = {node.source: place for place, node in enumerate(graph.nodes)}
    calls: dict[int, Call] = dict(enumerate(known))
    output = None
    with counting() as counter:
        for node, values in Interpreter(graph.program.nodes).walk(network, inputs, cut=cut, stop=stop):
            macs, value = counter.take(), values[node]
            place = wanted.get(node.name)
            if node.op == "output":
                output = value
            elif place is not None and (wrote := first_tensor(value)) is not None:
                sources = [calls[wanted[s.name]].after for s in node.all_input_nodes if s.name in wanted]
                after = tuple(wrote.shape)
                calls[place] = Call(sources[0] if sources else after, after, macs)
    return output, [calls[place] for place in sorted(calls)]


def _record_by_hooks(graph: Graph, network: nn.Module, inputs: Inputs) -> tuple[Any, list[Call]]:
    output, observed = observe_calls(network, inputs)
    if [one.name for one in observed if not one.rest] != [node.module for node in graph.nodes if node.source != REST]:
        raise DataDependent("which layers run depends on the data")
    rest = {one.name: one.call for one in observed if one.rest}
    calls = [one.call for one in observed if not one.rest]
    calls += [rest[node.owner] for node in graph.nodes if node.source == REST and node.owner in rest]
    return output, calls


def _nodes_by_hooks(network: nn.Module, example_input: Inputs) -> tuple[Node, ...]:
    """Modules in the order in which a forward pass calls them, and what multiplies outside of them."""
    nodes: list[Node] = []
    taken: dict[str, int] = {}
    for name, module, done, rest in observe_calls(network, example_input)[1]:
        function = plain_name(type(module))
        if rest:
            nodes.append(Node(name or function, "other", None, (), function, name, REST))
            continue
        label = f"{name}#{taken[name]}" if name in taken else name
        taken[name] = taken.get(name, 0) + 1
        nodes.append(Node(label, module_kind(module, done.before == done.after), name, (), function, name))
    return tuple(nodes)
