"""Repairs, importances and selections by name: what each of them promises, and that the examples of the docs work."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
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
from amc.config.keys import keys_of
from amc.config.search import SearchConfig, load_config
from envs.compression.compress import Compressor
from envs.compression.damage import damage_named
from envs.compression.names import DAMAGES, SELECTIONS
from envs.compression.settings import CompressionSettings
from envs.compression.sparsify import selection_named
from envs.importance.scores import IMPORTANCES, importance_named
from envs.regression.rows import weight_rows
from envs.repair.repair import Pruned
from envs.repair.repairs import REPAIRS, repair_class, repair_named
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


def code_of(room: ModuleType, base: str) -> str:
    """The example in a room's docstring."""
    lines = (room.__doc__ or "").splitlines()
    first = next(index for index, line in enumerate(lines) if f"({base})" in line)
    return textwrap.dedent("\n".join(line for line in lines[first:] if not line or line.startswith("    ")))


def example(room: ModuleType, base: str, *names: ModuleType) -> Any:
    """The class that stands as an example in a room's docstring, made there with the names of some modules."""
    code = code_of(room, base)
    scope: dict[str, Any] = {"torch": torch, "Unit": Unit, "weight_rows": weight_rows}
    for module in names:
        scope |= vars(module)
    known = set(scope)
    exec(code, scope)
    return next(value for name, value in scope.items() if name not in known and inspect.isclass(value))


def file_of(code: str, imports: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file of a new thing, where Python finds it."""
    (place / f"{name}.py").write_text(f"{imports}\n\n{code}")
    monkeypatch.syspath_prepend(str(place))


# Repairs


@pytest.mark.parametrize("name", list(REPAIRS))
def test_a_repair_alone_is_one_that_can_leave_out_images(name: str, zoo: Callable[[str], Specimen]) -> None:
    compressor = compressor_of(zoo("residual"), repair=name)
    policy = compressor.policy({compressor.units[0].name: 1})
    networks = [compressor.compress_alone(policy, fold) for fold in range(2)]
    assert same_states(*networks) == (not repair_class(name).fits)


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
    importance, specimen = importance_named(name), zoo("residual")
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
    assert compressor.preparation_forwards == 16 * selection_named(name).reads_curvature
    assert compressor.dense.banks.get().fits(layer) == selection_named(name).reads_curvature


# One file and one line


def test_a_new_importance_is_one_file_and_one_line(
    zoo: Callable[[str], Specimen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = "import torch\nfrom torch import Tensor\nfrom envs.importance.importance import *"
    imports += "\nfrom envs.units.units import Unit"
    file_of(code_of(envs.importance, "Importance"), imports, "bias_importance", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="must be one of obs, l1"):
        CompressionSettings(importance="bias")
    monkeypatch.setitem(IMPORTANCES, "bias", "bias_importance:BiasScore")
    assert load_config(None, {"task": "digits", "compression.importance": "bias"}).compression.importance == "bias"
    assert "bias" in {key.name: key.type for key in keys_of(SearchConfig)}["compression.importance"]
    compressor = compressor_of(zoo("residual"), importance="bias", repair="none")
    assert compressor.orders.keys() == {unit.name for unit in compressor.units}


def test_a_new_repair_is_one_file_and_one_line(
    zoo: Callable[[str], Specimen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = (
        "from envs.regression.rows import *\nfrom envs.repair.normalization import *\nfrom envs.repair.repair import *"
    )
    file_of(code_of(envs.repair, "Repair"), imports, "scaled_repair", tmp_path, monkeypatch)
    monkeypatch.setitem(REPAIRS, "scaled", "scaled_repair:ScaledRepair")
    config = load_config(None, {"task": "digits", "compression.repair": "scaled"})
    compressor = compressor_of(zoo("chain"), repair=config.compression.repair)
    networks = [compressor.compress(halved(compressor), name).network for name in ("scaled", "none")]
    assert not same_states(*networks)


def test_a_new_damage_and_a_new_selection_are_one_file_and_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    def largest(new, old, targets):
        return (new - old).abs().flatten(1).amax(dim=1)

    class Nothing(Magnitude):
        reads_curvature = False
    """
    file_of(textwrap.dedent(code), "from envs.compression.sparsify import *", "new_names", tmp_path, monkeypatch)
    monkeypatch.setitem(DAMAGES, "largest", "new_names:largest")
    monkeypatch.setitem(SELECTIONS, "nothing", "new_names:Nothing")
    values = {"task": "digits", "knapsack.damages": ["largest"], "compression.selection": "nothing"}
    config = load_config(None, values)
    damage = damage_named(config.knapsack.damages[0])
    assert damage(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2)).tolist() == [1, 1]
    assert not selection_named(config.compression.selection).reads_curvature


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damage_is_nothing_where_outputs_are_equal(name: str) -> None:
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert damage_named(name)(outputs, outputs, torch.tensor([0, 1, 2, 0])).tolist() == [0, 0, 0, 0]
