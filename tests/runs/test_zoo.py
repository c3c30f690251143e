"""The zoo of policies, and timm's text of sizes: both say what they cannot do."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from amc.export.applied import read_policy
from amc.export.timm_string import timm_string
from amc.export.zoo import figures_table, policy_file, read_figures, widths_table, zoo_folder
from amc.tasks.models.resnet_cifar import resnet20
from envs.space.policy import Policy, UnitPolicy, structure_fingerprint, weights_fingerprint
from envs.units.anatomy import dissect


def test_every_entry_has_a_policy_and_a_row_and_no_place_of_a_machine() -> None:
    zoo = zoo_folder(None)
    rows = read_figures(zoo)
    names = {str(path.relative_to(zoo).with_suffix("")) for path in zoo.glob("*/*/*.json")}
    assert names == {row["name"] for row in rows}
    for row in rows:
        policy = read_policy(policy_file(zoo, row["name"]))
        assert policy.provenance["config"]["task"] == row["task"]
        assert not {"data", "checkpoint"} & policy.provenance["config"].keys()
        assert float(row["found"]) >= float(row["uniform"])


def test_an_entry_gives_its_widths_to_a_network_and_is_shown() -> None:
    zoo = zoo_folder(None)
    row = read_figures(zoo)[0]
    policy = read_policy(policy_file(zoo, row["name"]))
    small = policy.apply(resnet20(), check_weights=False)
    parameters = sum(one.numel() for one in small.parameters())
    assert parameters / sum(one.numel() for one in resnet20().parameters()) == pytest.approx(
        float(row["params"]), abs=1e-3
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(figures_table(zoo), widths_table(policy, row))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert row["name"] in text
    assert all(entry.unit.name in text for entry in policy.units)


def test_no_zoo_and_no_entry_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a zoo is a folder with figures"):
        zoo_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has no 'x': it has resnet20/any/macs-0\.5"):
        policy_file(zoo_folder(None), "x")


def halved(network: nn.Module, example: torch.Tensor) -> Policy:
    units = dissect(network, example, None).units
    return Policy(
        structure=structure_fingerprint(network),
        weights=weights_fingerprint(network),
        units=tuple(UnitPolicy(unit=unit, indices=tuple(range(unit.channels // 2))) for unit in units),
    )


def test_timm_text_names_every_weight_with_its_shape() -> None:
    dense = resnet20().eval()
    policy = halved(dense, torch.zeros(1, 3, 32, 32))
    small = policy.apply(dense)
    pairs = (one.split(":") for one in timm_string(small, policy).split("***"))
    shapes = {name: [int(size) for size in shape[1:-1].split(",")] for name, shape in pairs}
    assert shapes == {name: list(one.shape) for name, one in small.named_parameters() if name.endswith("weight")}


def test_timm_text_refuses_what_timm_cannot_read() -> None:
    dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    policy = halved(dense, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="changes '0', a Linear with fewer outputs"):
        timm_string(policy.apply(dense), policy)
