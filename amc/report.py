"""The report of a run for people: one self-contained HTML file. Its pictures are drawn in `pictures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from amc.files import write_text
from amc.latency_section import latency_section
from amc.layer_times import LayerTime
from amc.pattern_view import LayerPattern, pattern_section
from amc.pictures import bullets, choices, progress
from amc.report_style import CSS
from amc.result import NETWORKS, NetworkReport, SearchResult
from amc.timing import Timing, rounds_in_words
from envs.layout import LayoutFamily, kept_counts
from envs.sites import decode
from hw_profiles.cost import COSTS, Cost, Macs, Memory, cost_of
from hw_profiles.layers import Layout
from hw_profiles.table import LatencyTable

if TYPE_CHECKING:
    from amc.problem import Problem
    from amc.rollout import Episode

MEANING = {
    "dense": "the network as it came",
    "uniform": "one preserve ratio for all units, the largest that keeps the budget",
    "start": "the best solution that the search started from",
    "found": "the policy of this run",
}


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


def write_report(
    path: Path, problem: Problem, result: SearchResult, latency: Mapping[str, Timing], episodes: Sequence[Episode],
    layers: Mapping[str, Sequence[LayerTime]] | None = None,
) -> None:  # fmt: skip
    """Writes the report of a finished search, atomically.

    Args:
        path: The HTML file.
        problem: What was searched on.
        result: What was found.
        latency: Network name -> its time; networks without an entry show none.
        episodes: All episodes in order.
        layers: Network name -> predicted and measured time of each layer, where a profile tells it.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text(path, render(replace(gather(problem, result, latency, episodes), layer_times=layers or {})))


def gather(
    problem: Problem, result: SearchResult, latency: Mapping[str, Timing], episodes: Sequence[Episode]
) -> ReportData:
    """Collects what `render` shows."""
    family, first = problem.anatomy.family, problem.constraint.budgets[0].cost
    cost = Macs() if isinstance(first, Memory) else first  # peak memory does not add up over layers
    units = tuple(site.unit for site in problem.sites if not site.layer)

    def facts(name: str, report: NetworkReport) -> NetworkFacts:
        kept, patterns = decode(problem.sites, report.widths)
        return NetworkFacts(
            accuracy=report.accuracy, costs=report.costs, widths=tuple(kept[unit] for unit in units),
            layer_costs=layer_costs(family, cost, kept, patterns), latency=latency.get(name), patterns=patterns,
        )  # fmt: skip

    return ReportData(
        task=result.task, agent=problem.config.agent, budgets=result.budgets,
        networks={name: facts(name, report) for name, report in result.reports.items()},
        sites=tuple(site.unit for site in problem.sites), units=units, layer_patterns=result.patterns,
        remarks=result.remarks,
        layers=tuple(layer.name for layer in family.dense.layers if layer.has_weight), layer_cost=cost.name,
        images={"validation": len(problem.task.validation), "test": len(problem.task.test)},
        rewards=tuple(episode.reward for episode in episodes),
        searchers=tuple(episode.searcher for episode in episodes),
        ratios=tuple(episode.actions for episode in episodes),
        effort={
            "episodes": f"{len(episodes):,}", "evaluations": f"{result.evaluations:,}",
            "image-forwards": f"{result.image_forwards:,}", "seconds": f"{result.seconds:,.0f}",
            "seed": str(result.seed),
        },
        configuration=problem.config.to_toml(),
    )  # fmt: skip


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


def render(data: ReportData) -> str:
    """The whole page."""
    title = f"{data.task}, pruned"
    sections = [_header(data), _cards(data), _table(data)]
    sections += [_widths(data)] if data.units else []
    if data.layer_patterns:
        patterns = {name: data.networks[name].patterns for name in data.shown}
        sections.append(pattern_section(data.layer_patterns, patterns))
    sections.append(_layer_shares(data))
    if data.layer_times:
        sections.append(latency_section(data.networks, data.layer_times))
    if len(data.rewards) > 1:
        sections.append(_rewards(data))
    sections += [_effort(data), f"<h2>Configuration</h2>\n<pre>{escape(data.configuration)}</pre>"]
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def amount(name: str, value: float) -> str:
    """A cost in digits that a person reads: 125.5 M, 853.2 k, 1.21 MB."""
    if name == "latency_ms":
        return f"{value:.3f} ms"
    unit = "B" if name == "memory" else ""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e4):
            return f"{value / size:.4g} {letter}{unit}"
    return f"{value:,.4g} {unit}".strip() if value < 1000 else f"{value:,.0f} {unit}".strip()


def cost_label(name: str) -> str:
    """How a cost is called in a sentence."""
    words = {"memory": "peak memory", "latency_ms": "predicted latency"}
    if name in words:
        return words[name]
    return COSTS[name].unit if name in COSTS else name


def difference(value: float, other: float) -> str:
    """How far an accuracy lies above or below another one, in points."""
    points = round(100 * (value - other), 1)
    if not points:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _header(data: ReportData) -> str:
    dense, found = data.networks["dense"], data.networks["found"]
    first = next(iter(data.budgets))
    share = found.costs[first] / dense.costs[first]
    test = {name: data.networks[name].accuracy["test"] for name in data.shown}
    budgets = ", ".join(
        f"{escape(cost_label(name))} at most {amount(name, limit)} ({limit / dense.costs[name]:.1%} of dense)"
        for name, limit in data.budgets.items()
    )
    return (
        f'<p class="eyebrow">Pruning report · {escape(data.agent)}</p>\n'
        f"<h1>{escape(data.task)} keeps {test['found']:.1%} test accuracy "
        f"at {share:.1%} of its {escape(cost_label(first))}</h1>\n"
        f'<p class="lead">That is <strong>{difference(test["found"], test["uniform"])}</strong> uniform pruning '
        f"({test['uniform']:.1%}) and <strong>{difference(test['found'], test['dense'])}</strong> the dense network "
        f"({test['dense']:.1%}), without any fine-tuning.</p>\n"
        f'<p class="note">Budget: {budgets}. Counted on the real, pruned network.</p>'
    )


