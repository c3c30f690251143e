"""The traced program and the fast copy compute what the network computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from envs.network.copies import functional_copy, same_output
from envs.network.graph import trace
from envs.network.inference import Twins, inference_copy
from envs.network.inputs import channels_last
from envs.network.interpreter import run
from envs.network.kinds import plain_name
from envs.units.slicing import slice_network

if TYPE_CHECKING:
    from tests.conftest import Specimen


def forward(network: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = network(inputs)
    return outputs


class Viewing(nn.Module):
    """Flattens a feature map by `view`, which refuses channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        out: Tensor = self.linear(x.view(x.size(0), -1))
        return out


class Deciding(Viewing):
    """The same, but it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if float(x.mean()) > 1e6 else x)


# The fast copy


def test_the_fast_copy_gives_the_same_outputs(specimen: Specimen) -> None:
    inputs = specimen.inputs(8)
    fast = inference_copy(specimen.network, specimen.anatomy.graph)
    expected = forward(specimen.network, inputs)
    torch.testing.assert_close(forward(fast, channels_last(inputs)), expected, atol=1e-4, rtol=1e-4)


def test_the_fast_copy_of_a_sliced_network_gives_its_outputs(specimen: Specimen) -> None:
    units, inputs = specimen.anatomy.units, specimen.inputs(8)
    small = slice_network(specimen.network, units, {unit.name: unit.granules[0] for unit in units})
    fast = inference_copy(small, specimen.anatomy.graph)
    torch.testing.assert_close(forward(fast, channels_last(inputs)), forward(small, inputs), atol=1e-4, rtol=1e-4)


def test_a_normalization_that_alone_reads_a_convolution_is_folded(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("residual")
    fast = inference_copy(specimen.network, specimen.anatomy.graph)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())


def test_a_normalization_behind_a_concatenation_stays(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("dense")
    fast = inference_copy(specimen.network, specimen.anatomy.graph)
    assert isinstance(fast.get_submodule("2.norm"), nn.BatchNorm2d)


@pytest.mark.parametrize("build", [Viewing, Deciding])
def test_a_network_that_views_its_feature_maps_is_scored_without_channels_last(
    build: Callable[[], nn.Module],
) -> None:
    network, inputs = build().eval(), torch.randn(4, 3, 8, 8)
    graph = trace(network, inputs[:1])
    assert not graph.channels_last
    fast = inference_copy(network, graph)
    torch.testing.assert_close(forward(fast, channels_last(inputs)), forward(network, inputs), atol=1e-5, rtol=1e-4)


def test_a_view_behind_global_pooling_does_not_forbid_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    assert trace(network, torch.zeros(1, 3, 8, 8)).channels_last


def test_a_weight_normalization_is_left_alone() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    network, inputs = nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(4, 3, 8, 8)
    fast = inference_copy(network, trace(network, inputs[:1]))
    torch.testing.assert_close(forward(fast, inputs), forward(network, inputs), atol=1e-5, rtol=1e-4)


def test_an_identity_of_the_networks_own_shares_nothing_with_the_fast_copy_of_another() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Identity(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    network, inputs = nn.Sequential(*layers).eval(), torch.randn(4, 3, 8, 8)
    graph = trace(network, inputs[:1])
    assert graph.folds()["1"] == "2"
    fast = inference_copy(network, graph, Twins(network, inference_copy(network, graph)))
    assert isinstance(fast.get_submodule("1"), nn.Dropout)
    assert isinstance(fast.get_submodule("4"), nn.Identity)
    torch.testing.assert_close(forward(fast, inputs), forward(network, inputs), atol=1e-5, rtol=1e-4)


def test_making_the_fast_copy_leaves_the_network_bit_for_bit(specimen: Specimen) -> None:
    before = copy.deepcopy(specimen.network.state_dict())
    inference_copy(specimen.network, specimen.anatomy.graph)
    after = specimen.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].stride() == tensor.stride() for name, tensor in before.items())


# The traced program


def test_the_traced_program_gives_the_output_of_the_network(specimen: Specimen) -> None:
    program = specimen.anatomy.graph.program
    if program is None:
        assert specimen.name == "branching"
        return
    inputs = specimen.inputs(4)
    with torch.no_grad():
        values = dict(run(program, functional_copy(specimen.network), inputs))
    output = values[next(node for node in program.nodes if node.op == "output")]
    torch.testing.assert_close(output, forward(specimen.network, inputs), atol=1e-6, rtol=1e-5)


def test_no_operator_of_the_program_overwrites_a_value(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("in_place")
    program, inputs = specimen.anatomy.graph.program, specimen.inputs(4)
    assert program is not None
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for _, value in run(program, functional_copy(specimen.network), inputs):
            kept.append((value, value.clone()))
    assert all(torch.equal(value, then) for value, then in kept)


def test_an_in_place_operator_whose_old_value_is_read_again_is_traced_without_it() -> None:
    class Overwriting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = y.add_(1)
            return z + y  # y is the overwritten value

    program = trace(Overwriting(), torch.ones(1, 3, 4, 4)).require_program()
    assert [plain_name(node.target) for node in program.nodes if node.op == "call_function"] == ["mul", "add", "add"]


def test_a_network_that_cannot_be_traced_says_why(zoo: Callable[[str], Specimen]) -> None:
    graph = zoo("branching").anatomy.graph
    assert not graph.traced
    assert graph.reason.startswith("TypeError: float()")


def test_a_network_that_does_not_run_on_its_example_is_refused() -> None:
    text = r"must run on the example input of shape \[1, 2, 8, 8\], but it raised RuntimeError"
    with pytest.raises(ValueError, match=text):
        trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 2, 8, 8))


def test_outputs_that_are_not_finite_are_never_the_same() -> None:
    bad = torch.tensor([float("nan")])
    assert not same_output(bad, bad, tolerance=1.0)
