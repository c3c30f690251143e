"""`amc inspect`: every layer once, true lowest costs, JSON, and tables that cut no name."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from amc.config.search import load_config
from amc.problem.bounds import recount
from amc.problem.inspection import CostSpan, InspectedUnit, Inspection, Stay, inspection, weighted_layers
from amc.reporting.inspection_view import inspection_tables
from amc.tasks.models.resnet_cifar import resnet56
from amc.tasks.task import Task
from envs.units.slicing import slice_network
from hw_profiles.cost import Macs, Params

RULES: list[dict[str, Any]] = [{}, {"rules.min_ratio": 0.5}, {"rules.round_to": 4}, {"rules.max_ratio": 0.7}]


def task_of(network: nn.Module, size: int = 8) -> Task:
    x, y = torch.randn(48, 3, size, size, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
    parts: dict[str, Any] = {
        role: (x[k : k + 16], y[k : k + 16]) for k, role in ((0, "calibration"), (16, "validation"), (32, "test"))
    }
    return Task(name="mine", network=network, example_input=x[:1], **parts)


def inspected(network: nn.Module, **overrides: Any) -> Inspection:
    return inspection(task_of(network), load_config(None, {"task": "mine", **overrides}))


def shown(found: Inspection, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(inspection_tables(found))
    return file.getvalue()


@pytest.mark.parametrize("name", ["chain", "joined", "grouped", "option_a", "reused", "branching", "convnext"])
def test_every_layer_with_a_weight_is_listed_once(name: str, fresh: Callable[[str], nn.Module]) -> None:
    network = fresh(name)
    found = inspected(network)
    written = [layer for unit in found.units for layer in (*unit.writes, *unit.carries)]
    layers = weighted_layers(network)
    listed = Counter([*(layer for layer in dict.fromkeys(written) if layer in layers), *(s.layer for s in found.stays)])
    assert listed == Counter(layers)
    assert all(stay.reason for stay in found.stays)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_the_lowest_costs_are_those_of_the_lightest_network(rules: dict[str, Any], zoo: Callable[[str], Any]) -> None:
    specimen = zoo("residual")
    found = inspected(specimen.network, **rules)
    channels = {unit.name: list(range(unit.lightest)) for unit in found.units}
    small = slice_network(specimen.network, specimen.anatomy.units, channels)
    costs = recount(small, specimen.example, [Macs(), Params()], {})
    spans = {span.name: span for span in found.costs}
    dense = recount(specimen.network, specimen.example, [Macs(), Params()], {})
    assert {name: (spans[name].dense, spans[name].lowest) for name in costs} == {
        name: (dense[name], costs[name]) for name in costs
    }
    assert all(span.share == span.lowest / span.dense for span in found.costs)


def test_all_writers_of_a_skipped_unit_stay(fresh: Callable[[str], nn.Module]) -> None:
    found = inspected(fresh("residual"), **{"rules.skip": ["0.0"]})
    stays = {stay.layer: stay.reason for stay in found.stays}
    assert {name for name, reason in stays.items() if "skipped" in reason} == {"0.0", "2.second.0"}


class Words(nn.Module):
    """Embeds words, attends, and holds a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(9, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        mixed, weights = self.mix(y, y, y)  # who reads the weights needs the module itself
        logits: Tensor = self.head(mixed.mean(dim=1)) + weights.mean(dim=(1, 2))[:, None]
        return logits


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("words", "the channels of a layer of type Embedding are never pruned"),
        ("mix.out_proj", "it is a part of 'mix' (MultiheadAttention), whose channels depend on each other"),
        ("spare", "forward does not call it"),
    ],
)
def test_layers_that_are_in_no_group_of_channels_stay_for_a_reason_of_their_own(layer: str, reason: str) -> None:
    x, y = torch.randint(9, (16, 5)), torch.arange(16) % 3
    parts: dict[str, Any] = {role: (x, y) for role in ("calibration", "validation", "test")}
    task = Task(name="words", network=Words(), example_input=x[:1], **parts)
    stays = {stay.layer: stay.reason for stay in inspection(task, load_config(None, {"task": "words"})).stays}
    assert stays[layer] == reason


def test_a_depthwise_layer_stays_with_the_layer_in_front_of_it() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.deep = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.scale, self.last = nn.Parameter(torch.ones(6, 1, 1)), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.last(self.deep(self.first(x)) * self.scale).mean(dim=(2, 3))
            return scores

    stays = {stay.layer: stay.reason for stay in inspected(Scaled()).stays}
    assert set(stays) == {"first", "deep", "last"}
    assert all(stays.values())


def test_an_inspection_is_json(fresh: Callable[[str], nn.Module]) -> None:
    found = inspected(fresh("mobile_v1"), choose="mixed", constraint={"params": 0.5})
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema_version"] == 1
    assert set(data) == {
        "schema_version",
        "task",
        "costs",
        "units",
        "stays",
        "patterns",
        "branches",
        "uncounted",
        "untraced",
    }
    assert [unit["name"] for unit in data["units"]] == [unit.name for unit in found.units]
    assert [cost["name"] for cost in data["costs"]] == ["macs", "params", "memory"]
    assert len(data["patterns"]) == sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in fresh("mobile_v1").modules())


def test_a_network_that_cannot_be_traced_says_why(fresh: Callable[[str], nn.Module]) -> None:
    found = inspected(fresh("branching"))
    assert found.untraced
    assert [cost.name for cost in found.costs] == ["macs", "params"]
    assert "could not be traced" in shown(found)


def test_no_name_of_resnet56_is_cut_or_folded() -> None:
    found = inspection(task_of(resnet56(), 32), load_config(None, {"task": "mine"}))
    lines = shown(found).splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {f">layer{i}.{j}.conv1" for i in (1, 2, 3) for j in range(9)} <= words
    assert {stay.layer for stay in found.stays} <= words


def test_long_names_are_folded_and_nothing_is_lost() -> None:
    long = ".".join(["a_stage_with_a_rather_long_name"] * 4)
    units = [
        InspectedUnit(
            name=f"{long}.{k}",
            channels=64,
            step=1,
            lightest=1,
            macs=0.5,
            writes=(f"{long}.{k}", f"{long}.{k}.again"),
            carries=(f"{long}.{k}.norm",),
            reads=(f"{long}.{k + 1}",),
        )
        for k in range(2)
    ]
    found = Inspection(
        task="mine",
        costs=(CostSpan(name="macs", unit="MACs", dense=1e9, lowest=1e7, share=0.01),),
        units=tuple(units),
        stays=(Stay(layer=f"{long}.head", reason="its channels are the network's output"),),
        uncounted=("fft",),
    )
    text = shown(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    joined = "".join(text.split())
    for name in (f"{long}.head", *(name for unit in units for name in (*unit.writes, *unit.carries, *unit.reads))):
        assert name in joined
    assert "no cost counts these operators: fft" in text


def test_layers_that_stay_for_one_reason_share_it() -> None:
    stays = tuple(Stay(layer=name, reason="one reason") for name in ("a", "b"))
    text = shown(Inspection(task="mine", costs=(), units=(), stays=(*stays, Stay(layer="c", reason="another"))))
    assert text.count("one reason") == 1
    assert "    a b" in text
