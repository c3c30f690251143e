"""Queries that make up for channels that went from queries and keys, before anything else is refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from envs.regression.factors import Factors
from envs.units.slicing import Axes
from envs.units.units import Unit


def with_mixes(axes: Mapping[str, Axes], units: Sequence[Unit], factors: Mapping[str, Factors]) -> dict[str, Axes]:
    """What stays of each module, with queries mixed so that their products with the keys that stay change least.

    Args:
        axes: What stays of each touched module.
        units: The network's units.
        factors: Moments of queries and keys, by unit name.
    """
    mixed = dict(axes)
    for unit in units:
        first = next((member.module for member in unit.role("factor")), "")
        touched = mixed.get(first, Axes())
        if unit.name in factors and touched.outputs is not None:
            mixed[first] = replace(touched, mix=factors[unit.name].mix(touched.outputs))
    return mixed
