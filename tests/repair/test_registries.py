"""Repairs, importances and selections by name: what each of them promises, and that the examples of the docs work."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import envs.importance
import envs.importance.importance
import envs.repair
import envs.repair.normalization
import envs.repair.repair
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.compression.sparsify import SELECTIONS
from envs.importance.scores import IMPORTANCES
from envs.regression.rows import weight_rows
from envs.repair.repair import Pruned
from envs.repair.repairs import REPAIRS, repair_named
from envs.space.policy import Policy
from envs.units.slicing import kept_axes, slice_axes
from envs.units.units import Unit

if TYPE_CHECKING:
    from tests.conftest import Specimen


def compressor_of(specimen: Specimen, **settings: Any) -> Compressor:
    anatomy, chunks = specimen.anatomy, torch.split(specimen.inputs(48), 16)
    options = CompressionSettings(**{"importance": "l1", "positions": 16, "quick_images": 32, **settings})
    return Compressor(specimen.network, anatomy.graph, anatomy.family, anatomy.units, chunks, options)


def halved(compressor: Compressor) -> Policy:
    return compressor.policy({unit.name: unit.granule * (len(unit.granules) // 2 or 1) for unit in compressor.units})


def same_states(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def example(room: ModuleType, base: str, *names: ModuleType) -> Any:
    """The class that stands as an example in a room's docstring, made there with the names of some modules."""
    lines = (room.__doc__ or "").splitlines()
    first = next(index for index, line in enumerate(lines) if f"({base})" in line)
    code = textwrap.dedent("\n".join(line for line in lines[first:] if not line or line.startswith("    ")))
    scope: dict[str, Any] = {"torch": torch, "Unit": Unit, "weight_rows": weight_rows}
    for module in names:
        scope |= vars(module)
    known = set(scope)
    exec(code, scope)
    return next(value for name, value in scope.items() if name not in known and inspect.isclass(value))


# Repairs


@pytest.mark.parametrize("name", list(REPAIRS))
def test_what_a_worker_holds_repairs_as_the_whole(name: str, zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_of(zoo("residual"), repair=name)
    policy = halved(compressor)
    whole, twin = (one.compress(policy, quick=True) for one in (compressor, compressor.quick_only()))
    assert same_states(whole.network, twin.network)
    assert whole.image_forwards == twin.image_forwards == compressor.quick_forwards


@pytest.mark.parametrize("name", list(REPAIRS))
def test_a_repair_alone_is_one_that_can_leave_out_images(name: str, zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_of(zoo("residual"), repair=name)
    policy = compressor.policy({compressor.units[0].name: 1})
    networks = [compressor.compress_alone(policy, fold) for fold in range(2)]
    assert same_states(*networks) == (not REPAIRS[name].fits)


@pytest.mark.parametrize("name", list(REPAIRS))
def test_a_repair_works_without_a_traced_graph(name: str, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("branching")
    assert not specimen.anatomy.graph.traced
    compressor = compressor_of(specimen, repair=name)
    expected = "none" if name == "none" else "layerwise"
    policy = halved(compressor)
    networks = [compressor.compress(policy, repair).network for repair in (None, expected)]
    assert same_states(*networks)


def test_an_unknown_repair_is_refused_with_the_known_ones(zoo: Callable[[str], Specimen]) -> None:
    with pytest.raises(ValueError, match="must be one of none, layerwise, sequential, but got 'wishful'"):
        compressor_of(zoo("residual")).compress(compressor_of(zoo("residual")).policy({}), "wishful")


def test_a_copy_for_sequential_repair_has_no_layerwise_fits(zoo: Callable[[str], Specimen]) -> None:
    twin = compressor_of(zoo("residual"), repair="sequential").quick_only()
    with pytest.raises(ValueError, match="made for quick repair"):
        repair_named("layerwise", twin.dense)(Pruned(network=twin.network, axes={}))


def test_the_repair_of_the_example_gives_layers_their_sum_back(zoo: Callable[[str], Specimen]) -> None:
    kind = example(envs.repair, "Repair", envs.repair.repair, envs.repair.normalization)
    compressor = compressor_of(zoo("chain"), repair="none")
    axes = kept_axes(compressor.network, compressor.units, halved(compressor).kept())
    small = slice_axes(compressor.network, axes)
    before = {name: weight_rows(small.get_submodule(name)) for name, one in axes.items() if one.inputs is not None}
    repair = kind(compressor.dense)
    repair(Pruned(network=small, axes=axes))
    assert before
    for name, rows in before.items():
        full = weight_rows(compressor.network.get_submodule(name)).shape[1]
        torch.testing.assert_close(weight_rows(small.get_submodule(name)), rows * full / rows.shape[1])
    assert repair.forwards(quick=True) == repair.preparation_forwards() == 0
    assert repair.quick_only().dense.network is compressor.network


# Importances and selections


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_an_importance_reads_only_what_it_declares(name: str, zoo: Callable[[str], Specimen]) -> None:
    importance, specimen = IMPORTANCES[name], zoo("residual")
    compressor = compressor_of(specimen, importance=name, repair="none")
    images = 48
    paid = images * (importance.reads_moments + 3 * importance.reads_gradients)
    assert compressor.preparation_forwards == paid
    assert compressor.orders.keys() == {unit.name for unit in specimen.anatomy.units}


def test_the_importance_of_the_example_orders_channels(zoo: Callable[[str], Specimen]) -> None:
    score = example(envs.importance, "Importance", envs.importance.importance)()
    specimen = zoo("residual")
    evidence = envs.importance.importance.Evidence(network=specimen.network, moments={})
    for unit in specimen.anatomy.units:
        scores = score(unit, evidence)
        assert scores.shape == (unit.channels,)
        assert sorted(envs.importance.importance.channel_order(unit, scores)) == list(range(unit.channels))
    assert not any((score.reads_moments, score.reads_gradients, score.mean_shift))


@pytest.mark.parametrize("name", list(SELECTIONS))
def test_moments_are_computed_for_selections_that_read_them(name: str, zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    settings = CompressionSettings(importance="l1", repair="none", selection=name, positions=16)
    anatomy, layer = specimen.anatomy, specimen.anatomy.units[0].name
    chunks = [specimen.inputs(16)]
    compressor = Compressor(
        specimen.network, anatomy.graph, anatomy.family, anatomy.units, chunks, settings, sparse=[layer]
    )
    assert compressor.preparation_forwards == 16 * SELECTIONS[name].reads_curvature
    assert compressor.dense.banks.get().fits(layer) == SELECTIONS[name].reads_curvature
