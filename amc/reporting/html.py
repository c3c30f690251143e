"""The report of a run for people: one self-contained HTML file. Its pictures are drawn in `pictures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from amc.profiling.layer_times import LayerTime
from amc.profiling.timing import Timing, rounds_in_words
from amc.reporting.latency import latency_section
from amc.reporting.patterns import pattern_section
from amc.reporting.pictures import bullets, choices, progress
from amc.reporting.style import CSS
from amc.search.result import SearchResult
from amc.storage.files import write_text
from hw_profiles.cost import display_of

if TYPE_CHECKING:
    from amc.problem.prepare import Prepared
    from amc.search.episode import Episode
from amc.reporting.facts import ReportData, gather

MEANING = {
    "dense": "the network as it came",
    "uniform": "one preserve ratio for all units, the largest that keeps the budget",
    "start": "the best solution that the search started from",
    "found": "the policy of this run",
}


def write_report(
    path: Path,
    prepared: Prepared,
    result: SearchResult,
    latency: Mapping[str, Timing],
    episodes: Sequence[Episode],
    layers: Mapping[str, Sequence[LayerTime]] | None = None,
) -> None:
    """Writes the report of a finished search, atomically.

    Args:
        path: The HTML file.
        prepared: What was searched on.
        result: What was found.
        latency: Network name -> its time; networks without an entry show none.
        episodes: All episodes in order.
        layers: Network name -> predicted and measured time of each layer, where a profile tells it.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text(path, render(replace(gather(prepared, result, latency, episodes), layer_times=layers or {})))


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
    return display_of(name).text(value)


def cost_label(name: str) -> str:
    """What a cost is called in a sentence."""
    return display_of(name).label


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
        (
            f"{found.costs[name] / value:.1%}",
            f"of the {cost_label(name)}",
            f"{amount(name, found.costs[name])} of {amount(name, value)}",
        )
        for name, value in dense.costs.items()
    ]
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
