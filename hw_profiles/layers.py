"""One operator as the hardware sees it (`LayerShape`) and a whole network of them in execution order (`Layout`).

Data only: what a layout costs is in `cost.py`, how one is read off a network is in `envs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hw_profiles.patterns import IntArray, nonzeros, parse_pattern

__all__ = ["IntArray", "Kind", "LayerShape", "Layout", "Widths"]

SCHEMA_VERSION = 1

Kind = Literal[
    "input",
    "conv",
    "transposed",
    "linear",
    "attention",
    "product",
    "norm",
    "activation",
    "add",
    "mul",
    "concat",
    "pool",
    "reshape",
    "other",
]
"""What an operator does; "transposed" is a transposed convolution, "attention" a whole core (queries, keys and values
in, mixed values out), "product" multiplies two tensors as matrices."""

WEIGHTED = ("conv", "transposed", "linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One operator: its kind, widths, kernel and feature maps.

    Attributes:
        name: Module name for modules, graph name for everything else.
        kind: What the operator does.
        in_channels: Channels (features) read; equals `out_channels` where the operator has no weight. Of an attention
            those of the queries, of a product those that are summed over, each for all heads together.
        out_channels: Channels (features) written.
        kernel: Kernel size per spatial dimension, () without a kernel.
        stride: Stride per spatial dimension, () without a kernel.
        groups: Groups of a convolution; heads of an attention (matrices of a product), for a batch of 1.
        in_map: Size of the input without batch and channels; of an attention the positions that are attended to.
        out_map: Size of the output without batch and channels.
        bias: Whether a convolution or linear layer adds a bias.
        channel_params: Parameters per output channel beside kernel and bias (2 for an affine normalization).
        pattern: Sparsity pattern of the weight.
        inputs: Indices of the producing operators in the layout.
        function: What is computed, in lower case without underscores ("relu6", "maxpool2d"): runtimes fuse by it.
        products: Multiply-accumulates beside those of kernel and widths: what an operator without a weight multiplies
            (attention, a recurrent layer, a functional convolution).
    """

    name: str
    kind: Kind
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    in_map: tuple[int, ...] = ()
    out_map: tuple[int, ...] = ()
    bias: bool = False
    channel_params: int = 0
    pattern: str = "dense"
    inputs: tuple[int, ...] = ()
    function: str = ""
    products: int = 0

    def __post_init__(self) -> None:
        """Refuses shapes that no operator can have."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"`kind` must be one of {get_args(Kind)}, but got {self.kind!r} for {self.name!r}")
        for label in ("in_channels", "out_channels", "groups"):
            if getattr(self, label) < 1:
                raise ValueError(f"`{label} >= 1` must hold, but got {getattr(self, label)} for {self.name!r}")

    @property
    def has_weight(self) -> bool:
        """Whether widths and kernel tell its multiply-accumulates (convolutions and linear layers)."""
        return self.kind in WEIGHTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Channel counts of `K` variants of one layout with `N` operators.

    Attributes:
        inputs: [K, N] int64 channels read.
        outputs: [K, N] int64 channels written.
        groups: [K, N] int64 groups (a depthwise layer's follow its width, those of an attention are its heads).
        patterns: [K, N] int64 `Pattern.code` of each weight, None where all are dense.
        products: [K, N] int64 multiply-accumulates beside those of kernel and widths, None where they are the layout's.
    """

    inputs: IntArray
    outputs: IntArray
    groups: IntArray
    patterns: IntArray | None = None
    products: IntArray | None = None

    def part(self, variants: IntArray, rows: IntArray) -> Widths:
        """Some of the variants ([k] indices), of some of the operators ([n] indices)."""
        patterns = None if self.patterns is None else self.patterns[variants][:, rows]
        products = self.products if self.products is None else np.broadcast_to(self.products, self.outputs.shape)
        return Widths(
            inputs=self.inputs[variants][:, rows],
            outputs=self.outputs[variants][:, rows],
            groups=np.broadcast_to(self.groups, self.outputs.shape)[variants][:, rows],
            patterns=patterns,
            products=None if products is None else products[variants][:, rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A network's operators in execution order.

    Attributes:
        layers: The operators; `LayerShape.inputs` index into this tuple.
        extra_params: Parameters that belong to no operator, less those that several operators share (constant in the
            widths).
        edges_known: Whether `inputs` were traced; without them peak memory cannot be read off.
    """

    layers: tuple[LayerShape, ...]
    extra_params: int = 0
    edges_known: bool = True

    def widths(self) -> Widths:
        """This layout's own channel counts, as a batch of one ([1, N])."""
        columns = {
            "inputs": [layer.in_channels for layer in self.layers],
            "outputs": [layer.out_channels for layer in self.layers],
            "groups": [layer.groups for layer in self.layers],
            "products": [layer.products for layer in self.layers],
        }
        if any(layer.pattern != "dense" for layer in self.layers):
            columns["patterns"] = [parse_pattern(layer.pattern).code for layer in self.layers]
        return Widths(**{name: np.asarray([column], dtype=np.int64) for name, column in columns.items()})

    def without(self, gone: Collection[int], constants: Collection[int] = (), extra_params: int = 0) -> Layout:
        """The layout with some operators gone; those that read them read nothing in their place.

        Args:
            gone: Indices of operators.
            constants: Indices of operators that stay and add one parameter for each of their channels.
            extra_params: Parameters that belong to no operator and come in addition.
        """
        places: dict[int, int] = {}
        layers: list[LayerShape] = []
        for index, layer in enumerate(self.layers):
            if index in gone:
                continue
            places[index] = len(layers)
            inputs = tuple(places[source] for source in layer.inputs if source in places)
            own = layer.channel_params + (index in constants)
            same = inputs == layer.inputs and own == layer.channel_params
            layers.append(layer if same else replace(layer, inputs=inputs, channel_params=own))
        return replace(self, layers=tuple(layers), extra_params=self.extra_params + extra_params)

    def weights(self, widths: Widths, skips: Callable[[IntArray], NDArray[np.bool_]] | None = None) -> IntArray:
        """[K, N] int64: weights of each operator that may differ from zero.

        Args:
            widths: Channel counts and patterns.
            skips: Which [K, N] patterns count; the weights of others are counted whole. None: all count.
        """
        whole = widths.inputs * widths.outputs // np.maximum(widths.groups, 1) * self.kernels()
        if widths.patterns is None:
            return whole
        counted = widths.patterns if skips is None else np.where(skips(widths.patterns), widths.patterns, 0)
        return nonzeros(whole, np.broadcast_to(counted, whole.shape))

    def kernels(self) -> IntArray:
        """[N] int64: kernel size, the factor between channels and weights (0: no weight)."""
        return np.asarray([prod(a.kernel) if a.has_weight else 0 for a in self.layers], dtype=np.int64)

    def positions(self) -> IntArray:
        """[N] int64: how often each weight is multiplied.

        Positions are those of the output; a transposed convolution multiplies once per position of its input.
        """
        maps = [layer.in_map if layer.kind == "transposed" else layer.out_map for layer in self.layers]
        return np.asarray([prod(map_) for map_ in maps], dtype=np.int64)

    def products(self, widths: Widths) -> IntArray:
        """[K or 1, N] int64 multiply-accumulates of each operator beside those of its weight."""
        own = np.asarray([[layer.products for layer in self.layers]], dtype=np.int64)
        return own if widths.products is None else widths.products

    def macs(self, widths: Widths, skips: Callable[[IntArray], NDArray[np.bool_]] | None = None) -> IntArray:
        """[K, N] int64 multiply-accumulates of each operator; `skips` as in `weights`."""
        return self.weights(widths, skips) * self.positions() + self.products(widths)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_json` reads it back."""
        layers = [asdict(layer) for layer in self.layers]
        return {
            "schema_version": SCHEMA_VERSION,
            "extra_params": self.extra_params,
            "edges_known": self.edges_known,
            "layers": layers,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layout:
        """Reads `to_json` back.

        Raises:
            ValueError: If the schema version is not ours.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"a layout's `schema_version` must be {SCHEMA_VERSION}, but got {data.get('schema_version')!r}"
            )
        tuples = {"kernel", "stride", "in_map", "out_map", "inputs"}
        layers = tuple(_shape({k: tuple(v) if k in tuples else v for k, v in row.items()}) for row in data["layers"])
        return cls(layers=layers, extra_params=data["extra_params"], edges_known=data["edges_known"])


def _shape(row: dict[str, Any]) -> LayerShape:
    return LayerShape(**row)
