"""How large attentions and products of two tensors are: their heads, and the channels of each side, read off a call."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from envs.network.attention import AttentionCore
from envs.network.calls import Call
from envs.network.graph import Graph, Node
from envs.units.verification.trial import Removal
from hw_profiles.layers import IntArray, LayerShape


class ProductSizes(NamedTuple):
    """Sizes of an attention or a product, all samples and heads together.

    Attributes:
        inputs: Channels of the queries, or those that a product sums over.
        outputs: Channels of the values, or columns of a product.
        heads: Matrices that are multiplied apart: heads of all samples of the example.
        keys: Positions that are attended to, or rows of a product.
        queries: Positions that attend, or rows of a product.
    """

    inputs: int
    outputs: int
    heads: int
    keys: int
    queries: int


def product_sizes(node: Node, module: nn.Module | None, call: Call) -> ProductSizes | None:
    """The sizes of one call, None where the operator is neither an attention nor a product of matrices.

    Args:
        node: The operator.
        module: What it calls, None for a function.
        call: Shapes of its first operand (queries) and of its output, and its multiply-accumulates.
    """
    before, after, macs = call
    if node.kind not in ("attention", "product") or macs == 0 or min(len(before), len(after)) < 2:
        return None
    rows = after[-2]
    if node.kind == "product":
        heads = prod(after[:-2])
        return ProductSizes(heads * (macs // prod(after)), heads * after[-1], heads, rows, rows)
    apart = module.heads(torch.empty(before, device="meta")) if isinstance(module, AttentionCore) else 1
    heads = prod(before[:-2]) * apart
    read, written = prod(before) // rows, prod(after) // rows
    # Each query is multiplied with every key, and its weights with every value.
    return ProductSizes(read, written, heads, macs // (prod(before) + prod(after)), rows)


def products_of(
    network: nn.Module, graph: Graph, calls: Sequence[Call], removals: Sequence[Removal]
) -> list[ProductSizes | None]:
    """Of each operator the sizes as an attention or a product; None of others, and where units change its positions.

    Args:
        network: The network.
        graph: Its operators.
        calls: What each did in the dense network.
        removals: What each did without some channels of a unit.
    """
    found = [_product(network, node, call) for node, call in zip(graph.nodes, calls, strict=True)]
    for removal in removals:
        for row, sizes in enumerate(found):
            left = _product(network, graph.nodes[row], removal.calls[row]) if sizes is not None else None
            if sizes is not None and (left is None or left[3:] != sizes[3:]):
                found[row] = None
    return found


def _product(network: nn.Module, node: Node, call: Call) -> ProductSizes | None:
    return product_sizes(node, network.get_submodule(node.module) if node.module is not None else None, call)


def product_slopes(
    network: nn.Module,
    graph: Graph,
    sizes: Sequence[ProductSizes | None],
    removal: Removal,
    slopes: tuple[IntArray, IntArray, IntArray],
    column: int,
) -> None:
    """Writes channels in and out and heads of attentions and products, per channel of a unit.

    Args:
        network: The network.
        graph: Its operators.
        sizes: Of the dense network (`products_of`).
        removal: What each operator did without some channels of the unit.
        slopes: [N, U] of channels in, channels out and groups; their columns of the unit are written here.
        column: The unit's.
    """
    for row, before in enumerate(sizes):
        after = _product(network, graph.nodes[row], removal.calls[row]) if before is not None else None
        if before is not None and after is not None:
            pairs = zip(before[:3], after[:3], strict=True)
            for slope, (full, left) in zip(slopes, pairs, strict=True):
                slope[row, column] = (full - left) // removal.dropped


def multiplied(node: Node, sizes: ProductSizes) -> LayerShape:
    """An attention or a product as the hardware sees it."""
    return LayerShape(
        name=node.name,
        kind=node.kind,
        in_channels=sizes.inputs,
        out_channels=sizes.outputs,
        groups=sizes.heads,
        in_map=(sizes.keys,),
        out_map=(sizes.queries,),
        inputs=node.inputs,
        function=node.function,
    )
