"""From a layout to the operators that are left after a runtime folds normalization and fuses activations.

Read off the data flow (`LayerShape.inputs`) and the functions alone; widths do not matter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from hw_profiles.latency.kernels import ACTIVATIONS, Kernel, Op
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.layers import LayerShape, Layout

NOTHING = ("identity", "dropout", "dropout2d", "alphadropout", "contiguous", "input")
FOLDED_NORMS = ("batchnorm1d", "batchnorm2d", "batchnorm3d")
CONVOLVING = ("conv", "depthwise", "transposed")


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
    readers = [0] * len(layout.layers)
    for layer in layout.layers:
        for source in set(layer.inputs):
            readers[source] += 1
    builder = _Builder(readers, execution.fused_activations)
    for index, layer in enumerate(layout.layers):
        builder.take(index, layer, layout)
    return tuple(builder.steps)


@dataclass(slots=True)
class _Builder:
    """Walks the operators; `step_of` says which step's output an operator's output is."""

    readers: list[int]
    fused_activations: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)

    def take(self, index: int, layer: LayerShape, layout: Layout) -> None:
        """Adds an operator as a step of its own or to the step before it."""
        sources = tuple(self.step_of[source] for source in layer.inputs)
        if layer.kind == "input" or layer.function in NOTHING:
            self.step_of.append(sources[0] if sources else -1)
        elif not (len(sources) == 1 and sources[0] >= 0 and self._absorbed(sources[0], layer)):
            before = layout.layers[layer.inputs[0]].out_map if layer.inputs else layer.in_map
            self.steps.append(_step(index, layer, sources, before))
            self.step_of.append(len(self.steps) - 1)

    def _absorbed(self, source: int, layer: LayerShape) -> bool:
        """Folds or fuses an operator into the step that it alone reads."""
        step = self.steps[source]
        alone = self.readers[layer.inputs[0]] == 1
        activation = self.fused_activations.get(layer.function, "")
        folds = layer.kind == "norm" and layer.function in FOLDED_NORMS and step.shape.op in CONVOLVING
        takes = activation and step.shape.op in (*CONVOLVING, "add")
        if not alone or step.shape.activation or not (folds or takes):
            return False
        if takes:
            self.steps[source] = replace(step, shape=replace(step.shape, activation=activation))
        self.step_of.append(source)
        return True


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
    return kinds.get(layer.kind, "copy")
