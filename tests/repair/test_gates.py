"""`taylor`, `fluctuation` and `fpgm` against their papers' formulas, by hand and by another way."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.importance.importance import Evidence
from envs.importance.scores import importance_named
from envs.importance.taylor import STREAM, gate_sensitivities
from envs.regression.statistics import Sampling, input_moments, totals
from envs.units.slicing import silence
from envs.units.units import Member, Role, Unit

if TYPE_CHECKING:
    from tests.conftest import Specimen


def unit_of(channels: int, *members: tuple[str, Role]) -> Unit:
    rows = tuple((channel,) for channel in range(channels))
    held = tuple(Member(module=name, role=role, positions=rows) for name, role in members)
    return Unit(name="u", channels=channels, granules=rows, members=held)


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Geometric median (He et al., CVPR 2019)


def test_fpgm_is_the_sum_of_distances_to_all_other_filters() -> None:
    # Filters at 0, 1 and 5 on a line: 1 + 5, 1 + 4, 5 + 4. The one in the middle goes first, not the smallest.
    network = nn.Sequential(linear([[0.0], [1.0], [5.0]]), nn.Linear(3, 2))
    scores = importance_named("fpgm")(
        unit_of(3, ("0", "producer"), ("1", "consumer")), Evidence(network=network, moments={})
    )
    torch.testing.assert_close(scores, exact(6, 5, 9) / 20)


def test_fpgm_adds_up_producers_as_shares() -> None:
    network = nn.Sequential(linear([[0.0], [1.0], [5.0]]), linear([[0.0, 0.0], [30.0, 40.0], [0.0, 0.0]]))
    scores = importance_named("fpgm")(
        unit_of(3, ("0", "producer"), ("1", "producer")), Evidence(network=network, moments={})
    )
    torch.testing.assert_close(scores, exact(6, 5, 9) / 20 + exact(50, 100, 50) / 200)


def test_filters_of_a_transposed_convolution_are_those_of_its_outputs() -> None:
    up, plain = nn.ConvTranspose2d(2, 3, 2), nn.Conv2d(2, 3, 2)
    with torch.no_grad():
        plain.weight.copy_(up.weight.transpose(0, 1))
    unit = unit_of(3, ("0", "producer"))
    both = [importance_named("fpgm")(unit, Evidence(network=nn.Sequential(layer), moments={})) for layer in (up, plain)]
    torch.testing.assert_close(both[0], both[1])


# Fluctuation (An et al., FLAP, AAAI 2024)


def fluctuation_of(reader: nn.Module, inputs: Tensor, channels: int) -> Tensor:
    network = nn.Sequential(nn.Identity(), reader)
    moments = totals(input_moments(network, ["1"], [inputs], Sampling(positions=1000)))
    return importance_named("fluctuation")(
        unit_of(channels, ("1", "consumer")), Evidence(network=network, moments=moments)
    )


def test_fluctuation_is_variance_times_squared_weights() -> None:
    # Variances 1, 0 and 4; squared norms of the columns 5, 81 and 1.
    inputs = torch.tensor([[0.0, 7.0, 1.0], [2.0, 7.0, 5.0]])
    scores = fluctuation_of(linear([[1.0, 9.0, 0.0], [2.0, 0.0, -1.0]]), inputs, 3)
    torch.testing.assert_close(scores, exact(5, 0, 4) / 9)


def test_fluctuation_sees_every_kernel_position_and_group() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, reader = torch.randn(5, 4, 3, 3, generator=generator), nn.Conv2d(4, 6, 3, groups=2)
    variance = inputs.double().var(dim=0, correction=0)  # [4, 3, 3]: one output position reads the whole map
    squares = reader.weight.detach().double().square().reshape(2, 3, 2, 3, 3).sum(dim=1).flatten(0, 1)  # [4, 3, 3]
    expected = (variance * squares).sum(dim=(1, 2))
    torch.testing.assert_close(fluctuation_of(reader, inputs, 4), expected / expected.sum(), rtol=1e-5, atol=1e-7)


def test_fluctuation_without_any_reader_that_can_be_gathered_is_l2() -> None:
    network = nn.Sequential(nn.Identity(), nn.ConvTranspose2d(3, 2, 2))
    unit, evidence = unit_of(3, ("1", "consumer")), Evidence(network=network, moments={})
    assert torch.equal(*(importance_named(name)(unit, evidence) for name in ("fluctuation", "l2")))


def compressor(specimen: Specimen, importance: str, images: Tensor) -> Compressor:
    anatomy, settings = specimen.anatomy, CompressionSettings(importance=importance, repair="none", positions=1000)
    return Compressor(specimen.network, anatomy.graph, anatomy.family, anatomy.units, [images], settings)


@pytest.mark.parametrize("name", ["chain", "residual", "mobile_v1", "mobile_v2", "branching", "convnext"])
def test_the_mean_of_what_goes_stays_in_the_bias(name: str, zoo: Callable[[str], Specimen]) -> None:
    # The last unit feeds the classifier: without its fluctuating part the mean output over the images is the dense one.
    specimen, images = zoo(name), zoo(name).inputs(24)
    unit = specimen.anatomy.units[-1]
    assert [type(specimen.network.get_submodule(m.module)) for m in unit.role("consumer")] == [nn.Linear]
    means = {}
    for importance in ("fluctuation", "l2"):
        one = compressor(specimen, importance, images)
        with torch.no_grad():
            means[importance] = one.compress(one.policy({unit.name: unit.channels // 2})).network(images).mean(dim=0)
            dense = specimen.network(images).mean(dim=0)
    torch.testing.assert_close(means["fluctuation"], dense, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(means["l2"], dense, rtol=1e-3, atol=1e-3)


def test_the_mean_of_what_a_pattern_takes_stays_in_the_bias_too(zoo: Callable[[str], Specimen]) -> None:
    specimen, images = zoo("residual"), zoo("residual").inputs(24)
    one = compressor(specimen, "fluctuation", images)
    small = one.compress(one.policy({}, {"4.classifier": "unstructured:0.5"})).network
    assert float((small.get_parameter("4.classifier.weight") == 0).double().mean()) == 0.5
    with torch.no_grad():
        means = [network(images).mean(dim=0) for network in (small, specimen.network)]
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_channel_goes_without_any_loss(bias: bool, zoo: Callable[[str], Specimen]) -> None:
    from envs.units.anatomy import dissect

    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3, bias=bias), norm, nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        network.get_parameter("0.weight")[3] = 0  # channel 3 is its bias, everywhere
        network.get_parameter("0.bias")[3] = 2.5
    images = zoo("chain").inputs(8)
    anatomy = dissect(network, images[:1])
    settings = CompressionSettings(importance="fluctuation", repair="none")
    one = Compressor(network, anatomy.graph, anatomy.family, anatomy.units, [images], settings)
    policy = one.policy({"0": 4})
    assert policy.kept()["0"] == (0, 1, 2, 4)
    with torch.no_grad():
        torch.testing.assert_close(one.compress(policy).network(images), network(images), rtol=1e-4, atol=1e-5)


# Taylor (Molchanov et al., CVPR 2019)


def test_taylor_of_a_linear_reader_is_the_mean_square_of_weight_times_input() -> None:
    # One output: d y / d gate = w x, whatever the sign of the target's draw.
    network = nn.Sequential(nn.Identity(), linear([[2.0, -1.0, 0.0]]))
    inputs = torch.tensor([[1.0, 3.0, 9.0], [2.0, 0.0, 9.0]])
    for at_once in (1, 2):
        found = gate_sensitivities(network, [unit_of(3, ("1", "consumer"))], [inputs], at_once=at_once, seed=0)
        torch.testing.assert_close(found["u"], exact((4 + 16) / 2, 9 / 2, 0))


def test_taylor_adds_up_readers_before_it_squares() -> None:
    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plus, self.minus = linear([[1.0, 1.0]]), linear([[-1.0, 1.0]])

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = self.plus(x) + self.minus(x)
            return total

    unit = unit_of(2, ("plus", "consumer"), ("minus", "consumer"))
    found = gate_sensitivities(Cancelling(), [unit], [torch.ones(4, 2)], at_once=4, seed=0)
    torch.testing.assert_close(found["u"], exact(0, 4))


def gradient_times_weight(network: nn.Module, unit: Unit, image: Tensor, signs: Tensor) -> list[float]:
    """The paper's own formula for one image: sum of gradient x weight over the weights that read a channel."""
    twin = deepcopy(network)
    names = [f"{member.module}.weight" for member in unit.role("consumer")]
    weights = [twin.get_parameter(name).requires_grad_() for name in names]
    gradients = torch.autograd.grad((twin(image) * signs).sum(), weights)
    values = []
    for channel in range(unit.channels):
        without = deepcopy(network)
        silence(without, unit, [channel])
        read = [weight - without.get_parameter(name) for name, weight in zip(names, weights, strict=True)]
        values.append(sum(float((g * w.detach()).sum()) for g, w in zip(gradients, read, strict=True)))
    return values


