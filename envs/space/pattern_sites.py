"""Sites of patterns: which layers may choose between which patterns, why others stay dense, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from envs.network.graph import Graph
from envs.space.patterns import refusal, unfit
from envs.space.sites import Site, pattern_site
from envs.units.units import Fixed, Unit
from hw_profiles.layers import LayerShape, Layout
from hw_profiles.patterns import parse_pattern
from hw_profiles.shape_rules import ShapeRules


def pattern_sites(
    network: nn.Module,
    graph: Graph,
    dense: Layout,
    patterns: Sequence[str],
    skip: Sequence[str] = (),
    shapes: ShapeRules | None = None,
) -> tuple[list[Site], list[Fixed]]:
    """One site per layer that can take some pattern, in execution order, and the others with the reason.

    Args:
        network: The dense network.
        graph: Its graph.
        dense: Its layout; a layer must take the pattern at its full width.
        patterns: What may be chosen beside dense.
        skip: Patterns (as in a shell) of layer names that stay dense.
        shapes: What a device takes.
    """
    ordered = sorted(dict.fromkeys(patterns), key=lambda text: (parse_pattern(text).density, text))
    sites, fixed = [], []
    for layer in (layer for layer in dense.layers if layer.has_weight):
        hit = next((text for text in skip if fnmatchcase(layer.name, text)), None)
        reasons = {text: _reason(network, graph, layer, text, shapes) for text in ordered}
        legal = [text for text, reason in reasons.items() if not reason]
        if hit is not None or not legal:
            reason = next(iter(reasons.values()), "no pattern is asked for")
            fixed.append(Fixed(f"{layer.name}.weight", reason if hit is None else f"skipped by the pattern {hit!r}"))
        else:
            sites.append(pattern_site(layer.name, [*legal, "dense"]))
    return sites, fixed


def _reason(network: nn.Module, graph: Graph, layer: LayerShape, text: str, shapes: ShapeRules | None) -> str:
    own = unfit(network, graph, layer.name) or refusal(layer, parse_pattern(text))
    return own or (shapes.refusal(layer, text) if shapes is not None else "")


def interleaved(widths: Sequence[Site], patterns: Sequence[Site], units: Sequence[Unit]) -> list[Site]:
    """A unit's site, then the sites of the layers it feeds (of several units the last one); others come first."""
    place = {site.unit: index for index, site in enumerate(widths)}
    feeds: dict[str, int] = {}
    for unit in (unit for unit in units if unit.name in place):
        for member in unit.role("consumer"):
            feeds[member.module] = max(feeds.get(member.module, -1), place[unit.name])
    ordered = [site for site in patterns if site.layer not in feeds]
    for index, site in enumerate(widths):
        ordered += [site, *(one for one in patterns if feeds.get(one.layer) == index)]
    return ordered
