"""Units are tried on the part of the program that they touch, and all at once in the network's own forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from envs.network.graph import record, trace
from envs.units.anatomy import dissect
from envs.units.slicing import slice_network
from envs.units.units import Unit
from envs.units.verification.nearby import Nearby
from envs.units.verification.trial import Trial
from envs.units.verification.verify import remove

EXAMPLE = torch.zeros(1, 6)


class Block(nn.Module):
    """x + down(relu(up(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.down(torch.relu(self.up(x)))
        return x + branch


class Picky(Block):
    """Its own code runs at one width only, which no trace tells."""

    def forward(self, x: Tensor) -> Tensor:
        if self.up.out_features != 8:
            raise ValueError("eight channels")
        return super().forward(x)


def blocks(number: int, kind: type[Block] = Block) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(kind() for _ in range(number))).eval()


def with_wrong_consumer(unit: Unit) -> Unit:
    """The unit with channels that its consumer reads in another order."""
    first, last = unit.members
    return replace(unit, members=(first, replace(last, positions=tuple(reversed(last.positions)))))


def test_as_many_forwards_whatever_the_number_of_units() -> None:
    counted = []
    for number in (2, 8):
        network = blocks(number)
        calls: list[int] = []
        network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert len(dissect(network, EXAMPLE).units) == number
        counted.append(len(calls))
    assert counted[0] == counted[1]


def test_what_is_recorded_nearby_is_what_the_whole_network_does() -> None:
    network = blocks(3)
    graph, units = trace(network, EXAMPLE), dissect(network, EXAMPLE).units
    trial = Trial.create(network, EXAMPLE, graph, seed=0, samples=None)
    nearby = Nearby(trial)
    for unit in units:
        small = slice_network(network, [unit], {unit.name: [0, 3, 4]})
        removal = nearby.removal(unit, [1, 2, 5, 6, 7], all_samples=False)
        assert removal is not None
        assert list(removal.calls) == record(graph, small, EXAMPLE)[1]
        assert removal.params == sum(parameter.numel() for parameter in small.parameters())


def test_a_wrong_value_is_seen_beside_a_large_one() -> None:
    network = blocks(2)
    (unit, _) = dissect(network, EXAMPLE).units
    graph, large = trace(network, EXAMPLE), torch.full((2, 6), 1e6)
    trial = Trial.create(network, EXAMPLE, graph, seed=0, samples=large)
    network.get_parameter("0.up.weight").data.mul_(1e-6)
    assert Nearby(trial).removal(unit, [0, 1], all_samples=True) is not None
    wrong = with_wrong_consumer(unit)
    remove(trial, {wrong.name: [0, 1]}, [wrong])  # outputs of 1e6 hide it
    assert Nearby(trial).removal(wrong, [0, 1], all_samples=True) is None


@pytest.mark.parametrize("number", [1, 3])
def test_the_networks_own_code_has_the_last_word(number: int) -> None:
    network = nn.Sequential(*blocks(number), *blocks(1, Picky)).eval()
    anatomy = dissect(network, EXAMPLE)
    assert [unit.name for unit in anatomy.units] == [f"{k}.up" for k in range(number)]
    assert "(Picky)" in next(fixed.reason for fixed in anatomy.fixed if fixed.name == f"{number}.up")
