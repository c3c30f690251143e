"""What is decided and what bounds it: sites and constraint, from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from torch import nn

from amc.config.budgets import COVERAGE
from amc.config.search import SearchConfig
from amc.problem.given.objects import NO_OBJECTS, Objects
from envs.lookup import passed_in
from envs.network.graph import Graph, trace
from envs.network.inputs import Inputs
from envs.network.recount import CountMismatch, confirm_macs, independent_macs
from envs.space.branch_sites import KEPT, REMOVED, BranchSite, with_branches
from envs.space.constraint import Budget, Constraint, Costing, resolve_budget
from envs.space.finders import Wanted
from envs.space.kinds import finder_named
from envs.space.patterns import verify_network
from envs.space.rules import Rules
from envs.space.sites import Site
from envs.units.anatomy import Anatomy
from envs.units.layout import read_layout
from envs.units.units import Fixed
from hw_profiles.cost import COSTS, LATENCY, Cost, Macs, cost_of
from hw_profiles.latency.surface import MissingProfileEntry
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import IntArray
from hw_profiles.shape_rules import ShapeRules, Uncovered

Ends: TypeAlias = tuple[Constraint, Constraint]
"""The lowest and the highest budgets of a range."""


def choose_sites(
    config: SearchConfig, network: nn.Module, anatomy: Anatomy, shapes: ShapeRules | None
) -> tuple[tuple[Site, ...], tuple[Fixed, ...]]:
    """The decisions that `--choose` names, and what stays with the reason.

    Raises:
        ValueError: If the rules leave nothing to decide.
    """
    wanted = Wanted(
        network=network,
        anatomy=anatomy,
        rules=Rules.of(config.rules, profiled=config.profile is not None),
        patterns=config.patterns,
        densities=config.densities,
        shapes=shapes,
    )
    sites, fixed = finder_named(config.choose)(wanted)
    if config.branches:
        skip, dense = config.rules.skip, anatomy.family.dense
        sites, whole = with_branches(sites, anatomy.branches, anatomy.units, dense, skip)
        fixed = [*fixed, *whole]
    return tuple(sites), tuple(fixed)


def measured_only(
    sites: Sequence[Site], anatomy: Anatomy, table: LatencyTable
) -> tuple[tuple[Site, ...], tuple[Fixed, ...]]:
    """The sites without branches whose removal leaves kernels that a profile lacks, and those with the reason."""
    branches = [step for step, site in enumerate(sites) if isinstance(site, BranchSite)]
    if not branches:
        return tuple(sites), ()
    costing = Costing(anatomy.family, tuple(sites))
    whole = np.stack([costing.dense(), costing.heaviest(), costing.lightest()])
    whole[:, branches] = KEPT
    fixed = dict[str, Fixed]()
    for step in branches:
        without = whole.copy()
        without[:, step] = REMOVED
        try:
            costing.many(table, without)
        except MissingProfileEntry as error:
            fixed[sites[step].name] = Fixed(sites[step].name, str(error))
    return tuple(site for site in sites if site.name not in fixed), tuple(fixed.values())


def bind(
    config: SearchConfig, costing: Costing, table: LatencyTable | None, objects: Objects = NO_OBJECTS
) -> Constraint:
    """The configured budgets over some sites.

    Raises:
        InfeasibleBudget: If they cannot be kept.
    """
    skips = skipped_patterns(costing.shapes, table)
    budgets = []
    for name, value in config.constraint.items():
        if name == COVERAGE:
            budgets.append(Budget(Uncovered(), 1 - value))
            continue
        cost = _cost(name, table, objects)
        if isinstance(cost, Macs):
            cost = Macs(skips=skips)
            if config.choose in ("patterns", "unstructured") and not skips:
                raise ValueError(
                    f"only patterns can lower macs under --choose {config.choose}, but nothing says that the hardware "
                    "skips their zeros: add --constraint sparsity=2:4@RULES, a profile with `skips`, or bound params"
                )
        dense = cost_of(cost, costing.family.dense)
        budgets.append(Budget(cost, value if name == "latency_ms" else resolve_budget(cost, value, dense)))
    return Constraint.create(costing, budgets)


def bind_ends(
    config: SearchConfig, costing: Costing, table: LatencyTable | None, objects: Objects = NO_OBJECTS
) -> Ends | None:
    """The lowest and the highest budgets of the configured range, None without one.

    Raises:
        InfeasibleBudget: If the lowest cannot be kept.
    """
    if config.budget_range is None:
        return None
    lows = config.constraint | {name: low for name, (low, _) in config.budget_range.items()}
    highs = config.constraint | {name: high for name, (_, high) in config.budget_range.items()}
    low, high = (config.model_copy(update={"constraint": budgets}) for budgets in (lows, highs))
    return bind(low, costing, table, objects), bind(high, costing, table, objects)


def _cost(name: str, table: LatencyTable | None, objects: Objects) -> Cost:
    """The cost of a budget."""
    if table is not None and name in LATENCY:
        return table
    return objects.cost(name) if passed_in(name) else COSTS[name]


def skipped_patterns(shapes: ShapeRules | None, table: LatencyTable | None) -> tuple[str, ...]:
    """Patterns whose zeros the hardware does not multiply: the profile says it, or without one the shape rules."""
    if table is not None:
        return tuple(table.profile.skips)
    return shapes.skips if shapes is not None else ()


def recount(
    network: nn.Module,
    example_input: Inputs,
    costs: Sequence[Cost],
    patterns: Mapping[str, str],
    like: Graph | None = None,
) -> dict[str, float]:
    """Costs by name of a real network, traced anew; its multiply-accumulates are counted in two independent ways.

    Args:
        network: The network.
        example_input: Input of batch 1.
        costs: What is counted.
        patterns: Layer name -> pattern.
        like: The graph of the network that it was sliced from: see `trace`.

    Raises:
        PatternMismatch: If a weight does not keep to the pattern by which it would be counted.
        CountMismatch: If its layout counts other multiply-accumulates than its own forward runs.
    """
    verify_network(network, patterns)
    graph = trace(network, example_input, like=like)
    layout = read_layout(network, graph, example_input)
    confirm_macs(layout, graph, independent_macs(network, example_input), "the pruned network")
    layout = replace(layout, layers=tuple(replace(a, pattern=patterns.get(a.name, "dense")) for a in layout.layers))
    return {name: cost_of(cost, layout) for name, cost in {cost.name: cost for cost in costs}.items()}


def confirm_costs(
    costs: Mapping[str, float], constraint: Constraint, widths: Sequence[int] | IntArray, *, bounded: bool
) -> None:
    """Checks the costs of a real network against what the search was told and against the budgets.

    Args:
        costs: Cost name -> value, recounted on the real network.
        constraint: The budgets.
        widths: [S] kept channels and ranks of the network.
        bounded: Whether the budgets hold for it (not for the dense network).

    Raises:
        CountMismatch: If multiply-accumulates differ from those foretold, or a budget is exceeded.
    """
    foretold = constraint.costs(np.asarray(widths))
    for name, limit in constraint.limits().items():
        if name == "macs" and costs[name] != foretold[name]:
            raise CountMismatch(
                f"the network must cost what the search was told, but a recount gives {name}={costs[name]:,.0f} "
                f"instead of {foretold[name]:,.0f}: please report this network"
            )
        if bounded and costs[name] > limit * (1 + 1e-12):
            raise CountMismatch(
                f"every budget must be kept, but a recount gives {name}={costs[name]:,.6g} for {limit:,.6g}: "
                "please report this network"
            )
