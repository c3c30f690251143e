"""What torch.fx records of forwards that ask for sizes, unpack them, or assign to what their modules hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from envs.network.copies import same_output
from envs.network.interpreter import Interpreter
from envs.network.tracing.symbolic import symbolic


def images(count: int = 1, size: int = 6) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


class Layered(nn.Module):
    """A convolution behind something that asks for sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 4 != 0 and x.size(2) > 2:
            x = F.pad(x, (0, 4 - x.shape[-1] % 4, 0, 0))
        assert x.shape[1:2] == (3,), "three channels"
        y = self.layer(x)
        out: Tensor = y.reshape(*y.shape[:2], -1).mean(-1)
        return out


def test_conditions_on_sizes_and_unpacked_shapes_are_recorded_for_any_batch() -> None:
    network = Layered().eval()
    program = symbolic(network, images())
    assert [node.target for node in program.nodes if node.op == "call_module"] == ["layer"]
    assert same_output(network(images(5)), Interpreter(program.nodes).output(network, images(5)), 1e-6)


class Making(nn.Module):
    """Modules without weights that forward makes, and (`learned`) one with some."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.layer, self.learned = nn.Conv2d(3, 4, 1), learned

    def forward(self, x: Tensor) -> Tensor:
        y = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))(self.layer(x))
        out: Tensor = nn.BatchNorm2d(4).eval()(y) if self.learned else y
        return out


def test_modules_that_forward_makes_are_operators_if_they_hold_nothing() -> None:
    network = Making(learned=False).eval()
    program = symbolic(network, images())
    assert [node.target for node in program.nodes if node.op == "call_module"] == ["layer"]
    assert same_output(network(images(5)), Interpreter(program.nodes).output(network, images(5)), 1e-6)
    with pytest.raises(NameError, match="not installed as a submodule"):
        symbolic(Making(learned=True).eval(), images())


class Assigning(nn.Module):
    """Forward moves a mask to where the input is, and keeps its last result, as published networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
        self.mask = torch.eye(6, device="cpu")
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            self.mask = self.mask.to(dtype=x.dtype)
            x = layer(x) + self.mask if torch.is_floating_point(self.mask) else layer(x)
        self.last = x
        return x


def test_what_forward_assigns_is_taken_back() -> None:
    network = Assigning().eval()
    mask = network.mask
    program = symbolic(network, images())
    assert network.mask is mask
    assert network.last is None
    assert not [name for name in vars(network) if name.startswith("_tensor_constant")]
    assert same_output(network(images(2)), Interpreter(program.nodes).output(network, images(2)), 1e-6)


class Changing(nn.Module):
    """Changes its input in place, and looks at its size afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return x + 1 if x.shape[0] > 0 else x


def test_looking_at_sizes_changes_no_example() -> None:
    example = images()
    before = example.clone()
    symbolic(Changing(), example)
    assert torch.equal(example, before)


class Normalized(nn.Module):
    """Asks for the shape of what a batch normalization gives, which changes what it holds in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.norm(x), 0.5, self.training)
        return y.reshape(*y.shape[:2], -1)


def test_looking_at_sizes_in_training_changes_no_statistics_and_draws_no_numbers() -> None:
    network = Normalized().train()
    state = torch.get_rng_state()
    symbolic(network, images(1, 1))
    assert torch.equal(network.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


class Looking(nn.Module):
    """What is computed depends on values, or on how many samples there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "values":
            return x + 1 if x.sum() > 0 else x
        return torch.stack([row + 1 for row in x])


@pytest.mark.parametrize("how", ["values", "rows"])
def test_what_depends_on_values_or_on_the_number_of_samples_is_no_program(how: str) -> None:
    with pytest.raises(fx.proxy.TraceError):
        symbolic(Looking(how), images())
