"""The policy: an exact round trip, refusals, and a small network that stands on its own."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.storage.files import read_json, write_json
from envs.space.policy import (
    LayerPolicy,
    Policy,
    PolicyMismatch,
    UnitPolicy,
    structure_fingerprint,
    weights_fingerprint,
)
from envs.space.policy_file import digest_of
from envs.units.anatomy import dissect
from envs.units.slicing import slice_network

if TYPE_CHECKING:
    from tests.conftest import Specimen

Zoo = Callable[[str], "Specimen"]


def policy_of(specimen: Specimen, kept: dict[str, tuple[int, ...]] | None = None) -> Policy:
    """A policy that keeps the given channels, the first granule where none are given."""
    entries = tuple(
        UnitPolicy(unit=unit, indices=(kept or {}).get(unit.name, tuple(sorted(unit.granules[0]))))
        for unit in specimen.anatomy.units
    )
    return Policy(
        structure=structure_fingerprint(specimen.network),
        weights=weights_fingerprint(specimen.network),
        units=entries,
        layers=(LayerPolicy(name="0.0"), LayerPolicy(name="1.conv")),
        provenance={"task": "test", "seed": 3, "constraint": {"macs": 0.5}},
    )


def draw_kept(data: st.DataObject, specimen: Specimen) -> dict[str, tuple[int, ...]]:
    kept = {}
    for unit in specimen.anatomy.units:
        granules = data.draw(st.sets(st.sampled_from(unit.granules), min_size=1))
        kept[unit.name] = tuple(sorted(channel for granule in granules for channel in granule))
    return kept


def run(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = network(inputs)
    return outputs


# Round trips


@settings(max_examples=10)
@given(data=st.data())
def test_a_policy_comes_back_from_json_exactly(data: st.DataObject, specimen: Specimen) -> None:
    policy = policy_of(specimen, draw_kept(data, specimen))
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@settings(max_examples=5)
@given(data=st.data())
def test_a_policy_pickles(data: st.DataObject, specimen: Specimen) -> None:
    policy = policy_of(specimen, draw_kept(data, specimen))
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_the_json_names_what_a_reader_looks_for(zoo: Zoo) -> None:
    data = policy_of(zoo("residual"), {"2.first.0": (0, 2, 5)}).to_json()
    assert data["schema_version"] == 1
    assert data["network"]["structure"].startswith("sha256:")
    entry = next(entry for entry in data["units"] if entry["name"] == "2.first.0")
    assert {k: entry[k] for k in ("channels", "kept", "indices")} == {"channels": 8, "kept": 3, "indices": [0, 2, 5]}
    assert data["layers"][0] == {"name": "0.0", "pattern": "dense"}


# What is refused


def test_a_policy_of_another_structure_is_refused(zoo: Zoo, fresh: Callable[[str], nn.Module]) -> None:
    with pytest.raises(PolicyMismatch, match=r"only fits the network it was made for .*build the same architecture"):
        policy_of(zoo("residual")).apply(fresh("chain"))


def test_a_pruned_network_is_not_the_structure_of_its_own_policy(zoo: Zoo) -> None:
    specimen = zoo("residual")
    policy = policy_of(specimen)
    with pytest.raises(PolicyMismatch):
        policy.apply(policy.apply(specimen.network))


def test_an_option_of_a_layer_is_part_of_the_structure() -> None:
    one, other = nn.Conv2d(3, 4, 3, stride=1), nn.Conv2d(3, 4, 3, stride=2)
    assert structure_fingerprint(one) != structure_fingerprint(other)


def test_other_weights_are_warned_about(zoo: Zoo, fresh: Callable[[str], nn.Module]) -> None:
    network = fresh("residual")
    with torch.no_grad():
        network.get_parameter("4.classifier.bias")[0] += 1e-3
    with pytest.warns(UserWarning, match="made for other weights of this network"):
        policy_of(zoo("residual")).apply(network)


def test_the_same_weights_are_not_warned_about(zoo: Zoo, fresh: Callable[[str], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy_of(zoo("residual")).apply(fresh("residual"))


def test_a_newer_schema_is_refused_in_one_line(zoo: Zoo) -> None:
    data = policy_of(zoo("chain")).to_json() | {"schema_version": 2}
    with pytest.raises(ValueError, match=r"`schema_version` must be 1, but got 2: use the version of amc") as caught:
        Policy.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused_in_one_line(keep: float, zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_json(path, policy_of(zoo("chain")).to_json())
    text = path.read_text()
    path.write_text(text[: int(keep * len(text))])
    with pytest.raises(ValueError, match=r"a policy must be a readable JSON file, but .*policy\.json") as caught:
        Policy.from_json(read_json(path, "a policy"))
    assert "\n" not in str(caught.value)


def without(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def putting(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("schema_version"), "integer `schema_version`"),
        (putting("1", "schema_version"), "integer `schema_version`"),
        (without("network"), "no valid policy: network: Field required"),
        (without("network", "weights"), "network.weights: Field required"),
        (without("units"), "units: Field required"),
        (putting(3, "units"), "units: Input should be a valid list, but got 3"),
        (putting(None, "units", 0), "units.0: Input should be .*, but got None"),
        (without("units", 0, "members"), "units.0.members: Field required"),
        (without("layers"), "layers: Field required"),
        (putting(1, "note"), "note: Extra inputs are not permitted"),
        (without("digest"), "must carry the digest of its content"),
        (putting(99, "units", 0, "kept"), "`kept` must equal the number of `indices`, but got 99 and 1"),
        (putting([], "units", 0, "indices"), "`kept` must equal the number of `indices`"),
        (putting([1], "units", 0, "indices"), "must be as it was written, but its digest is"),
        (putting("2:4", "layers", 0, "pattern"), "must be as it was written"),
        (putting(4, "provenance", "seed"), "must be as it was written"),
        (putting(7, "units", 0, "channels"), "every member of unit '0.0' must place all its 7 channels"),
        (
            putting("reader", "units", 0, "members", 0, "role"),
            "should be 'producer', .*, but got 'reader'",
        ),
    ],
)
def test_a_damaged_policy_is_refused_in_one_line(change: Callable[[dict[str, Any]], None], text: str, zoo: Zoo) -> None:
    data = json.loads(json.dumps(policy_of(zoo("chain")).to_json()))
    change(data)
    with pytest.raises(ValueError, match=text) as caught:
        Policy.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (putting([6], "units", 0, "indices"), "kept indices must be below 6, but '0.0' keeps 6"),
        (putting([-1], "units", 0, "indices"), "kept indices must be ascending and not empty"),
        (putting([[0], [1], [2], [3], [4], [4]], "units", 0, "granule"), "must hold each of its 6 channels once"),
        (putting({"first": 0, "size": 2**31, "rows": 6}, "units", 0, "members", 0, "positions"), "may place at most"),
        (putting({"first": 0, "size": 1, "rows": 10**15}, "units", 0, "members", 0, "positions"), "must place all"),
        (putting("unstructured:inf", "layers", 0, "pattern"), "density must be in"),
    ],
)
def test_a_forged_policy_is_refused_before_anything_is_made_of_it(
    change: Callable[[dict[str, Any]], None], text: str, zoo: Zoo
) -> None:
    data = json.loads(json.dumps(policy_of(zoo("chain")).to_json()))
    change(data)
    data["digest"] = digest_of(data)
    with pytest.raises(ValueError, match=text):
        Policy.from_json(data)


@pytest.mark.parametrize("data", [None, [], "policy", 3, {}])
def test_what_is_no_policy_at_all_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="a policy must be a JSON object with an integer `schema_version`"):
        Policy.from_json(data)


@pytest.mark.parametrize(
    ("indices", "text"),
    [((), "ascending and not empty"), ((2, 1), "ascending and not empty"), ((1, 1), "ascending and not empty")],
)
def test_kept_indices_must_be_an_ascending_subset(indices: tuple[int, ...], text: str, zoo: Zoo) -> None:
    with pytest.raises(ValueError, match=text):
        UnitPolicy(unit=zoo("chain").anatomy.units[0], indices=indices)


def test_channels_of_a_grouped_convolution_must_stay_together(zoo: Zoo) -> None:
    with pytest.raises(ValueError, match=r"must stay together in '2\.reduce\.0'"):
        UnitPolicy(unit=zoo("grouped").anatomy.units[1], indices=(0, 1, 2))


# Applying


@settings(max_examples=5)
@given(data=st.data())
def test_applying_gives_the_sliced_network(data: st.DataObject, specimen: Specimen) -> None:
    policy, inputs = policy_of(specimen, draw_kept(data, specimen)), specimen.inputs(3)
    sliced = slice_network(specimen.network, specimen.anatomy.units, policy.kept())
    assert torch.equal(run(policy.apply(specimen.network), inputs), run(sliced, inputs))


def test_a_policy_read_from_json_applies_without_the_units_being_found_again(specimen: Specimen) -> None:
    policy = policy_of(specimen)
    again = Policy.from_json(json.loads(json.dumps(policy.to_json())))
    inputs = specimen.inputs(3)
    assert torch.equal(run(again.apply(specimen.network), inputs), run(policy.apply(specimen.network), inputs))


def test_the_small_network_shares_no_memory_with_the_dense_one(specimen: Specimen) -> None:
    small = policy_of(specimen).apply(specimen.network)
    dense = {tensor.data_ptr() for tensor in specimen.network.state_dict().values() if tensor.numel()}
    assert not any(tensor.data_ptr() in dense for tensor in small.state_dict().values() if tensor.numel())


def test_the_small_network_trains_and_the_dense_one_stays(specimen: Specimen) -> None:
    before = {name: tensor.clone() for name, tensor in specimen.network.state_dict().items()}
    most = {u.name: tuple(sorted(c for g in u.granules[1:] for c in g)) for u in specimen.anatomy.units}
    small = policy_of(specimen, most).apply(specimen.network).train()
    start = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(specimen.inputs(4)).square().sum().backward()
    optimizer.step()
    moved = [name for name, parameter in small.named_parameters() if not torch.equal(parameter, start[name])]
    assert len(moved) > len(start) / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in specimen.network.state_dict().items())


def test_frozen_parameters_stay_frozen(fresh: Callable[[str], nn.Module], zoo: Zoo) -> None:
    network = fresh("chain")
    network.get_parameter("0.0.weight").requires_grad_(False)
    frozen = {n for n, p in policy_of(zoo("chain")).apply(network).named_parameters() if not p.requires_grad}
    assert frozen == {"0.0.weight"}


def test_layers_that_share_a_weight_still_share_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)
            self.last = nn.Linear(6, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.second(torch.relu(self.first(x))))
            out: Tensor = self.last(torch.relu(self.third(x)))
            return out

    network = Tied().eval()
    (unit,) = dissect(network, torch.zeros(1, 4)).units
    policy = Policy(
        structure=structure_fingerprint(network),
        weights=weights_fingerprint(network),
        units=(UnitPolicy(unit=unit, indices=(1, 3)),),
    )
    small = policy.apply(network)
    assert small.get_parameter("first.weight") is small.get_parameter("second.weight")
    assert small.get_parameter("first.weight") is not network.first.weight
