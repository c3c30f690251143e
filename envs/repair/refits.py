"""Which layers sequential repair refits, and in what order the network is executed for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

from torch import Tensor, fx

from envs.repair.beside import TargetsBeside
from envs.repair.targets import Targets
from envs.units.slicing import Axes

DEAD_SCALE = 1e-3
"""Per-channel scales below this fraction of the largest cannot be divided by: the channel is left as it is."""


@dataclass(frozen=True, slots=True)
class Branch:
    """How a refitted layer reaches an addition.

    Attributes:
        other: The other addend.
        scale: [o] what stands between multiplies each of the layer's kept outputs by.
    """

    other: fx.Node
    scale: Tensor

    @property
    def live(self) -> Tensor:
        """[o] bool: scales that can be divided by."""
        return self.scale.abs() > DEAD_SCALE * self.scale.abs().max()


@dataclass(frozen=True, slots=True)
class Refit:
    """One layer to refit.

    Attributes:
        node: Its node in the program.
        drifted: Whether its input drifted; otherwise only its pattern is new.
        touched: What stays of it.
        branch: How it reaches an addition, None where it does not.
    """

    node: fx.Node
    drifted: bool
    touched: Axes
    branch: Branch | None

    @property
    def name(self) -> str:
        """Name of the layer."""
        return str(self.node.target)

    def kept(self, rows: Tensor) -> Tensor:
        """[m, o] what of [m, O] dense outputs the layer is to give."""
        if self.touched.mix is not None:
            return rows @ self.touched.mix.to(rows.dtype)
        return rows if self.touched.outputs is None else rows[:, self.touched.outputs]


def refits_of(
    program: fx.Graph,
    targets: Targets | TargetsBeside,
    axes: Mapping[str, Axes],
    sparse: Collection[str],
    *,
    producers: bool,
    constants: Collection[fx.Node] = (),
) -> dict[fx.Node, Refit]:
    """The layers to refit: those whose input drifted, and those that get a pattern.

    Args:
        program: The traced program.
        targets: Says which layers can be refitted, and which of them reach an addition.
        axes: What stays of each touched module.
        sparse: Layers that get a pattern.
        producers: Refit every layer whose input drifted, not only the consumers of pruned units.
        constants: What stands for branches that are gone.
    """
    drifted = _drifted(program, {*axes, *sparse}, constants)
    refits: dict[fx.Node, Refit] = {}
    for node in program.nodes:
        if node not in targets.layers:
            continue
        moved = node.all_input_nodes[0] in drifted
        touched = axes.get(str(node.target), Axes())
        if node.target in sparse or (moved and (producers or touched.inputs is not None)):
            refits[node] = Refit(node, moved, touched, _branch(targets, node, touched.outputs))
    return refits


def _branch(targets: Targets | TargetsBeside, node: fx.Node, outputs: Tensor | None) -> Branch | None:
    addend = targets.addends.get(node)
    if addend is None:
        return None
    return Branch(addend.other, addend.scale if outputs is None else addend.scale[outputs])


def _drifted(program: fx.Graph, touched: Collection[str], constants: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes whose value differs between the dense and the sliced network."""
    drifted: set[fx.Node] = set()
    for node in program.nodes:
        own = (node.op == "call_module" and node.target in touched) or node in constants
        if own or any(source in drifted for source in node.all_input_nodes):
            drifted.add(node)
    return drifted


def execution_order(program: fx.Graph, late: Collection[fx.Node]) -> list[fx.Node]:
    """The nodes in an order of execution that puts every refit off until nothing else can be computed.

    A shortcut without weights often comes after the branch it is added to; the branch's last layer can make up
    for what the shortcut lacks only if the shortcut is there already.

    Args:
        program: The traced program.
        late: The nodes to put off.
    """
    place = {node: index for index, node in enumerate(program.nodes)}
    missing = {node: len(node.all_input_nodes) for node in program.nodes}
    ready = [(node in late, place[node], node) for node in program.nodes if not missing[node]]
    order: list[fx.Node] = []
    while ready:
        node = heappop(ready)[2]
        order.append(node)
        for reader in node.users:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (reader in late, place[reader], reader))
    return order
