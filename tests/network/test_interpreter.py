"""The interpreter: the network's own output in any order and from any cut, and nothing held longer than needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, fx, nn

from envs.network.copies import functional_copy
from envs.network.inputs import Inputs
from envs.network.interpreter import START, Checkpoints, Interpreter
from envs.network.tracing.symbolic import symbolic

if TYPE_CHECKING:
    from tests.conftest import Specimen


def interpreted(specimen: Specimen) -> tuple[Interpreter, nn.Module, Tensor]:
    program = specimen.anatomy.graph.require_program()
    return Interpreter(program.nodes), functional_copy(specimen.network), specimen.inputs(4)


def plain(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(inputs)
    return output


def parts(network: nn.Module, example: Inputs) -> Callable[[Inputs], Any]:
    """Runs the program of a network that has no anatomy."""
    interpreter = Interpreter(symbolic(network.eval(), example).nodes)
    return lambda inputs: interpreter.output(network, inputs)


@pytest.mark.parametrize("specimen", ["residual", "joined", "option_a"], indirect=True)
def test_every_cut_leads_to_the_output_of_the_network(specimen: Specimen) -> None:
    interpreter, network, inputs = interpreted(specimen)
    expected = interpreter.output(network, inputs)
    torch.testing.assert_close(expected, plain(specimen.network, inputs), atol=1e-6, rtol=1e-5)
    cut = START
    for stop in range(0, len(interpreter.order), 3):
        cut = interpreter.advance(network, inputs, cut=cut, stop=stop)
        assert torch.equal(interpreter.output(network, inputs, cut=cut), expected)


@pytest.mark.parametrize("specimen", ["residual"], indirect=True)
def test_a_cut_can_serve_several_walks(specimen: Specimen) -> None:
    interpreter, network, inputs = interpreted(specimen)
    cut = interpreter.advance(network, inputs, stop=len(interpreter.order) // 2)
    held = dict(cut.values)
    first, second = (interpreter.output(network, inputs, cut=cut) for _ in range(2))
    assert torch.equal(first, second)
    assert cut.values == held


@pytest.mark.parametrize("specimen", ["residual", "joined"], indirect=True)
def test_a_cut_holds_what_later_nodes_read_and_nothing_else(specimen: Specimen) -> None:
    interpreter, network, inputs = interpreted(specimen)
    for stop in range(len(interpreter.order)):
        cut = interpreter.advance(network, inputs, stop=stop)
        before, later = set(interpreter.order[:stop]), interpreter.order[stop:]
        assert set(cut.values) == {source for node in later for source in node.all_input_nodes if source in before}
        tensors = (value for value in cut.values.values() if isinstance(value, Tensor))
        assert cut.nbytes == sum(4 * value.numel() for value in tensors)


def test_a_value_is_freed_when_its_last_reader_has_run() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x + 1) * 2).relu()

    network = Chain()
    interpreter = Interpreter(symbolic(network, torch.ones(3)).nodes)
    alive: list[weakref.ref[Tensor]] = []
    counts = []
    for node, values in interpreter.walk(network, torch.ones(3)):
        counts.append(sum(one() is not None for one in alive))
        if node.op not in ("placeholder", "output"):
            alive.append(weakref.ref(values[node]))
    assert max(counts) == 1


def test_arguments_that_are_not_given_keep_their_defaults() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 3.0) -> Tensor:
            return x * scale

    one, five = torch.ones(1), torch.full((1,), 5.0)
    assert parts(Scaled(), one)(one).item() == 3.0
    assert parts(Scaled(), (one, five))((one, five)).item() == 5.0
    assert parts(Scaled(), {"scale": five, "x": one})({"x": one, "scale": five}).item() == 5.0


def test_an_order_without_an_output_has_none() -> None:
    network = nn.Sequential(nn.ReLU()).eval()
    nodes = [node for node in symbolic(network, torch.ones(1)).nodes if node.op != "output"]
    with pytest.raises(ValueError, match="must have an output"):
        Interpreter(nodes).output(network, torch.ones(1))


# Kept cuts


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1


class Wide(Counting):
    """Gives ten times as much as it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).repeat(1, 10)


def counted(*kinds: type[Counting]) -> tuple[nn.Module, Interpreter, list[Counting]]:
    layers = [kind() for kind in kinds or [Counting] * 4]
    network = nn.Sequential(*layers)

    class Whole(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, Counting)

    return network, Interpreter(Whole().trace(network).nodes), layers


def test_a_walk_from_a_kept_cut_runs_nothing_twice() -> None:
    network, interpreter, layers = counted()
    checkpoints = Checkpoints(interpreter, [torch.zeros(2, 3)], held_bytes=1e9)
    for stop in (2, 3, 5):
        cut = checkpoints.advance(network, 0, stop)
    assert [layer.calls for layer in layers] == [1, 1, 1, 1]
    assert cut.values[interpreter.order[4]].tolist() == [[4.0] * 3] * 2


def test_a_cut_that_holds_too_much_is_not_kept() -> None:
    network, interpreter, layers = counted()
    checkpoints = Checkpoints(interpreter, [torch.zeros(2, 3)], held_bytes=23)  # one value takes 24 bytes
    for stop in (2, 5):
        checkpoints.advance(network, 0, stop)
    assert [layer.calls for layer in layers] == [2, 1, 1, 1]


def test_the_last_cut_that_does_not_hold_too_much_is_kept() -> None:
    network, interpreter, layers = counted(Counting, Counting, Wide, Counting)
    checkpoints = Checkpoints(interpreter, [torch.zeros(2, 3)], held_bytes=24)
    for stop in (4, 5):
        cut = checkpoints.advance(network, 0, stop)
    assert [layer.calls for layer in layers] == [1, 1, 2, 1]
    assert cut.values[interpreter.order[4]].shape == (2, 30)


def test_longer_samples_may_hold_more() -> None:
    network, interpreter, layers = counted()
    checkpoints = Checkpoints(interpreter, [torch.zeros(2, 3), torch.zeros(2, 30)], held_bytes=264)
    for index in (0, 1):
        for stop in (2, 5):
            checkpoints.advance(network, index, stop)
    assert [layer.calls for layer in layers] == [2, 2, 2, 2]


def test_a_walk_to_an_earlier_node_begins_at_the_start() -> None:
    network, interpreter, layers = counted()
    checkpoints = Checkpoints(interpreter, [torch.zeros(2, 3)], held_bytes=1e9)
    for stop in (4, 2):
        cut = checkpoints.advance(network, 0, stop)
    assert [layer.calls for layer in layers] == [2, 1, 1, 0]
    assert cut.values[interpreter.order[1]].unique().item() == 1.0


def test_chunks_are_read_in_the_precision_asked_for_and_have_a_cut_each() -> None:
    network, interpreter, _ = counted()
    chunks = [torch.zeros(2, 3), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.long)]
    checkpoints = Checkpoints(interpreter, chunks, held_bytes=1e9, dtype=torch.bfloat16)
    values = [checkpoints.advance(network, index, 2).values[interpreter.order[1]] for index in range(3)]
    assert [value.dtype for value in values] == [torch.bfloat16, torch.bfloat16, torch.int64]
    assert [value.unique().item() for value in values] == [1.0, 2.0, 2.0]
