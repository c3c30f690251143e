"""What the report shows, as plain numbers and names: gathered from a search's result, with what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from amc.problem.layer_patterns import LayerPattern
from amc.profiling.layer_times import LayerTime
from amc.profiling.runtimes.runtime import COUNTED_RUNS
from amc.profiling.timing import Timing
from amc.search.episode import Episode
from amc.search.result import FINETUNED, NETWORKS, stored_latency, stored_layers
from envs.measure import ACCURACY, Measure
from envs.space.assignment import Assignment
from envs.space.branch_sites import BranchSite
from envs.space.sites import Site, WidthSite
from envs.units.layout import LayoutFamily, kept_counts
from hw_profiles.cost import Cost, Macs, cost_of
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """What the report says of one network.

    Attributes:
        metric: "validation" and "test" -> the task's metric.
        costs: Cost name -> value, the same names for every network.
        widths: Kept channels per unit.
        layer_costs: Cost of each layer with a weight.
        latency: Measured latency, None if it was not measured.
        patterns: Pattern of each layer that had a choice.
        removed: Names of the residual branches that are gone; units inside of them have no channels.
    """

    metric: Mapping[str, float]
    costs: Mapping[str, float]
    widths: tuple[int, ...]
    layer_costs: tuple[float, ...]
    latency: Timing | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything the report shows, as plain data.

    Attributes:
        task: The task's name.
        agent: The agent that searched.
        budgets: Cost name -> limit in the cost's unit; the first one leads the headline.
        networks: "dense", "uniform", "found", and "start" where the search had one.
        sites: What was decided, in the order of `ratios`: units, and weights that take a pattern.
        units: Names of the units, in the order of `NetworkFacts.widths`.
        branches: Residual branch -> its layers with a weight; none where whole branches were not decided.
        layers: Names of the layers, in the order of `NetworkFacts.layer_costs`.
        layer_cost: Name of the cost that `layer_costs` counts.
        samples: "validation" and "test" -> size of the split.
        rewards: Reward of each episode.
        searchers: The searcher or start that proposed it, one per episode.
        ratios: [S] executed actions (preserve ratios of units), one tuple per episode.
        effort: What the search took: heading -> text.
        configuration: The complete configuration as TOML.
        layer_times: Network name -> predicted and measured time of each layer; {} without a profile.
        layer_time_runs: Runs that a measured time of a layer is the mean of.
        layer_patterns: Every layer with a weight, as found leaves it; none where no pattern was decided.
        remarks: What a reader of the table has to know, one sentence each.
        measure: Name, direction and unit of the metric.
        standard_errors: Split -> standard error of found's metric on it.
        finetuned: The network found after training, None where it was not trained.
    """

    task: str
    agent: str
    budgets: Mapping[str, float]
    networks: Mapping[str, NetworkFacts]
    sites: tuple[str, ...]
    units: tuple[str, ...]
    layers: tuple[str, ...]
    layer_cost: str
    samples: Mapping[str, int]
    rewards: tuple[float, ...]
    searchers: tuple[str, ...]
    ratios: tuple[tuple[float, ...], ...]
    effort: Mapping[str, str]
    configuration: str
    layer_times: Mapping[str, Sequence[LayerTime]] = field(default_factory=dict)
    layer_time_runs: int = COUNTED_RUNS
    layer_patterns: tuple[LayerPattern, ...] = ()
    remarks: tuple[str, ...] = ()
    measure: Measure = ACCURACY
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    finetuned: NetworkFacts | None = None

    @property
    def compared(self) -> dict[str, NetworkFacts]:
        """The networks shown, and after them the network found as training has left it."""
        return {**self.shown, **({FINETUNED: self.finetuned} if self.finetuned else {})}

    @property
    def shown(self) -> dict[str, NetworkFacts]:
        """The networks, in the order in which they are shown."""
        return {name: self.networks[name] for name in NETWORKS if name in self.networks}

    @property
    def leading_cost(self) -> str:
        """Name of the cost of the first budget."""
        return next(iter(self.budgets))

    @property
    def rounds(self) -> list[int]:
        """Timed rounds of each network whose latency was measured."""
        return [facts.latency.rounds for facts in self.networks.values() if facts.latency]

    @property
    def kept_percent(self) -> dict[str, list[float]]:
        """Network -> channels kept of each unit, in per cent of dense."""
        dense = self.networks["dense"].widths
        return {
            name: [100 * kept / channels for kept, channels in zip(facts.widths, dense, strict=True)]
            for name, facts in self.shown.items()
        }

    @property
    def layer_shares(self) -> dict[str, list[float]]:
        """Network -> cost of each layer, in per cent of the dense network's total."""
        total = sum(self.networks["dense"].layer_costs) or 1.0
        return {name: [100 * value / total for value in facts.layer_costs] for name, facts in self.shown.items()}

    @property
    def pattern_counts(self) -> dict[str, int]:
        """Pattern -> how many layers of the network found have it, by name."""
        return dict(sorted(Counter(layer.pattern for layer in self.layer_patterns).items()))

    @property
    def pattern_share(self) -> float:
        """Share of the dense network's MACs in layers that found gives a pattern."""
        return sum(layer.share for layer in self.layer_patterns if layer.pattern != "dense")

    @property
    def best_episode(self) -> int:
        """Index of the episode of the highest reward, the first one on a tie."""
        return max(range(len(self.rewards)), key=self.rewards.__getitem__)