def _cards(data: ReportData) -> str:
    dense, found = data.networks["dense"], data.networks["found"]
    cards = [
        (f"{found.costs[name] / value:.1%}", f"of the {cost_label(name)}",
         f"{amount(name, found.costs[name])} of {amount(name, value)}")
        for name, value in dense.costs.items()
    ]  # fmt: skip
    if dense.latency and found.latency:
        ratio = dense.latency.median_ms / found.latency.median_ms
        times = f"{found.latency} ms, dense {dense.latency} ms"
        cards.append((f"{ratio:.2f} times", "as fast in onnxruntime", times))
    blocks = (
        f'<div class="card"><b>{value}</b><span>{escape(label)}</span><small>{escape(detail)}</small></div>'
        for value, label, detail in cards
    )
    return f'<div class="cards">{"".join(blocks)}</div>'


def _table(data: ReportData) -> str:
    costs = data.networks["dense"].costs
    heads = ["network", "validation", "test", *(cost_label(name) for name in costs), "measured"]
    rows = []
    for name in data.shown:
        facts = data.networks[name]
        cells = [f"{facts.accuracy[split]:.2%}" for split in ("validation", "test")]
        for cost, value in facts.costs.items():
            cells.append(f'<span title="{value:,.0f}">{amount(cost, value)}</span> <i>{value / costs[cost]:.1%}</i>')
        cells.append("-" if facts.latency is None else f"{facts.latency} ms")
        who = f'<th scope="row"><span class="dot {name}"></span>{name}<small>{MEANING[name]}</small></th>'
        rows.append(f'<tr class="{name}">{who}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    spread = {split: _standard_error(data.networks["found"].accuracy[split], n) for split, n in data.images.items()}
    errors = ", ".join(f"{split} {spread[split]:.2f} ({n:,} images)" for split, n in data.images.items())
    rounds = [facts.latency.rounds for facts in data.networks.values() if facts.latency]
    timed = f"; {rounds_in_words(rounds)}" if rounds else ""
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>\n'
        f'<p class="note">Accuracy in per cent, nothing fine-tuned; test images were looked at once, after the policy '
        f"was fixed. Standard error of one accuracy in points: {errors}. Latency: all networks timed side by side "
        f"where the search ran{timed}.</p>"
        + "".join(f'\n<p class="remark">{escape(sentence)}</p>' for sentence in data.remarks)
    )


def _standard_error(accuracy: float, images: int) -> float:
    """In points; an upper bound where scores between 0 and 1 are averaged."""
    return 100 * sqrt(max(accuracy * (1 - accuracy), 0.0) / max(images, 1))


def _widths(data: ReportData) -> str:
    dense = data.networks["dense"].widths
    channels = {name: data.networks[name].widths for name in data.shown}
    kept = {name: [100 * a / b for a, b in zip(widths, dense, strict=True)] for name, widths in channels.items()}
    picture = bullets({"channels": channels, "kept, %": kept}, data.units, salt="widths")
    rows = "".join(
        f"<tr><th>{escape(unit)}</th>{''.join(f'<td>{channels[name][k]:,}</td>' for name in data.shown)}"
        f"<td>{kept['found'][k]:.0f} %</td></tr>"
        for k, unit in enumerate(data.units)
    )
    head = "".join(f"<th>{text}</th>" for text in ("unit", *data.shown, "kept"))
    return (
        "<h2>Channels that stay</h2>\n<p>From input to output: a unit is channels that are kept or dropped together, "
        f"named after the first layer that writes them.</p>\n<figure>{picture}</figure>\n"
        f"<details><summary>All {len(data.units)} units in numbers</summary>"
        f'<table class="small"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>'
    )


def _layer_shares(data: ReportData) -> str:
    total = sum(data.networks["dense"].layer_costs) or 1.0
    shares = {name: [100 * value / total for value in data.networks[name].layer_costs] for name in data.shown}
    label = cost_label(data.layer_cost)
    picture = bullets({f"{label}, % of dense": shares}, data.layers, salt="layers")
    return (
        f"<h2>Where the {escape(label)} are</h2>\n<p>Each layer's share of the dense network's total; the pale bars "
        f"add up to 100 %, found's to {sum(shares['found']):.1f} %.</p>\n<figure>{picture}</figure>"
    )


def _rewards(data: ReportData) -> str:
    picture = progress(data.rewards, data.searchers, salt="rewards")
    best = max(range(len(data.rewards)), key=data.rewards.__getitem__)
    ranks = " and rank of every pattern, the sparsest at 0" if data.layer_patterns else ""
    return (
        f"<h2>The search</h2>\n<p>Reward of each of {len(data.rewards):,} episodes; the best, "
        f"{data.rewards[best]:.4f}, was number {best + 1}, by {escape(data.searchers[best])}.</p>\n"
        f"<figure>{picture}</figure>\n<h2>How the choices moved</h2>\n<p>Preserve ratio of every unit{ranks}, "
        "input at the bottom, in every episode.</p>\n"
        f"<figure>{choices(data.ratios, data.sites, salt='choices')}</figure>"
    )


def _effort(data: ReportData) -> str:
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in data.effort.items())
    return f"<h2>What it took</h2>\n<dl>{pairs}</dl>"
