"""One traced operator graph per network: the only source for layouts, folding and repair.

Tracing is torch.fx; a network that it cannot trace still gets a `Graph` of its modules in execution order,
without edges. Module names are keys here, never read for meaning.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from envs.kinds import BATCH_NORMS as BATCH_NORMS
from envs.kinds import CONVOLUTIONS as CONVOLUTIONS
from envs.kinds import NORMS as NORMS
from envs.kinds import TRANSPOSED as TRANSPOSED
from envs.kinds import function_kind, module_kind, plain_name
from hw_profiles.layers import Kind

logger = logging.getLogger(__name__)

_IN_PLACE_TWINS: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu, torch.nn.functional.relu_: torch.relu,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """One tensor-valued operator.

    Attributes:
        name: Unique name: the module's for a module called once, else the graph's.
        kind: What it does.
        module: Name of the module it calls, None for a function.
        inputs: Indices of the operators that it reads.
        function: What is computed, by `plain_name` ("relu", "maxpool2d").
    """

    name: str
    kind: Kind
    module: str | None
    inputs: tuple[int, ...]
    function: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """A network's operators in execution order.

    Attributes:
        nodes: The tensor-valued operators.
        program: The torch.fx graph they came from (None: not traceable), free of in-place operators.
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
        calls, pairs = self.calls(), {}
        for node in self.program.nodes:
            reader = next(iter(node.users)) if len(node.users) == 1 else None
            if node.op == "call_module" and reader is not None and reader.op == "call_module":
                source, target = str(node.target), str(reader.target)
                if calls.get(source) == 1 and calls.get(target) == 1:
                    pairs[source] = target
        return pairs


def copy_network(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter and buffer with `network` (a few ms, no data moves)."""
    known: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    # A module has a dozen empty dictionaries, most for hooks, which would take half of deepcopy's time.
    empty = (v for m in network.modules() for v in vars(m).values() if type(v) in (dict, OrderedDict) and not v)
    known |= {id(value): value.copy() for value in empty}
    return copy.deepcopy(network, known)


def functional_copy(network: nn.Module) -> nn.Module:
    """`copy_network` in eval mode whose activations do not work in place, so that every value can be kept."""
    twin = copy_network(network).eval()
    for module in twin.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return twin


def trace(network: nn.Module, example_input: Tensor) -> Graph:
    """Traces `network`; falls back to module order when torch.fx cannot.

    Args:
        network: Any module that maps one tensor to a tensor (or a structure of tensors).
        example_input: [1, ...] input.

    Raises:
        ValueError: If the network does not run on the example input.
    """
    twin = functional_copy(network)
    expected = _output(twin, example_input)
    fast = _runs_channels_last(twin, example_input, expected)
    try:
        program = _functional(fx.Tracer().trace(twin))
        with torch.no_grad():
            values = dict(run(program, twin, example_input))
        traced = values[next(node for node in program.nodes if node.op == "output")]
        if not same_output(expected, traced, tolerance=1e-4):
            raise ValueError("its traced operators do not reproduce its output")
    except Exception as error:  # torch.fx raises whatever the traced code raises
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        logger.info("torch.fx cannot trace %s (%s): module order only", type(network).__name__, reason)
        return Graph(_nodes_by_hooks(twin, example_input), None, fast, reason)
    return Graph(_nodes_of(program, values, twin), program, fast)


def make_channels_last(network: nn.Module) -> None:
    """Gives 2-D convolutions channels-last weights of their own, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and "weight" in dict(module.named_parameters(recurse=False)):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)


def _runs_channels_last(network: nn.Module, example_input: Tensor, expected: Any) -> bool:
    if example_input.ndim != 4:
        return True
    fast = copy_network(network)
    make_channels_last(fast)
    try:
        with torch.no_grad():
            got = fast(example_input.contiguous(memory_format=torch.channels_last))
        return same_output(expected, got, tolerance=1e-3)
    except RuntimeError:  # "view size is not compatible with input tensor's size and stride"
        return False


def _output(network: nn.Module, example_input: Tensor) -> Any:
    try:
        with torch.no_grad():
            return network(example_input)
    except Exception as error:
        raise ValueError(
            f"the network must run on the example input of shape {tuple(example_input.shape)}, "
            f"but it raised {type(error).__name__}: {error}"
        ) from error


def same_output(expected: Any, got: Any, tolerance: float) -> bool:
    """Whether two outputs (tensors or structures of them) agree relative to the largest expected value."""
    wanted, found = tree_leaves(expected), tree_leaves(got)
    if not wanted or len(wanted) != len(found):
        return False
    for a, b in zip(wanted, found, strict=True):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape):
            return False
        if not (a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-12):
            return False
    return True


