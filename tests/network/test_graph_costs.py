"""Subclassed layers, dead code, and reasons that name what stands in the way."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.tasks.models.resnet_cifar import SubsampleAndPad
from envs.network.graph import trace
from envs.network.inference import inference_copy
from envs.network.interpreter import run
from envs.network.probe import is_plain
from envs.observation import Observer
from envs.regression.rows import can_gather, draw_positions, gather_inputs, output_places, take_outputs, weight_rows
from envs.space.constraint import Budget, Constraint, Costing, InfeasibleBudget
from envs.space.rules import Rules
from envs.units.anatomy import Anatomy, dissect
from envs.units.slicing import slice_network
from hw_profiles.cost import Macs, cost_of
from hw_profiles.layers import Layout, Widths


class Padded(nn.Conv2d):
    """Pads on two sides and calls F.conv2d with a stride of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 2, 0, 2)), self.weight, self.bias, (2, 1), groups=self.groups)


class Causal(nn.Conv1d):
    """Pads on the left and computes as its class does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, 0)))


class Standardized(nn.Conv2d):
    """Multiplies by something else than its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


class Cut(nn.Conv1d):
    """Does not return what it computed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :-1]


class Deaf(nn.Conv2d):
    """Ignores its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


def reasons(anatomy: Anatomy) -> dict[str, str]:
    return {entry.name: entry.reason for entry in anatomy.fixed}


def normalized(layer: nn.Module, width: int) -> nn.Module:
    norm = nn.BatchNorm2d(width)
    norm.running_mean = torch.rand(width)
    return nn.Sequential(layer, norm, nn.ReLU(), nn.Conv2d(width, 4, 1)).eval()


@pytest.mark.parametrize("layer", [Padded(4, 6, 3), Padded(4, 6, 3, groups=2, bias=False), Causal(4, 6, 3)])
def test_rows_of_a_subclass_are_what_it_multiplies(layer: nn.Conv2d | nn.Conv1d) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, *[9] * (layer.weight.ndim - 2))
    with torch.no_grad():
        outputs = layer(inputs)
    places = output_places(layer, tuple(outputs.shape))
    at = draw_positions(2, places, 5, torch.Generator().manual_seed(0))
    got = torch.cat(list(gather_inputs(layer, inputs, at) @ weight_rows(layer)), dim=1)
    got = got if layer.bias is None else got + layer.bias.detach()
    torch.testing.assert_close(got, take_outputs(layer, outputs, at))


@pytest.mark.parametrize("layer", [Standardized(3, 4, 3), Cut(3, 4, 3), Deaf(3, 4, 3), Deaf(3, 4, 3, bias=False)])
def test_a_subclass_that_computes_something_else_is_not_refitted(layer: nn.Module) -> None:
    assert not is_plain(layer)
    assert not can_gather(layer)


@pytest.mark.parametrize("layer", [Padded(3, 4, 3), Standardized(3, 4, 3), Deaf(3, 4, 3, bias=False)])
def test_normalization_is_folded_only_where_the_output_stays(layer: nn.Module) -> None:
    torch.manual_seed(0)
    network, inputs = normalized(layer, 4), torch.randn(2, 3, 8, 8)
    graph = trace(network, inputs[:1])
    with torch.no_grad():
        torch.testing.assert_close(inference_copy(network, graph)(inputs), network(inputs), atol=1e-5, rtol=1e-4)
    folded = isinstance(inference_copy(network, graph).get_submodule("1"), nn.Identity)
    assert folded == isinstance(layer, Padded)


def test_a_search_observes_networks_of_subclassed_convolutions() -> None:
    torch.manual_seed(0)
    network, example = normalized(Padded(3, 8, 3), 8), torch.zeros(1, 3, 8, 8)
    anatomy = dissect(network, example)
    costing = Costing(anatomy.family, tuple(Rules().sites(anatomy.units)[0]))
    constraint = Constraint.create(costing, [Budget(Macs(), 0.6 * costing.one(Macs(), costing.dense()))])
    assert Observer(constraint)([], 1.0).shape == (11,)


