"""What of a task's network can be pruned, as data: costs and how low they can go, units, and every layer that stays
with the reason. The tables made of it stand in `inspection_view.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from amc.config.search import SearchConfig
from amc.problem.bounds import choose_sites, skipped_patterns
from amc.problem.layer_patterns import mac_shares, weight_reasons
from amc.tasks.splits import verification_samples
from amc.tasks.task import Task
from envs.network.kinds import NORMS, WEIGHTED
from envs.space.branch_sites import BranchSite
from envs.space.constraint import Costing
from envs.space.pattern_sites import PatternSite
from envs.space.rules import Rules
from envs.space.sites import Site
from envs.units.anatomy import Anatomy, dissect
from envs.units.units import Attribute, Fixed, Unit, weighted_outputs
from hw_profiles.cost import COSTS, CountedCost, Macs, cost_of
from hw_profiles.layers import Layout
from hw_profiles.shape_rules import ShapeRules, load_rules

SCHEMA_VERSION = 1

UNPRUNED = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
"""Layers with weights whose channels are never a unit's, beside those that users write themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSpan:
    """One cost of the network, and how low the rules let it become.

    Attributes:
        name: As in `--constraint NAME=VALUE`.
        unit: Unit of both values.
        dense: Of the dense network.
        lowest: With every unit (and pattern) at its lightest allowed choice.
        share: lowest / dense, the smallest budget that can be asked for.
    """

    name: str
    unit: str
    dense: float
    lowest: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedUnit:
    """Channels that are kept or dropped together.

    Attributes:
        name: First layer that writes the channels.
        channels: How many there are.
        step: Channels by which the width changes: those that only go together, or one of each head or group.
        lightest: Smallest number of channels that the rules let stay.
        macs: Share of the dense network's MACs in operators that the unit touches, in [0, 1].
        kind: What one of them is: "channels", attention "heads", or "head groups".
        writes: Layers whose outputs they are, in execution order: `name` is the first.
        carries: Layers that map each channel to itself (normalization, depthwise convolution, PReLU), and tables of
            biases per head.
        reads: Layers whose inputs they are.
    """

    name: str
    channels: int
    step: int
    lightest: int
    macs: float
    writes: tuple[str, ...]
    carries: tuple[str, ...]
    reads: tuple[str, ...]
    kind: str = "channels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A layer whose output channels stay, and why."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedWeight:
    """What pattern a layer's weight may get, at full width.

    Attributes:
        layer: Its name.
        inputs: Input channels per group.
        outputs: Output channels.
        macs: Share of the dense network's MACs, in [0, 1].
        choices: Patterns, sparsest first and "dense" last; () where it stays dense.
        reason: Why it stays dense, or "".
    """

    layer: str
    inputs: int
    outputs: int
    macs: float
    choices: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedBranch:
    """A residual branch, where whole branches may be removed.

    Attributes:
        name: How decisions and policies name it.
        layers: Layers with a weight inside of it, in execution order; () where it stays.
        macs: Share of the dense network's MACs that goes with it, in [0, 1]; 0 where it stays.
        reason: Why it stays, or "".
    """

    name: str
    layers: tuple[str, ...] = ()
    macs: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What of a network can be pruned under some rules.

    Every layer with a weight is listed once: its outputs are a unit's (writes, carries), or it is in `stays`.

    Attributes:
        task: Name of the task.
        costs: Every cost that can be counted.
        units: In execution order.
        stays: In the order of the network's modules.
        patterns: Every layer with a counted weight, where patterns are chosen; else ().
        branches: Residual branches, where whole ones may be removed; else ().
        uncounted: Operators that no cost counts.
        untraced: Why the network could not be traced, "" if it could.
    """

    task: str
    costs: tuple[CostSpan, ...]
    units: tuple[InspectedUnit, ...]
    stays: tuple[Stay, ...]
    patterns: tuple[InspectedWeight, ...] = ()
    branches: tuple[InspectedBranch, ...] = ()
    uncounted: tuple[str, ...] = ()
    untraced: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary (docs/reference/inspection.md)."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def inspection(task: Task, config: SearchConfig) -> Inspection:
    """Finds out what can be pruned.

    Args:
        task: The task.
        config: Its rules, patterns and shapes count; budgets do not.

    Raises:
        ValueError: If the rules leave a unit without a width, or match nothing.
    """
    samples = verification_samples(task.calibration)
    anatomy = dissect(task.network, task.example_input, samples, config.attention, branches=config.branches)
    network = anatomy.network
    shapes = load_rules(config.shapes) if config.shapes is not None else None
    widths, skipped = Rules.of(config.rules, profiled=config.profile is not None).sites(anatomy.units)
    sites, fixed = choose_sites(config, network, anatomy, shapes)
    units = _units(anatomy, widths)
    return Inspection(
        task=task.name,
        costs=_costs(anatomy, sites, shapes),
        units=units,
        stays=_stays(network, anatomy, _spread(skipped, anatomy.units, network), units),
        patterns=_patterns(anatomy, sites, fixed) if config.choose != "channels" else (),
        branches=_branches(anatomy, sites, fixed),
        uncounted=anatomy.uncounted,
        untraced="" if anatomy.graph.traced else anatomy.graph.reason,
    )


def _costs(anatomy: Anatomy, sites: Sequence[Site], shapes: ShapeRules | None) -> tuple[CostSpan, ...]:
    dense = anatomy.family.dense
    costing = Costing(anatomy.family, tuple(sites), shapes)
    lightest = costing.fitted(costing.lightest()[None, :])[0]
    known: dict[str, CountedCost] = {**COSTS, "macs": Macs(skips=skipped_patterns(shapes, None))}
    spans: list[CostSpan] = []
    for cost in (cost for cost in known.values() if dense.edges_known or not cost.needs_edges):
        full, least = cost_of(cost, dense), costing.one(cost, lightest)
        share = least / full if full else 1.0
        if any((span.unit, span.dense, span.lowest) == (cost.unit, full, least) for span in spans):
            continue  # it says what another one does: there are no keys and values to keep
        spans.append(CostSpan(name=cost.name, unit=cost.unit, dense=full, lowest=least, share=share))
    return tuple(spans)


def _units(anatomy: Anatomy, sites: Sequence[Site]) -> tuple[InspectedUnit, ...]:
    dense = anatomy.family.dense
    lightest = {site.name: site.choices[0].value for site in sites}
    total = cost_of(Macs(), dense)
    order = anatomy.graph.order()
    found = []
    for unit in (unit for unit in anatomy.units if unit.name in lightest):
        touched = Layout(layers=tuple(dense.layers[row] for row in anatomy.family.layers_of(unit.name)))
        members = sorted(unit.members, key=lambda member: order.get(member.module, len(order)))
        found.append(
            InspectedUnit(
                name=unit.name,
                channels=unit.channels,
                step=unit.granule,
                lightest=lightest[unit.name],
                macs=cost_of(Macs(), touched) / total if total else 0.0,
                writes=tuple(member.module for member in members if member.role in ("producer", "factor")),
                carries=(
                    *(member.module for member in members if member.role == "carrier"),
                    *(one.name.rpartition(".")[0] for one in unit.attributes if _is_weight(anatomy.network, one)),
                ),
                reads=tuple(member.module for member in members if member.role == "consumer"),
                kind=unit.kind,
            )
        )
    return tuple(found)


def _branches(anatomy: Anatomy, sites: Sequence[Site], fixed: Sequence[Fixed]) -> tuple[InspectedBranch, ...]:
    """Those that can go, then the others with the reason."""
    total = cost_of(Macs(), anatomy.family.dense)
    found = [
        InspectedBranch(
            name=site.name,
            layers=site.weighted,
            macs=1 - cost_of(Macs(), anatomy.family.dense.without(site.rows)) / total if total else 0.0,
        )
        for site in sites
        if isinstance(site, BranchSite)
    ]
    known = {one.name for one in anatomy.branches}
    stay = (*anatomy.whole, *(entry for entry in fixed if entry.name in known))
    return (*found, *(InspectedBranch(name=entry.name, reason=entry.reason) for entry in stay))


def _is_weight(network: nn.Module, attribute: Attribute) -> bool:
    """Whether an attribute is the weight of a layer (an embedding of positions), and no table of the module itself."""
    owner, _, name = attribute.name.rpartition(".")
    return name == "weight" and isinstance(network.get_submodule(owner), UNPRUNED)


def _spread(skipped: Sequence[Fixed], units: Sequence[Unit], network: nn.Module) -> list[Fixed]:
    """Units left out by the rules, as the layers that write their channels."""
    named = {unit.name: unit for unit in units}
    return [Fixed(name, entry.reason) for entry in skipped for name in weighted_outputs(named[entry.name], network)]


def _stays(
    network: nn.Module, anatomy: Anatomy, skipped: Sequence[Fixed], units: Sequence[InspectedUnit]
) -> tuple[Stay, ...]:
    """Every layer that no unit writes, once, with all that is said of it."""
    held = {name for unit in units for name in (*unit.writes, *unit.carries)}
    reasons: dict[str, list[str]] = {name: [] for name in weighted_layers(network) if name not in held}
    for entry in (*anatomy.fixed, *skipped):
        if entry.name not in held and entry.reason not in reasons.setdefault(entry.name, []):
            reasons[entry.name].append(entry.reason)
    return tuple(
        Stay(layer=name, reason="; ".join(said) or _never(network.get_submodule(name)))
        for name, said in reasons.items()
    )


def _never(module: nn.Module) -> str:
    return f"the channels of a layer of type {type(module).__name__} are never pruned"


def weighted_layers(network: nn.Module) -> list[str]:
    """Names of the layers with a weight: torch's kinds, and any other module without children that owns a matrix."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (*WEIGHTED, *UNPRUNED)) or _is_own_layer(module)
    ]


def _is_own_layer(module: nn.Module) -> bool:
    leaf = not list(module.children()) and not isinstance(module, NORMS)
    return leaf and any(own.ndim > 1 for own in module.parameters())


def _patterns(anatomy: Anatomy, sites: Sequence[Site], fixed: Sequence[Fixed]) -> tuple[InspectedWeight, ...]:
    """What each layer may choose at its full width, or why it stays dense."""
    dense = anatomy.family.dense
    choices: Mapping[str, tuple[str, ...]] = {
        site.layer: tuple(site.patterns()) for site in sites if isinstance(site, PatternSite)
    }
    reasons, shares = weight_reasons(fixed), mac_shares(dense)
    return tuple(
        InspectedWeight(
            layer=layer.name,
            inputs=layer.in_channels // layer.groups,
            outputs=layer.out_channels,
            macs=shares[layer.name],
            choices=choices.get(layer.name, ()),
            reason="" if layer.name in choices else reasons[layer.name],
        )
        for layer in dense.layers
        if layer.has_weight
    )
