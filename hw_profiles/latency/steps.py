"""From a layout to the operators that are left after a runtime folds normalization and fuses activations.

Read off the data flow (`LayerShape.inputs`) and the functions alone; widths do not matter here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from hw_profiles.latency.kernels import ACTIVATIONS, Kernel, Op
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.layers import LayerShape, Layout

NOTHING = ("identity", "dropout", "dropout2d", "alphadropout", "contiguous", "input")
FOLDED_NORMS = ("batchnorm1d", "batchnorm2d", "batchnorm3d")
CONVOLVING = ("conv", "depthwise", "transposed")
LAYER_NORMS = ("layernorm", "rmsnorm")
UNSIZED = ("embedding", "reshape", "view", "unflatten", "attentioncore", "attentioncorecausal")
"""Behind these an exported network's sizes are known only when it runs: texts have any length, sizes are computed."""
SCALINGS = ("mul", "truediv", "div")
MASKS = ("add", "maskedfill")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator that is left after folding and fusing.

    Attributes:
        layer: Index of the operator whose widths it has.
        shape: The kernel as it runs in the plain format, without an addition.
        sources: Steps that it reads, in the order of the operator's arguments (-1: the network's input).
    """

    layer: int
    shape: Kernel
    sources: tuple[int, ...]


@lru_cache(maxsize=64)
def steps_of(layout: Layout, execution: Execution) -> tuple[Step, ...]:
    """The operators of a layout after folding normalization and fusing activations."""
    readers: list[list[int]] = [[] for _ in layout.layers]
    for index, layer in enumerate(layout.layers):
        for source in set(layer.inputs):
            readers[source].append(index)
    builder = _Builder(layout, readers, _unsized(layout), execution)
    for index in range(len(layout.layers)):
        builder.take(index)
    return tuple(builder.steps)


def _unsized(layout: Layout) -> list[bool]:
    """Of each operator, whether the size of what it gives is not known before it runs."""
    found: list[bool] = []
    for layer in layout.layers:
        found.append(layer.function in UNSIZED or any(found[source] for source in layer.inputs))
    return found


@dataclass(slots=True)
class _Builder:
    """Walks the operators; `step_of` says which step's output an operator's output is."""

    layout: Layout
    readers: list[list[int]]
    unsized: list[bool]
    execution: Execution
    steps: list[Step] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)

    def take(self, index: int) -> None:
        """Adds an operator as steps of its own or to the step before it."""
        layer = self.layout.layers[index]
        sources = tuple(self.step_of[source] for source in layer.inputs)
        if layer.kind == "input" or layer.function in NOTHING:
            self.step_of.append(sources[0] if sources else -1)
            return
        if sources and sources[0] >= 0 and self._absorbed(index, sources):
            self.step_of.append(sources[0])
            return
        if layer.kind == "attention":
            self._attend(index, sources)
        elif layer.kind == "product":
            self.steps.append(Step(layer=index, shape=self._product(layer, sources), sources=sources))
        else:
            before = self.layout.layers[layer.inputs[0]].out_map if layer.inputs else layer.in_map
            self.steps.append(_step(index, layer, sources, before))
        if self._adds_bias(index):
            shape = Kernel(op="bias", in_map=layer.out_map, out_map=layer.out_map)
            self.steps.append(Step(layer=index, shape=shape, sources=(len(self.steps) - 1,)))
        self.step_of.append(len(self.steps) - 1)

    def _absorbed(self, index: int, sources: tuple[int, ...]) -> bool:
        """Folds or fuses an operator into the step that it alone reads."""
        layer, step = self.layout.layers[index], self.steps[sources[0]]
        if len(self.readers[layer.inputs[0]]) != 1 or step.shape.activation:
            return False
        if step.shape.op == "scores":
            shape = _softened(step.shape, layer, alone=len(sources) == 1)
        elif len(sources) == 1:
            shape = self._fused(step, layer)
        else:
            shape = None
        if shape is None:
            return False
        moved = index if shape.op != step.shape.op else step.layer
        self.steps[sources[0]] = replace(step, layer=moved, shape=shape)
        return True

    def _fused(self, step: Step, layer: LayerShape) -> Kernel | None:
        """A step's kernel with an operator that it alone feeds, None where that runs by itself."""
        shape = step.shape
        if layer.kind == "norm" and layer.function in FOLDED_NORMS and shape.op in CONVOLVING:
            return shape
        if shape.op == "add" and layer.function in LAYER_NORMS and self._added_in_norm(step.layer):
            return Kernel(op="layernorm", add=True, in_map=layer.out_map, out_map=layer.out_map)
        activation = self.execution.fused_activations.get(layer.function, "")
        return replace(shape, activation=activation) if activation and shape.op in (*CONVOLVING, "add") else None

    def _added_in_norm(self, index: int) -> bool:
        """Whether an addition runs inside a layer norm behind it: of two tensors whose sizes are known."""
        both = len(self.layout.layers[index].inputs) == 2
        return self.execution.tokens.adds_in_norms and both and not self.unsized[index]

    def _adds_bias(self, index: int) -> bool:
        """Whether the bias of a linear layer over positions is a step of its own."""
        layers, rules = self.layout.layers, self.execution.tokens
        layer = layers[index]
        if layer.kind != "linear" or not (layer.bias and layer.out_map and rules.separate_bias):
            return False
        reader = self._only_reader(index)
        if reader is None or layers[reader].function in rules.fused_bias:
            return reader is None
        after = self._only_reader(reader) if layers[reader].kind == "add" else None
        normed = after is not None and layers[after].function in LAYER_NORMS
        return not (normed and self._added_in_norm(reader))

    def _only_reader(self, index: int) -> int | None:
        """The one operator that reads another's output, behind what does nothing; None where there are several."""
        if len(self.readers[index]) != 1:
            return None
        reader = self.readers[index][0]
        return self._only_reader(reader) if self.layout.layers[reader].function in NOTHING else reader

    def _attend(self, index: int, sources: tuple[int, ...]) -> None:
        """Adds an attention core: scores of queries, keys and perhaps a mask; then the values, mixed by them."""
        layer = self.layout.layers[index]
        mix = Kernel(op="mix", in_map=layer.in_map, out_map=layer.out_map)
        masked = len(sources) > 3 or layer.function.endswith("causal")
        scores = replace(mix, op="scores", activation="softmax", add=masked)
        self.steps.append(Step(layer=index, shape=scores, sources=(*sources[:2], *sources[3:])))
        values = sources[2:3] or sources[-1:]
        self.steps.append(Step(layer=index, shape=mix, sources=(len(self.steps) - 1, *values)))

    def _product(self, layer: LayerShape, sources: tuple[int, ...]) -> Kernel:
        """A product of tensors: of values where a softmax is multiplied, else of queries and keys."""
        source = sources[0] if sources else -1
        while source >= 0 and self.steps[source].shape.op == "copy":
            source = self.steps[source].sources[0]
        mixes = source >= 0 and "softmax" in self.steps[source].shape.activation
        if mixes:
            return Kernel(op="mix", in_map=(layer.in_channels // layer.groups,), out_map=layer.out_map)
        return Kernel(op="scores", in_map=(layer.out_channels // layer.groups,), out_map=layer.out_map)


def _softened(shape: Kernel, layer: LayerShape, *, alone: bool) -> Kernel | None:
    """Scores with the operators up to the softmax: their scale, their mask, and itself."""
    if layer.function == "softmax":
        return replace(shape, activation="softmax")
    if layer.function in SCALINGS and alone:
        return shape
    return replace(shape, add=True) if layer.function in MASKS else None


def _step(index: int, layer: LayerShape, sources: tuple[int, ...], before: tuple[int, ...]) -> Step:
    """An operator as a step of its own; `before` is the map that it reads."""
    op = _op(layer)
    weighted = op in CONVOLVING
    shape = Kernel(
        op=op,
        activation=ACTIVATIONS.get(layer.function, "relu") if op == "activation" else "",
        kernel=layer.kernel if weighted else (),
        stride=layer.stride if weighted else (),
        groups=layer.groups if op in ("conv", "transposed") else 1,
        in_map=layer.in_map if layer.has_weight else (before if op == "pool" else layer.out_map),
        out_map=layer.out_map,
    )
    return Step(layer=index, shape=shape, sources=sources)


def _op(layer: LayerShape) -> Op:
    if layer.kind == "conv" and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return "depthwise"
    if "pool" in layer.function:
        return "pool"
    kinds: dict[str, Op] = {
        "conv": "conv",
        "transposed": "transposed",
        "linear": "linear",
        "add": "add",
        "mul": "mul",
        "concat": "concat",
        "norm": "norm",
        "activation": "activation",
        "pool": "pool",
    }
    if layer.function in LAYER_NORMS:
        return "layernorm"
    return kinds.get(layer.kind, "copy")


def stand_ins(layout: Layout, execution: Execution) -> dict[str, tuple[str, ...]]:
    """Operators without a kernel of their own, by what is timed in their place ("nothing" for products of others)."""
    found: dict[str, dict[str, None]] = {}
    for step in steps_of(layout, execution):
        layer, op = layout.layers[step.layer], step.shape.op
        place = ""
        if layer.products and not (layer.has_weight or step.shape.attends):
            place = "nothing"
        elif op == "copy" and layer.kind != "reshape":
            place = "a copy"
        elif op == "activation" and layer.function not in ACTIVATIONS:
            place = "a relu"
        elif op == "norm" and layer.function not in FOLDED_NORMS:
            place = "a batch normalization"
        if place:
            found.setdefault(place, {})[layer.function] = None
    return {place: tuple(functions) for place, functions in found.items()}
