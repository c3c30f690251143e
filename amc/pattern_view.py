"""Which layer has which pattern, and why the others stay dense: as data, and as the report's section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from amc.pictures import bullets
from envs.layout import kept_counts
from envs.patterns import refusal
from envs.sites import Site, decode
from envs.units import Fixed
from hw_profiles.cost import Macs, cost_of
from hw_profiles.layers import IntArray, LayerShape, Layout
from hw_profiles.patterns import parse_pattern
from hw_profiles.shape_rules import ShapeRules

if TYPE_CHECKING:
    from amc.problem import Problem

CHOSEN = "it could take a pattern, and was left dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPattern:
    """One layer with a weight, as a policy leaves it.

    Attributes:
        layer: Its name.
        inputs: Input channels per group that it reads.
        outputs: Output channels.
        share: Its share of the dense network's MACs.
        pattern: Its pattern.
        reason: Why it is dense, "" if it is not.
    """

    layer: str
    inputs: int
    outputs: int
    share: float
    pattern: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """What `result.json` says of it."""
        return {"pattern": self.pattern, **({"reason": self.reason} if self.reason else {})}


def layer_patterns(problem: Problem, kept: Sequence[int] | IntArray) -> tuple[LayerPattern, ...]:
    """Every layer with a weight at [S] kept channels and ranks; none where no pattern is decided."""
    sites = {site.layer: site for site in problem.sites if site.layer}
    if not sites:
        return ()
    family, decided = problem.anatomy.family, decode(problem.sites, kept)
    fixed = weight_reasons(problem.fixed)
    layers = family.at(kept_counts(family, decided.kept)).layers
    shares = mac_shares(family.dense)
    found = []
    for layer in (layer for layer in layers if layer.has_weight):
        pattern, site = decided.patterns.get(layer.name, "dense"), sites.get(layer.name)
        why = fixed.get(layer.name, "") if site is None else _why_dense(layer, site, problem.shapes)
        found.append(LayerPattern(
            layer=layer.name, inputs=layer.in_channels // layer.groups, outputs=layer.out_channels,
            share=shares[layer.name], pattern=pattern, reason=why if pattern == "dense" else "",
        ))  # fmt: skip
    return tuple(found)


def weight_reasons(fixed: Iterable[Fixed]) -> dict[str, str]:
    """Layer -> why its weight can take no pattern."""
    weights = (entry for entry in fixed if entry.name.endswith(".weight"))
    return {entry.name.removesuffix(".weight"): entry.reason for entry in weights}


def mac_shares(dense: Layout) -> dict[str, float]:
    """Each layer's share of a network's MACs."""
    total = cost_of(Macs(), dense)
    weighted = (layer for layer in dense.layers if layer.has_weight)
    return {layer.name: cost_of(Macs(), Layout(layers=(layer,))) / total for layer in weighted}


def _why_dense(layer: LayerShape, site: Site, shapes: ShapeRules | None) -> str:
    """Why a layer that had a choice is dense: its width forbids every pattern, or it was chosen."""
    texts = [text for text in site.patterns() if text != "dense"]
    reasons = [refusal(layer, parse_pattern(text)) or (shapes.refusal(layer, text) if shapes else "") for text in texts]
    return reasons[0] if all(reasons) else CHOSEN


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
