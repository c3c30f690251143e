"""Which layer has which pattern, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from amc.problem.setup import Setup
from envs.space.assignment import Assignment
from envs.space.branch_sites import BranchSite
from envs.space.pattern_sites import PatternSite
from envs.space.patterns import refusal
from envs.units.layout import kept_counts
from envs.units.units import Fixed
from hw_profiles.cost import Macs, cost_of
from hw_profiles.layers import LayerShape, Layout
from hw_profiles.patterns import parse_pattern
from hw_profiles.shape_rules import ShapeRules

CHOSEN = "it could take a pattern, and was left dense"
GONE = "the branch that it was in is removed"


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


def layer_patterns(setup: Setup, assignment: Assignment) -> tuple[LayerPattern, ...]:
    """Every layer with a weight under an assignment; none where no pattern is decided."""
    sites = {site.layer: site for site in setup.sites if isinstance(site, PatternSite)}
    if not sites:
        return ()
    family, decided = setup.anatomy.family, assignment.decisions
    fixed = weight_reasons(setup.fixed)
    removed = (site for site in setup.sites if isinstance(site, BranchSite) and site.name in decided.removed)
    gone = {name for site in removed for name in site.weighted}
    layers = family.at(kept_counts(family, decided.kept)).layers
    shares = mac_shares(family.dense)
    found = []
    for layer in (layer for layer in layers if layer.has_weight):
        pattern = decided.patterns.get(layer.name, "dense")
        site = sites.get(layer.name)
        why = fixed.get(layer.name, "") if site is None else _why_dense(layer, site, setup.shapes)
        why = GONE if layer.name in gone else why
        found.append(
            LayerPattern(
                layer=layer.name,
                inputs=layer.in_channels // layer.groups,
                outputs=layer.out_channels,
                share=shares[layer.name],
                pattern=pattern,
                reason=why if pattern == "dense" else "",
            )
        )
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


def _why_dense(layer: LayerShape, site: PatternSite, shapes: ShapeRules | None) -> str:
    """Why a layer that had a choice is dense: its width forbids every pattern, or it was chosen."""
    texts = [text for text in site.patterns() if text != "dense"]
    reasons = [refusal(layer, parse_pattern(text)) or (shapes.refusal(layer, text) if shapes else "") for text in texts]
    return reasons[0] if all(reasons) else CHOSEN
