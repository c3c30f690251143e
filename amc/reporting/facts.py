"""What the report shows, as data: gathered from a search's result, in the shape of its sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from amc.problem.layer_patterns import LayerPattern
from amc.profiling.layer_times import LayerTime
from amc.profiling.timing import Timing
from amc.search.result import NETWORKS, NetworkReport, SearchResult
from envs.space.sites import WidthSite
from envs.units.layout import LayoutFamily, kept_counts
from hw_profiles.cost import COSTS, Cost, Macs, cost_of
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import Layout

if TYPE_CHECKING:
    from amc.problem.prepare import Prepared
    from amc.search.episode import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """What the report says of one network.

    Attributes:
        accuracy: "validation" and "test" -> fraction.
        costs: Cost name -> value, the same names for every network.
        widths: Kept channels per unit.
        layer_costs: Cost of each layer with a weight.
        latency: Measured latency, None if it was not measured.
        patterns: Pattern of each layer that had a choice.
    """

    accuracy: Mapping[str, float]
    costs: Mapping[str, float]
    widths: tuple[int, ...]
    layer_costs: tuple[float, ...]
    latency: Timing | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything the report shows, as plain data.

    Attributes:
        task: The task's name.
        agent: Who searched.
        budgets: Cost name -> limit in the cost's unit; the first one leads the headline.
        networks: "dense", "uniform", "found", and "start" where the search had one.
        sites: What was decided, in the order of `ratios`: units, and weights that take a pattern.
        units: Names of the units, in the order of `NetworkFacts.widths`.
        layers: Names of the layers, in the order of `NetworkFacts.layer_costs`.
        layer_cost: Name of the cost that `layer_costs` counts.
        images: "validation" and "test" -> size of the split.
        rewards: Reward of each episode.
        searchers: Who proposed it, one per episode.
        ratios: [S] executed actions (preserve ratios of units), one tuple per episode.
        effort: What the search took: heading -> text.
        configuration: The complete configuration as TOML.
        layer_times: Network name -> predicted and measured time of each layer; {} without a profile.
        layer_patterns: Every layer with a weight, as found leaves it; none where no pattern was decided.
        remarks: What a reader of the table has to know, one sentence each.
    """

    task: str
    agent: str
    budgets: Mapping[str, float]
    networks: Mapping[str, NetworkFacts]
    sites: tuple[str, ...]
    units: tuple[str, ...]
    layers: tuple[str, ...]
    layer_cost: str
    images: Mapping[str, int]
    rewards: tuple[float, ...]
    searchers: tuple[str, ...]
    ratios: tuple[tuple[float, ...], ...]
    effort: Mapping[str, str]
    configuration: str
    layer_times: Mapping[str, Sequence[LayerTime]] = field(default_factory=dict)
    layer_patterns: tuple[LayerPattern, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the networks, in order."""
        return tuple(name for name in NETWORKS if name in self.networks)


def gather(
    prepared: Prepared, result: SearchResult, latency: Mapping[str, Timing], episodes: Sequence[Episode]
) -> ReportData:
    """Collects what `render` shows."""
    setup = prepared.setup
    family, first = setup.anatomy.family, setup.constraint.budgets[0].cost
    cost = Macs() if first.name in COSTS and not COSTS[first.name].adds_up else first
    units = tuple(site.name for site in setup.sites if isinstance(site, WidthSite))

    def facts(name: str, report: NetworkReport) -> NetworkFacts:
        decided = setup.assignment(report.key).decisions
        kept, patterns = decided.kept, decided.patterns
        return NetworkFacts(
            accuracy=report.accuracy,
            costs=report.costs,
            widths=tuple(kept[unit] for unit in units),
            layer_costs=layer_costs(family, cost, kept, patterns),
            latency=latency.get(name),
            patterns=patterns,
        )

    return ReportData(
        task=result.task,
        agent=prepared.config.agent,
        budgets=result.budgets,
        networks={name: facts(name, report) for name, report in result.reports.items()},
        sites=tuple(site.name for site in setup.sites),
        units=units,
        layer_patterns=result.patterns,
        remarks=result.remarks,
        layers=tuple(layer.name for layer in family.dense.layers if layer.has_weight),
        layer_cost=cost.name,
        images={"validation": len(setup.task.validation), "test": len(setup.task.test)},
        rewards=tuple(episode.reward for episode in episodes),
        searchers=tuple(episode.searcher for episode in episodes),
        ratios=tuple(episode.actions for episode in episodes),
        effort={
            "episodes": f"{len(episodes):,}",
            "evaluations": f"{result.evaluations:,}",
            "image-forwards": f"{result.image_forwards:,}",
            "seconds": f"{result.seconds:,.0f}",
            "seed": str(result.seed),
        },
        configuration=prepared.config.to_toml(),
    )


def layer_costs(
    family: LayoutFamily, cost: Cost, widths: Mapping[str, int], patterns: Mapping[str, str] | None = None
) -> tuple[float, ...]:
    """Cost of every layer with a weight, alone, at some widths and patterns (dense if not named)."""
    layout, chosen = family.at(kept_counts(family, widths)), patterns or {}
    layout = replace(layout, layers=tuple(replace(a, pattern=chosen.get(a.name, "dense")) for a in layout.layers))
    layers = layout.layers
    if isinstance(cost, LatencyTable):  # a layer's time depends on what is fused into it
        times = cost.layers(layout)
        return tuple(float(time) for time, layer in zip(times, layers, strict=True) if layer.has_weight)
    return tuple(cost_of(cost, Layout(layers=(replace(a, inputs=()),))) for a in layers if a.has_weight)
