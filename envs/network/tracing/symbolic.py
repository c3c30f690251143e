"""From a network's forward to a torch.fx program without operators in place."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from threading import get_ident
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from envs.network.counting import separate_products
from envs.network.inputs import Inputs, argument_names, call
from envs.network.interpreter import execute
from envs.network.tracing.leaves import constant, is_leaf
from envs.network.tracing.values import ExampleValues

Change: TypeAlias = Callable[[fx.Node], None]
"""What is done to a node of a program once it is written."""


def unchanged(node: fx.Node) -> None:
    """Nothing."""


_IN_PLACE_TWINS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    torch.nn.functional.relu_: torch.relu,
}


_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "tril_indices", "triu_indices", "zeros")
"""Functions that make tensors from sizes: torch.fx does not see sizes that are still unknown among their arguments."""


def symbolic(
    network: nn.Module,
    example_input: Inputs,
    attributes: Collection[str] = (),
    change: Change = unchanged,
    *,
    decides: bool = True,
) -> fx.Graph:
    """The program of a network's forward, layers whole; it holds for inputs of other sizes, too.

    Args:
        network: The network.
        example_input: Tells with which arguments forward is called: one placeholder each, named as the keyword where
            it is one. Other arguments keep their defaults.
        attributes: Numbers and buffers that its modules hold ("blocks.0.attention.heads"), which the program reads off
            the network that it runs on; all others stand in it as they are.
        change: What is done to every node once it is written, in place.
        decides: Whether conditions on sizes are decided as with the example, rather than refused.

    Raises:
        Exception: Whatever torch.fx raises where the forward depends on values.
    """
    with (
        _restored(network),
        separate_products(),
        _recorded_len(network),
        _recorded_factories(),
        _known_lengths(),
    ):
        before = set(vars(network))
        program = _traced(network, example_input, attributes, change, decides=decides)
        made = {name: one for name, one in vars(network).items() if name not in before and isinstance(one, Tensor)}
    for node in program.nodes:  # torch.fx puts tensors that forward makes into the network
        if node.op == "get_attr" and node.target in made:
            node.op, node.target, node.args = "call_function", constant, (made[node.target],)
    return program


def _traced(
    network: nn.Module, example_input: Inputs, attributes: Collection[str], change: Change, *, decides: bool
) -> fx.Graph:
    """The program as torch.fx records it; buffers are recorded only where one is cut to a size of the inputs."""
    held = {name: operator.attrgetter(name)(network) for name in attributes}
    try:
        return _Tracer(network, example_input, held, change, decides=decides).trace(network)
    except TypeError:
        tracer = _Tracer(network, example_input, held, change, decides=decides)
        tracer.proxy_buffer_attributes = True
        return tracer.trace(network)


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Takes back what forward assigns to its modules: in a trace these are records."""
    before = [(vars(module), dict(vars(module))) for module in network.modules()]
    try:
        yield
    finally:
        for now, own in before:
            now.clear()
            now.update(own)


@contextmanager
def _recorded_len(network: nn.Module) -> Iterator[None]:
    """Lets `len(x)` be recorded in the files of the network's classes, as their own torch.fx.wrap("len") would."""
    forwards = (inspect.unwrap(type(module).forward) for module in network.modules())
    files = {id(names): names for forward in forwards if (names := getattr(forward, "__globals__", None))}
    own = (names for names in files.values() if not str(names.get("__name__", "")).startswith("torch."))
    patched = [names for names in own if "len" not in names]
    for names in patched:
        names["len"] = _length
    try:
        yield
    finally:
        for names in patched:
            del names["len"]


def _length(value: Any) -> Any:
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", len, (value,), {})
    return len(value)


@contextmanager
def _known_lengths() -> Iterator[None]:
    """Lets Python ask for the length of a sequence before it unpacks one; the method is torch's, and is put back."""
    before = fx.Proxy.__len__

    def length(proxy: fx.Proxy) -> int:
        return len(proxy.tracer.example.plain(proxy.node)) if isinstance(proxy.tracer, _Tracer) else before(proxy)

    fx.Proxy.__len__ = length  # type: ignore[method-assign]
    try:
        yield
    finally:
        fx.Proxy.__len__ = before  # type: ignore[method-assign]


@contextmanager
def _recorded_factories() -> Iterator[None]:
    """Lets `torch.arange(x.shape[1])` and the like be recorded, so that no length is baked into the program.

    The functions are torch's, for the whole process, as in `torch.fx.experimental.meta_tracer`; they are put back.
    """
    before = {name: getattr(torch, name) for name in _FACTORIES}
    for name, factory in before.items():
        setattr(torch, name, _recorded(factory))
    try:
        yield
    finally:
        for name, factory in before.items():
            setattr(torch, name, factory)


