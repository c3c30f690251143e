"""Which layer has which pattern, and why the others stay dense: as data, and as the report's section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from amc.reporting.pictures import bullets
from hw_profiles.patterns import parse_pattern

if TYPE_CHECKING:
    pass
from amc.problem.layer_patterns import LayerPattern


def pattern_section(layers: Sequence[LayerPattern], patterns: Mapping[str, Mapping[str, str]]) -> str:
    """HTML of the section.

    Args:
        layers: Every layer with a weight, as the policy found leaves it.
        patterns: Network name ("dense", "uniform", "found", perhaps "start") -> layer -> pattern.
    """
    names = [layer.layer for layer in layers]
    stays = {
        network: [100 * parse_pattern(own.get(name, "dense")).density for name in names]
        for network, own in patterns.items()
    }
    picture = bullets({"weights that may stay, %": stays}, names, salt="patterns")
    counts = Counter(layer.pattern for layer in layers)
    said = ", ".join(f"{count} {escape(text)}" for text, count in sorted(counts.items()))
    covered = sum(layer.share for layer in layers if layer.pattern != "dense")
    return (
        f"<h2>Patterns of the weights</h2>\n<p>Layers of the network found: {said}. Those with a pattern have "
        f"{covered:.1%} of the dense network's MACs. 100 % is a dense layer.</p>\n<figure>{picture}</figure>\n"
        f"<details><summary>All {len(layers)} layers, and why they are dense</summary>"
        f'<div class="wide">{_table(layers, patterns)}</div></details>'
    )


def _table(layers: Sequence[LayerPattern], patterns: Mapping[str, Mapping[str, str]]) -> str:
    others = [network for network in patterns if network not in ("dense", "found")]
    rows = []
    for one in layers:
        cells = [str(one.inputs), str(one.outputs), f"{one.share:.1%}"]
        cells += [patterns[network].get(one.layer, "dense") for network in others] + [one.pattern, one.reason]
        rows.append(f"<tr><th>{escape(one.layer)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    heads = ("layer", "inputs per group", "outputs", "MACs", *others, "found", "why dense")
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f'<table class="small"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