class Unread(nn.Module):
    """The last residual of its stack, and another layer, are computed for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.residual, self.skip = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        self.out, self.never = nn.Linear(6, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        skipped = torch.relu(self.skip(x))
        x = x + self.residual(x)  # read by nobody
        out: Tensor = self.out(skipped.mean((2, 3)))
        return out


def test_a_unit_with_a_reader_that_nobody_reads_is_sliced_there_too() -> None:
    torch.manual_seed(0)
    network, inputs = Unread().eval(), torch.randn(2, 3, 4, 4)
    anatomy = dissect(network, inputs[:1])
    assert {unit.name for unit in anatomy.units} == {"stem", "skip"}
    for unit in anatomy.units:
        assert slice_network(network, [unit], {unit.name: [0, 3]})(inputs).shape == (2, 2)
    assert reasons(anatomy)["never"] == "forward does not call it"


def test_without_a_trace_dead_code_is_left_out_with_the_layer_that_fails() -> None:
    class Untraced(Unread):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() < 1e9 else -x)

    torch.manual_seed(0)
    network, inputs = Untraced().eval(), torch.randn(2, 3, 4, 4)
    anatomy = dissect(network, inputs[:1])
    assert {unit.name for unit in anatomy.units} == {"skip"}
    assert "'residual'" in reasons(anatomy)["stem"]


def test_units_are_verified_on_the_samples_that_are_given() -> None:
    class Lookup(nn.Module):
        """Floats that stand for indices."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.wide, self.out = nn.Embedding(5, 8), nn.Linear(8, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.relu(self.wide(self.table(x.long()))))
            return out

    torch.manual_seed(0)
    samples = torch.tensor([[0.0, 4.0], [3.0, 2.0]])
    for given in (samples, None):
        assert [unit.name for unit in dissect(Lookup().eval(), samples[:1], given).units] == ["wide"]


class Shortcut(nn.Module):
    """A residual network with zero-padded shortcuts, whose first stream cannot be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 1)
        self.shortcut, self.head = SubsampleAndPad(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.outer(torch.relu(self.inner(x))) + self.shortcut(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Scaled(nn.Module):
    """A parameter of the network scales the channels of one layer; another layer's weight is used by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gain, self.last = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(4, 1, 1)), nn.Conv2d(4, 2, 1)
        self.used = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(torch.relu(self.stem(x)) * self.gain).mean((2, 3))
        return F.linear(x, self.used.weight)