def _recorded(factory: Callable[..., Tensor]) -> Callable[..., Any]:
    @wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        proxy = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)), None)
        if proxy is None:
            return factory(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", factory, args, kwargs)

    return made


class _Tracer(fx.Tracer):
    """Traces into whatever is not one operator; encoders and decoders of torch's are run layer by layer."""

    def __init__(
        self, network: nn.Module, given: Inputs, attributes: Mapping[str, Any], change: Change, *, decides: bool
    ) -> None:
        super().__init__(autowrap_modules=(math,))
        self._given, self._attributes, self._change, self._decides = given, attributes, change, decides
        self.example = ExampleValues(network, given)
        self._thread = get_ident()

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """A node of an operator that is not in place."""
        if kwargs.get("inplace") is True:
            kwargs = {**kwargs, "inplace": False}
        node = super().create_node(kind, _functional(kind, target, args), args, kwargs, name, type_expr)
        self._change(node)
        return node

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder for each tensor that the network is called with; forward's defaults do the rest."""
        example, names = self._given, argument_names(root_fn, self._given)
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]
        inputs: Any = dict(zip(names, proxies, strict=True)) if isinstance(example, dict) else tuple(proxies)
        return partial(self._with_attributes, "", partial(call, partial(root_fn, self.root), inputs)), []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_leaf(module, name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """What a module holds; torch.fx asks for all threads, of which one is recorded."""
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        if module not in (self.submodule_paths or ()) and not module.state_dict():
            return forward(*args, **kwargs)  # made where it is called: nn.ReLU()(x)
        if type(module) in (nn.TransformerEncoder, nn.TransformerDecoder):
            forward = partial(_layer_by_layer, module)
        forward = partial(self._with_attributes, self.path_of_module(module), forward)
        return super().call_module(module, forward, args, kwargs)

    def _with_attributes(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a module's forward with records in the place of those attributes of its own that are read off."""
        held = vars(self.root.get_submodule(path))
        names = [leaf for owner, _, leaf in (name.rpartition(".") for name in self._attributes) if owner == path]
        before = {name: held[name] for name in names if name in held}  # buffers are held elsewhere, and hidden
        held.update({name: self.create_proxy("get_attr", f"{path}.{name}".lstrip("."), (), {}) for name in names})
        try:
            return forward(*args, **kwargs)
        finally:
            for name in names:
                del held[name]
            held.update(before)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The entries of a sequence of sizes, or of results."""
        count = len(self.example.plain(obj.node))
        return iter([self.create_proxy("call_function", operator.getitem, (obj, k), {}) for k in range(count)])

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Conditions on sizes are decided as with the example, those on attributes that are read off as they stand."""
        if self._follows(obj.node):
            return bool(self._value(obj.node))
        if not self._decides:
            raise fx.proxy.TraceError(
                f"forward asks for the truth of {obj.node.name!r}, and may be run with other sizes"
            )
        return bool(self.example.plain(obj.node))

    def _follows(self, node: fx.Node) -> bool:
        """Whether a value depends on attributes that are read off, and on nothing else."""
        if node.op == "get_attr":
            return node.target in self._attributes
        return bool(node.all_input_nodes) and all(map(self._follows, node.all_input_nodes))

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attributes[str(node.target)]
        return execute(node, self.root, {source: self._value(source) for source in node.all_input_nodes})


def _layer_by_layer(stack: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What encoders and decoders do; their own forward asks for sizes, which a trace has not."""
    names = {"mask": "src_mask"} if isinstance(stack, nn.TransformerEncoder) else {}
    kwargs = {names.get(name, name): value for name, value in kwargs.items() if value is not None}
    for layer in stack.layers:
        x = layer(x, *args, **kwargs)
    return x if stack.norm is None else stack.norm(x)


def _functional(kind: str, target: Any, args: tuple[Any, ...]) -> Any:
    """The twin of an operator in place (values are kept for repair, so nothing may overwrite them), else the operator.

    `view` becomes `reshape`, which also takes channels-last maps.
    """
    if kind == "call_function":
        return _IN_PLACE_TWINS.get(target, target)
    if kind != "call_method":
        return target
    if target.endswith("_") and not target.endswith("__"):
        target = target.removesuffix("_")
    return "reshape" if target == "view" and not isinstance(args[-1], torch.dtype) else target
