"""An independent count of what a network multiplies: torch's `FlopCounterMode` on the network's own forward.

It shares neither the trace nor the layouts with what it checks, attention runs as separate products, and operators
that torch has no formula for get ours, or are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from envs.network.copies import copy_network, in_mode
from envs.network.counting import FORMULAS, Counter, separate_products
from envs.network.graph import Graph
from envs.network.inference import converted
from envs.network.inputs import Inputs, call
from hw_profiles.layers import Layout


class CountMismatch(ValueError):
    """The costs that a search works with are not those of the network."""


@dataclass(frozen=True, slots=True)
class Recount:
    """What one forward pass at batch 1 multiplies.

    Attributes:
        macs: Multiply-accumulates in all.
        modules: Module name -> those of its forward, other modules inside included ("" is the network).
        operators: Module name -> operator of torch -> the same, apart.
        uncounted: Operators that plausibly multiply, but have no formula.
    """

    macs: int
    modules: Mapping[str, int]
    operators: Mapping[str, Mapping[str, int]]
    uncounted: tuple[str, ...]


def independent_macs(network: nn.Module, example_input: Inputs) -> Recount:
    """Counts the multiply-accumulates of the network's own forward, by module and operator.

    Args:
        network: The network; it is not changed.
        example_input: [1, ...] input.
    """
    twin = converted(in_mode(copy_network(network)), "cpu")  # without gradients, whose hooks the library would set
    root = type(twin).__name__
    flops = FlopCounterMode(display=False, custom_mapping=dict(FORMULAS))
    with torch.no_grad(), separate_products(), sdpa_kernel(SDPBackend.MATH), Counter() as names, flops:
        call(twin, example_input)
    counts = flops.get_flop_counts()
    operators = {
        _path(name, root): {str(operator).removeprefix("aten."): count // 2 for operator, count in found.items()}
        for name, found in counts.items()
        if name == root or name.startswith(f"{root}.")
    }
    return Recount(
        macs=flops.get_total_flops() // 2,
        modules={name: sum(found.values()) for name, found in operators.items()},
        operators=operators,
        uncounted=tuple(names.uncounted),
    )


def confirm_macs(layout: Layout, graph: Graph, recount: Recount, what: str = "the dense network") -> None:
    """Checks a layout's multiply-accumulates (patterns apart) against the independent count.

    Args:
        layout: The layout, one entry for each of the graph's operators.
        graph: The network's operators.
        recount: The independent count.
        what: Which network it is, for the message.

    Raises:
        CountMismatch: If they differ; names the innermost module where they do, with its operators.
    """
    own = layout.macs(layout.widths(), lambda codes: np.zeros(codes.shape, dtype=np.bool_))[0].tolist()
    if sum(own) == recount.macs:
        return
    expected: dict[str, int] = {}
    for node, macs in zip(graph.nodes, own, strict=True):
        parts = node.owner.split(".") if node.owner else []
        for count in range(len(parts) + 1):
            path = ".".join(parts[:count])
            expected[path] = expected.get(path, 0) + macs
    wrong = {
        name for name in expected.keys() | recount.modules if expected.get(name, 0) != recount.modules.get(name, 0)
    }
    inner = [name for name in sorted(wrong) if not any(other.startswith(f"{name}.") for other in wrong if name)]
    where = next((name for name in inner if name), "")
    found = ", ".join(f"{name} {count:,}" for name, count in recount.operators.get(where, {}).items())
    raise CountMismatch(
        f"the layout must count what {what} multiplies, but it has {sum(own):,} MACs for {recount.macs:,}: "
        f"{where or type(graph).__name__!r} has {expected.get(where, 0):,} for {recount.modules.get(where, 0):,}"
        f" ({found or 'nothing multiplied there'}); please report this network"
    )


def _path(name: str, root: str) -> str:
    return name.removeprefix(root).removeprefix(".")
