"""The contract of every cost (`hw_profiles.cost.Cost`): a function of the layout alone, true of the real network."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace

import cloudpickle
import numpy as np

from amc.problem.given.fit import check_fit
from amc.problem.given.watched import WatchedCost
from amc.testing.specimens import Specimen, specimens
from amc.testing.suite import Suite, require
from envs.network.graph import trace
from envs.units.layout import read_layout
from envs.units.slicing import slice_network
from hw_profiles.cost import Cost, cost_of
from hw_profiles.layers import IntArray, Layout


def variants(specimen: Specimen) -> IntArray:
    """[K, S] widths: dense, lightest, and some between."""
    costing, draw = specimen.costing(), np.random.default_rng(0)
    drawn = [[draw.choice(site.values()) for site in costing.sites] for _ in range(3)]
    return np.asarray([costing.dense(), costing.lightest(), *drawn], dtype=np.int64)


def it_has_a_name_a_unit_and_many(cost: Cost) -> None:
    """As `hw_profiles.cost.Cost` says."""
    check_fit("cost", cost, Cost, ("many",), ("name", "unit"))
    for text in (cost.name, cost.unit):
        require(isinstance(text, str) and bool(text), f"name and unit must be texts, but one is {text!r}")
    require("(" not in cost.name, f"a name must be without parentheses, but is {cost.name!r}")


def it_gives_each_variant_one_finite_value(cost: Cost) -> None:
    """[K] numbers that are not negative."""
    for specimen in specimens():
        specimen.costing().many(WatchedCost(cost), variants(specimen))


def variants_together_cost_what_each_costs_alone(cost: Cost) -> None:
    """The constraint asks about all choices of a site at once."""
    for specimen, kept in _each():
        together = specimen.costing().many(cost, kept)
        alone = [specimen.costing().one(cost, one) for one in kept]
        require(np.allclose(together, alone, rtol=1e-12), f"variants cost {together} together, {alone} one by one")


def asking_again_gives_the_same(cost: Cost) -> None:
    """It depends on nothing but the layout, after pickling too."""
    for specimen, kept in _each():
        twin = pickle.loads(cloudpickle.dumps(cost))
        once, again, other = (specimen.costing().many(one, kept) for one in (cost, cost, twin))
        require(np.array_equal(once, again), "asked again, it gives other values")
        require(np.array_equal(once, other), "pickled, it gives other values")


def names_of_layers_change_nothing(cost: Cost) -> None:
    """Nothing may be read off what a layer is called."""
    for specimen in specimens():
        dense = specimen.anatomy.family.dense
        renamed = Layout(
            layers=tuple(replace(layer, name=f"layer{row}") for row, layer in enumerate(dense.layers)),
            extra_params=dense.extra_params,
            edges_known=dense.edges_known,
        )
        require(cost_of(cost, renamed) == cost_of(cost, dense), "with other names of layers, it gives other values")


def what_is_told_is_what_the_real_network_costs(cost: Cost) -> None:
    """Channels are really removed, and the network is traced anew."""
    for specimen, kept in _each():
        for one in kept:
            small = slice_network(specimen.network, specimen.anatomy.units, specimen.channels(one))
            real = cost_of(cost, read_layout(small, trace(small, specimen.example), specimen.example))
            told = specimen.costing().one(cost, one)
            require(bool(np.isclose(real, told, rtol=1e-9)), f"a sliced network costs {real}, but {told} was told")


def it_adds_up_if_it_says_so(cost: Cost) -> None:
    """`adds_up`: the cost of a network is the sum of its layers'."""
    if not getattr(cost, "adds_up", False):
        return
    for specimen in specimens():
        dense = specimen.anatomy.family.dense
        parts = [cost_of(cost, Layout(layers=(replace(layer, inputs=()),))) for layer in dense.layers]
        whole = cost_of(cost, dense)
        require(bool(np.isclose(sum(parts), whole)), f"layers cost {sum(parts)} together, but the network {whole}")


def _each() -> Iterator[tuple[Specimen, IntArray]]:
    return ((specimen, variants(specimen)) for specimen in specimens())


check_cost = Suite(
    "cost",
    it_has_a_name_a_unit_and_many,
    it_gives_each_variant_one_finite_value,
    variants_together_cost_what_each_costs_alone,
    asking_again_gives_the_same,
    names_of_layers_change_nothing,
    what_is_told_is_what_the_real_network_costs,
    it_adds_up_if_it_says_so,
)
"""Of a `Cost`."""