def test_gates_give_gradient_times_weight_in_every_network(specimen: Specimen) -> None:
    images = specimen.inputs(2)
    with torch.no_grad():
        shape = specimen.network(images).shape
    signs = torch.randint(0, 2, shape, generator=Sampling(seed=3).generator(STREAM, 0)) * 2.0 - 1
    units = specimen.anatomy.units
    found = gate_sensitivities(specimen.network, units, [images], at_once=2, seed=3)
    for unit in units[:3]:
        each = [gradient_times_weight(specimen.network, unit, images[k : k + 1], signs[k : k + 1]) for k in (0, 1)]
        expected = torch.tensor(each, dtype=torch.float64).square().mean(dim=0)
        torch.testing.assert_close(found[unit.name], expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_a_frozen_network_is_scored_and_keeps_no_gradient(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("mobile_v2")
    frozen = deepcopy(specimen.network).requires_grad_(False)
    both = [
        gate_sensitivities(network, specimen.anatomy.units, [specimen.inputs(4)], at_once=4, seed=0)
        for network in (frozen, specimen.network)
    ]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert all(parameter.grad is None for parameter in specimen.network.parameters())


def test_a_network_without_gradients_is_refused_in_one_line() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = nn.Linear(2, 1)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.reader(x)
            return y

    with pytest.raises(ValueError, match=r"`taylor` needs finite gradients.*use obs, fluctuation or l1") as caught:
        gate_sensitivities(Closed(), [unit_of(2, ("reader", "consumer"))], [torch.ones(3, 2)], at_once=3, seed=0)
    assert "\n" not in str(caught.value)


def test_gradients_are_charged_as_three_passes(zoo: Callable[[str], Specimen]) -> None:
    specimen = zoo("chain")
    paid = {name: compressor(specimen, name, specimen.inputs(16)).preparation_forwards for name in ("l1", "taylor")}
    assert paid == {"l1": 0, "taylor": 48}
