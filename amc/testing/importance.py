"""The contract of every importance (`envs.importance.importance.Importance`)."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import cache

import cloudpickle
import torch
from torch import Tensor

from amc.problem.given.door import taken
from amc.testing.specimens import Specimen, specimens
from amc.testing.suite import Suite, require
from envs.importance.importance import Evidence, Importance, channel_order
from envs.importance.taylor import gate_sensitivities
from envs.regression.statistics import Sampling, input_moments, totals
from envs.repair.normalization import output_scales
from envs.units.units import Unit


@cache
def _evidence(place: int) -> Evidence:
    """Everything that may be looked at of one network."""
    specimen = specimens()[place]
    units = specimen.anatomy.units
    readers = sorted({member.module for unit in units for member in unit.role("consumer")})
    return Evidence(
        network=specimen.network,
        moments=totals(input_moments(specimen.network, readers, [specimen.inputs(24)], Sampling(positions=32))),
        output_scales=output_scales(specimen.network, specimen.anatomy.graph.folds()),
        sensitivities=gate_sensitivities(specimen.network, units, [specimen.inputs(8)], at_once=8, seed=0),
    )


def _scores(given: Importance, *, all_of_it: bool = True) -> Iterator[tuple[Specimen, dict[str, Tensor]]]:
    """Scores by unit of each network; a unit without anything to score is left out.

    Args:
        given: The importance.
        all_of_it: Whether moments and sensitivities are there without being asked for.
    """
    own = taken(importance=given).importance
    assert own is not None
    for place, specimen in enumerate(specimens()):
        evidence = _evidence(place)
        shown = Evidence(
            network=evidence.network,
            moments=evidence.moments if all_of_it or own.reads_moments else {},
            output_scales=evidence.output_scales,
            sensitivities=evidence.sensitivities if all_of_it or own.reads_gradients else {},
        )
        yield (
            specimen,
            {u.name: own(u, shown) for u in specimen.anatomy.units if _scorable(given, u, place)},
        )


def _scorable(given: Importance, unit: Unit, place: int) -> bool:
    """Whether the unit has something that could be scored: `ValueError` says that it has not."""
    try:
        given(unit, _evidence(place))
    except ValueError:
        return False
    return True


def every_channel_gets_a_finite_score(importance: Importance) -> None:
    """[C] of every unit."""
    require(any(scores for _, scores in _scores(importance)), "no unit is scored")


def asking_again_gives_the_same(importance: Importance) -> None:
    """After pickling too."""
    twin = pickle.loads(cloudpickle.dumps(importance))
    for (_, first), (_, second) in zip(_scores(importance), _scores(twin), strict=True):
        require(all(torch.equal(first[name], second[name]) for name in first), "asked again, scores differ")


def it_reads_only_what_it_declares(importance: Importance) -> None:
    """`reads_moments`, `reads_gradients`: only then are they computed, and charged."""
    for (_, first), (_, second) in zip(_scores(importance), _scores(importance, all_of_it=False), strict=True):
        require(all(torch.equal(first[name], second[name]) for name in first), "it reads what it does not declare")


def every_granule_stays_together(importance: Importance) -> None:
    """The order holds every channel once."""
    for specimen, scores in _scores(importance):
        for unit in specimen.anatomy.units:
            if unit.name not in scores:
                continue
            order = channel_order(unit, scores[unit.name])
            require(sorted(order) == list(range(unit.channels)), f"the order of {unit.name!r} is {order}")


def scoring_changes_no_weight(importance: Importance) -> None:
    """Scores read, and change nothing."""
    before = [[tensor.clone() for tensor in one.network.state_dict().values()] for one in specimens()]
    for (specimen, _), tensors in zip(_scores(importance), before, strict=True):
        now = specimen.network.state_dict().values()
        require(all(torch.equal(a, b) for a, b in zip(now, tensors, strict=True)), "a weight has changed")


check_importance = Suite(
    "importance",
    every_channel_gets_a_finite_score,
    asking_again_gives_the_same,
    it_reads_only_what_it_declares,
    every_granule_stays_together,
    scoring_changes_no_weight,
)
"""Of an `Importance`, or a function of a unit and its `Evidence`."""