def run(program: fx.Graph, network: nn.Module, *inputs: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    """Runs `program` on the modules of `network`, yielding each node's value; values are freed after last use."""
    values: dict[fx.Node, Any] = {}
    last_reader, arguments = last_readers(program), iter(inputs)
    for node in program.nodes:
        value = next(arguments, None) if node.op == "placeholder" else execute(node, network, values)
        if node.op == "placeholder" and value is None and node.args:
            value = node.args[0]  # an optional second argument of forward keeps its default
        values[node] = value
        yield node, value
        for source in (*node.all_input_nodes, node):
            if last_reader.get(source, node) is node:
                values.pop(source, None)


def execute(node: fx.Node, network: nn.Module, values: dict[fx.Node, Any]) -> Any:
    """The value of one node, given the values of the nodes that it reads."""
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(network)
    if node.op == "output":
        return args[0]
    raise ValueError(f"an operator of kind {node.op!r} cannot stand inside a graph")


def last_readers(program: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node, the last node that reads it."""
    return {source: node for node in program.nodes for source in node.all_input_nodes}


def _functional(program: fx.Graph) -> fx.Graph:
    """Replaces in-place operators by their twins (values are kept for repair, so nothing may overwrite them).

    `view` becomes `reshape`, which also takes channels-last maps.
    """
    for node in program.nodes:
        if node.op == "call_function":
            node.target = _IN_PLACE_TWINS.get(node.target, node.target)
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            node.target = node.target.removesuffix("_")
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"
        if node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)
    for node in reversed(program.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            program.erase_node(node)
    return program


def _nodes_of(program: fx.Graph, values: dict[fx.Node, Any], network: nn.Module) -> tuple[Node, ...]:
    index_of: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    calls = [node.target for node in program.nodes if node.op == "call_module"]
    for node in program.nodes:
        if node.op in ("output", "get_attr") or not isinstance(values[node], Tensor):
            continue
        inputs = tuple(dict.fromkeys(index_of[source] for source in _tensor_sources(node, index_of, values)))
        name = str(node.target) if calls.count(node.target) == 1 and node.op == "call_module" else node.name
        module = str(node.target) if node.op == "call_module" else None
        index_of[node] = len(nodes)
        called = type(network.get_submodule(module)) if module is not None else node.target
        nodes.append(Node(name, _kind(node, network, values), module, inputs, plain_name(called)))
    return tuple(nodes)


def _tensor_sources(node: fx.Node, known: dict[fx.Node, int], values: dict[fx.Node, Any]) -> list[fx.Node]:
    """Tensor nodes that `node` reads, looking through tuples (split, chunk) but not through sizes."""
    sources: list[fx.Node] = []
    for source in node.all_input_nodes:
        if source in known:
            sources.append(source)
        elif isinstance(value := values.get(source), (tuple, list)) and any(isinstance(one, Tensor) for one in value):
            sources.extend(_tensor_sources(source, known, values))
    return sources


def _kind(node: fx.Node, network: nn.Module, values: dict[fx.Node, Any]) -> Kind:
    if node.op == "placeholder":
        return "input"
    inputs = [values[source] for source in node.all_input_nodes if isinstance(values.get(source), Tensor)]
    same_shape = len(inputs) == 1 and inputs[0].shape == values[node].shape
    if node.op == "call_module":
        return module_kind(network.get_submodule(str(node.target)), same_shape)
    return function_kind(node.target, len(inputs), same_shape)


Shape = tuple[int, ...]


def record(graph: Graph, network: nn.Module, inputs: Tensor) -> tuple[Any, list[tuple[Shape, Shape]]]:
    """One forward pass: the output, and (input shape, output shape) of every operator of `graph.nodes`.

    Args:
        graph: Operator graph of the network (or of the network it was sliced from).
        network: Modules without in-place activations (`functional_copy`).
        inputs: [B, ...] input.
    """
    if graph.program is None:
        output, calls = _calls_by_hooks(network, inputs)
        return output, [(before, after) for _, _, before, after in calls]
    shapes: list[tuple[Shape, Shape]] = []
    seen: dict[fx.Node, Shape] = {}
    output = None
    with torch.no_grad():
        for node, value in run(graph.program, network, inputs):
            if node.op == "output":
                output = value
            elif isinstance(value, Tensor) and node.op != "get_attr":
                seen[node] = tuple(value.shape)
                sources = [seen[source] for source in node.all_input_nodes if source in seen]
                shapes.append((sources[0] if sources else seen[node], seen[node]))
    return output, shapes


def _nodes_by_hooks(network: nn.Module, example_input: Tensor) -> tuple[Node, ...]:
    """Leaf modules in the order in which a forward pass calls them."""
    nodes: list[Node] = []
    taken: dict[str, int] = {}
    for name, module, before, after in _calls_by_hooks(network, example_input)[1]:
        label = f"{name}#{taken[name]}" if name in taken else name
        taken[name] = taken.get(name, 0) + 1
        nodes.append(Node(label, module_kind(module, before == after), name, (), plain_name(type(module))))
    return tuple(nodes)


def _calls_by_hooks(network: nn.Module, inputs: Tensor) -> tuple[Any, list[tuple[str, nn.Module, Shape, Shape]]]:
    """The output, and (name, module, input shape, output shape) of every leaf module that returns a tensor."""
    calls: list[tuple[str, nn.Module, Shape, Shape]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else output
                calls.append((name, module, tuple(first.shape), tuple(output.shape)))

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            output = network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, calls