def gather(
    document: Mapping[str, Any],
    *,
    agent: str,
    configuration: str,
    family: LayoutFamily,
    sites: Sequence[Site],
    patterns: Sequence[LayerPattern],
    cost: Cost,
    samples: Mapping[str, int],
    episodes: Sequence[Episode],
) -> ReportData:
    """Collects what the report shows.

    Args:
        document: What was found: the content of `result.json`.
        agent: The agent that searched.
        configuration: The complete configuration as TOML.
        family: Layouts of the network at any widths.
        sites: [S] what was decided.
        patterns: Every layer with a weight, as found leaves it; none where no pattern was decided.
        cost: The cost of the first budget; layers are compared in it, in MACs where it does not add up over layers.
        samples: "validation" and "test" -> size of the split.
        episodes: All episodes that did not fail, in order.
    """
    layer_cost = cost if getattr(cost, "adds_up", True) else Macs()
    units = tuple(site.name for site in sites if isinstance(site, WidthSite))
    latency, measure = stored_latency(document), Measure.from_json(document.get("metric"))
    networks = {}
    for name in (name for name in (*NETWORKS, FINETUNED) if name in document):
        decided = Assignment.of(sites, document[name]["choices"]).decisions
        removed = [site for site in sites if isinstance(site, BranchSite) and site.name in decided.removed]
        inside = {inner for site in removed for inner in site.inner}
        gone = {row for site in removed for row in site.rows}
        networks[name] = NetworkFacts(
            metric=document[name][measure.name],
            costs=document[name]["costs"],
            widths=tuple(0 if unit in inside else decided.kept[unit] for unit in units),
            layer_costs=layer_costs(family, layer_cost, decided.kept, decided.patterns, gone),
            latency=latency.get(name),
            patterns=decided.patterns,
            removed=tuple(decided.removed),
        )
    return ReportData(
        finetuned=networks.pop(FINETUNED, None),
        task=document["task"],
        agent=agent,
        budgets=document["budgets"],
        networks=networks,
        sites=tuple(site.name for site in sites),
        units=units,
        layers=tuple(layer.name for layer in family.dense.layers if layer.has_weight),
        layer_cost=layer_cost.name,
        samples=samples,
        measure=measure,
        standard_errors=document["found"].get("standard_error", {}),
        rewards=tuple(episode.reward for episode in episodes),
        searchers=tuple(episode.searcher for episode in episodes),
        ratios=tuple(episode.actions for episode in episodes),
        effort=effort_in_words(document, len(episodes)),
        configuration=configuration,
        layer_times=stored_layers(document),
        layer_patterns=tuple(patterns),
        remarks=tuple(document["remarks"]),
        branches={site.name: site.weighted for site in sites if isinstance(site, BranchSite)},
    )


def effort_in_words(document: Mapping[str, Any], episodes: int) -> dict[str, str]:
    """What a search took, in words and digits, from the content of `result.json`."""
    return {
        "episodes": f"{episodes:,}",
        "evaluations": f"{document['evaluations']:,}",
        "forward passes": f"{document['image_forwards']:,}",
        "seconds": f"{document['measured']['seconds']:,.0f}",
        "seed": str(document["seed"]),
    }


def layer_costs(
    family: LayoutFamily,
    cost: Cost,
    widths: Mapping[str, int],
    patterns: Mapping[str, str] | None = None,
    gone: Collection[int] = (),
) -> tuple[float, ...]:
    """Cost of every layer with a weight, alone, at some widths and patterns (dense if not named); 0 of those gone."""
    chosen = patterns or {}
    layout = family.at(kept_counts(family, widths))
    layers = tuple(replace(layer, pattern=chosen.get(layer.name, "dense")) for layer in layout.layers)
    left = replace(layout, layers=layers).without(gone)
    if isinstance(cost, LatencyTable):  # a layer's time depends on what is fused into it
        costs = cost.layers(left).tolist()
    else:
        alone = (Layout(layers=(replace(layer, inputs=()),)) for layer in left.layers)
        costs = [cost_of(cost, one) for one in alone]
    known = dict(zip((row for row in range(len(layers)) if row not in gone), costs, strict=True))
    return tuple(float(known.get(row, 0.0)) for row, layer in enumerate(layers) if layer.has_weight)