class Split(nn.Module):
    """Queries, keys and values from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, 8)
        out: Tensor = self.out(mixed)
        return out


@pytest.mark.parametrize(
    ("network", "shape", "layer", "text"),
    [
        (Shortcut(), (1, 3, 8, 8), "stem", "'pad' in 'shortcut'"),
        (Scaled(), (1, 3, 4, 4), "stem", "the parameter 'gain'"),
        (Scaled(), (1, 3, 4, 4), "used", "it is never called: forward reads its weight by itself"),
        (Split(), (1, 5, 8), "qkv", "the network does not run without its channels: 'reshape'"),
        (Split(), (1, 5, 8), "out", "its channels are the network's output"),
        (nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 6)), (1, 5, 8), "0", r"'1' \(LSTM\)"),
    ],
)
def test_a_reason_names_what_stands_in_the_way(
    network: nn.Module, shape: tuple[int, ...], layer: str, text: str
) -> None:
    torch.manual_seed(0)
    anatomy = dissect(network.eval(), torch.zeros(shape))
    assert re.search(text, reasons(anatomy)[layer])
    assert len(reasons(anatomy)) == len(anatomy.fixed)


def test_channels_that_are_lost_cost_only_their_own_layers() -> None:
    class Pairs(nn.Module):
        """A product of feature maps in whose channels Torch-Pruning turns in circles, before an ordinary part."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 7, 3)
            self.wide, self.out = nn.Linear(42, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.relu(self.left(x)).flatten(2), torch.relu(self.right(x)).flatten(2)
            out: Tensor = self.out(torch.relu(self.wide((left @ right.transpose(1, 2)).flatten(1))))
            return out

    torch.manual_seed(0)
    anatomy = dissect(Pairs().eval(), torch.zeros(1, 3, 6, 6))
    assert [unit.name for unit in anatomy.units] == ["wide"]
    assert "cannot be followed through 'flatten'" in reasons(anatomy)["left"]


def test_what_torch_pruning_cannot_read_is_read_off_the_operators() -> None:
    class Gated(nn.Module):
        """A bidirectional recurrent layer, at which Torch-Pruning gives up, before a gated part."""

        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(8, 6, batch_first=True, bidirectional=True)
            self.gate, self.up, self.down = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            states = self.recurrent(x)[0]
            out: Tensor = self.down(F.silu(self.gate(states)) * self.up(states)).mean(1)
            return out

    torch.manual_seed(0)
    (unit,) = dissect(Gated().eval(), torch.zeros(1, 5, 8)).units
    assert {member.module for member in unit.role("producer")} == {"gate", "up"}
    assert {member.module for member in unit.role("consumer")} == {"down"}


@pytest.mark.parametrize("kind", ["inference mode", "parameter as input", "tensor made in forward", "half precision"])
def test_odd_forwards_are_counted_and_pruned(kind: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.out, self.start = nn.Linear(8, 12), nn.Linear(12, 2), nn.Parameter(torch.rand(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            if kind == "inference mode":
                with torch.inference_mode():
                    return self.compute(x)
            if kind == "tensor made in forward":
                return self.compute(x + torch.ones(8, dtype=x.dtype))
            return self.compute(x) + self.compute(self.start) if kind == "parameter as input" else self.compute(x)

        def compute(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.relu(self.wide(x)))
            return out

    torch.manual_seed(0)
    dtype = torch.bfloat16 if kind == "half precision" else torch.float32
    network, example = Odd().eval().to(dtype), torch.zeros(1, 8, dtype=dtype)
    anatomy = dissect(network, example)
    assert cost_of(Macs(), anatomy.family.dense) == (240 if kind == "parameter as input" else 120)
    assert [unit.name for unit in anatomy.units] == ([] if kind == "parameter as input" else ["wide"])


def test_a_forward_that_asks_for_the_length_of_its_batch_is_traced() -> None:
    class Lengthy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.out = nn.Linear(8, 12), nn.ModuleList([nn.Linear(12, 2)])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out[len(self.out) - 1](torch.relu(self.wide(x.reshape(len(x), 8))))
            return out

    network, inputs = Lengthy().eval(), torch.randn(3, 2, 4)
    graph = trace(network, inputs[:1])
    assert graph.program is not None
    with torch.no_grad():
        *_, (_, output) = run(graph.program, network, inputs)
        torch.testing.assert_close(output, network(inputs))
    assert "len" not in globals()


def test_layers_that_only_some_samples_run_stay() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.low, self.high, self.out = (
                nn.Linear(*sizes) for sizes in ((8, 12), (12, 6), (12, 6), (6, 2))
            )

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.wide(x)) if x.mean() > 5 else self.wide(x)
            out: Tensor = self.out(self.high(x) if x.mean() > 5 else self.low(x))
            return out

    torch.manual_seed(0)
    network = Choosing().eval()
    network.wide.weight.data.fill_(1.0)
    anatomy = dissect(network, torch.zeros(1, 8), torch.stack([torch.zeros(8), torch.full((8,), 9.0)]))
    assert not anatomy.units
    assert reasons(anatomy)["wide"] == "which layers run depends on the data"


def test_a_scripted_network_is_refused_in_words() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="pass the module that it was made from"):
        dissect(scripted, torch.zeros(1, 4))


def test_a_budget_on_what_cannot_change_says_so() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    anatomy = dissect(network, torch.zeros(1, 8))
    costing = Costing(anatomy.family, tuple(Rules().sites(anatomy.units)[0]))
    dense = 7 * costing.one(Macs(), costing.dense())

    class Held:
        """A cost that no unit carries."""

        name, unit = "held", "things"

        def many(self, layout: Layout, widths: Widths) -> NDArray[np.float64]:
            return np.full(len(widths.inputs), dense)

    with pytest.raises(InfeasibleBudget, match="nothing that may be changed carries held"):
        Constraint.create(costing, [Budget(Held(), 0.5 * dense)])
