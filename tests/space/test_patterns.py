"""Patterns: names, legality, masks by magnitude, and the check that knows nothing of how a weight was made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from envs.network.graph import trace
from envs.regression.rows import as_weight, weight_rows
from envs.space.patterns import PatternMismatch, best_mask, grouped, refusal, unfit, ungrouped, verify, verify_network
from hw_profiles.cost import Macs, Params, cost_of
from hw_profiles.layers import LayerShape, Layout
from hw_profiles.patterns import DENSE, Pattern, parse_pattern, unstructured

TWO_FOUR = Pattern(keep=2, group=4)

patterns = st.one_of(
    st.integers(2, 8).flatmap(lambda m: st.builds(Pattern, keep=st.integers(1, m - 1), group=st.just(m))),
    st.floats(0.01, 0.99).map(unstructured),
)


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """Convolutions (grouped, too) and linear layers of any small shape."""
    inputs, outputs, groups = draw(st.integers(1, 24)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 1000)))
        if draw(st.booleans()):
            return nn.Linear(inputs, outputs)
        return nn.Conv2d(inputs * groups, outputs * groups, draw(st.sampled_from([1, 3])), groups=groups)


def shape_of(module: nn.Module) -> LayerShape:
    if isinstance(module, nn.Linear):
        return LayerShape(name="l", kind="linear", in_channels=module.in_features, out_channels=module.out_features)
    assert isinstance(module, nn.Conv2d)
    return LayerShape(
        name="l",
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        groups=module.groups,
        out_map=(2, 2),
    )


def kernel_of(module: nn.Module) -> int:
    return module.kernel_size[0] ** 2 if isinstance(module, nn.Conv2d) else 1


def masked(module: nn.Module, pattern: Pattern) -> Tensor:
    rows = weight_rows(module)
    return as_weight(module, rows * best_mask(rows.abs(), pattern, kernel_of(module)))


@given(patterns)
def test_a_pattern_is_read_back_from_its_text(pattern: Pattern) -> None:
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2-4", "unstructured:1", "unstructured:x", "2:4:8", ""])
def test_a_pattern_that_cannot_be_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|in \(0, 1\)") as error:
        parse_pattern(text)
    assert "\n" not in str(error.value)


@given(layers(), patterns)
def test_every_legal_layer_masked_by_magnitude_keeps_to_its_pattern(module: nn.Module, pattern: Pattern) -> None:
    if refusal(shape_of(module), pattern):
        return
    weight = masked(module, pattern)
    verify(weight, pattern)
    assert int((weight != 0).sum()) == pattern.allowed(weight.numel())  # no more than needed was taken


@given(layers(), patterns)
def test_one_more_weight_breaks_the_pattern(module: nn.Module, pattern: Pattern) -> None:
    if refusal(shape_of(module), pattern):
        return
    weight = masked(module, pattern)
    weight.view(-1)[int((weight == 0).flatten().nonzero()[0])] = 1.0
    with pytest.raises(PatternMismatch):
        verify(weight, pattern)


@given(layers(), patterns)
def test_what_is_counted_is_what_stays(module: nn.Module, pattern: Pattern) -> None:
    shape = shape_of(module)
    if refusal(shape, pattern):
        return
    layout = Layout(layers=(replace(shape, pattern=str(pattern)),))
    stays = int((masked(module, pattern) != 0).sum())
    assert cost_of(Params(), layout) == stays
    skips = (str(pattern),) if pattern.structured else ("unstructured",)
    positions = 1 if isinstance(module, nn.Linear) else 4
    assert cost_of(Macs(skips=skips), layout) == stays * positions
    assert cost_of(Macs(), layout) == weight_rows(module).numel() * positions  # zeros that nobody skips


def test_groups_of_four_are_consecutive_inputs_at_one_kernel_position() -> None:
    weight = torch.arange(8 * 9, dtype=torch.float32).view(1, 8, 3, 3)
    rows = weight.flatten(1).T[None]  # [1, 72, 1]
    groups = grouped(rows, TWO_FOUR, 9)
    assert groups[0, 0, :, 0].tolist() == weight[0, :4, 0, 0].tolist()
    assert groups[0, 10, :, 0].tolist() == weight[0, 4:, 0, 1].tolist()
    assert torch.equal(ungrouped(groups, 9), rows)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (LayerShape(name="first", kind="conv", in_channels=3, out_channels=8, kernel=(3, 3)), "fewer than the 4"),
        (LayerShape(name="depthwise", kind="conv", in_channels=8, out_channels=8, groups=8), "fewer than the 4"),
        (LayerShape(name="odd", kind="linear", in_channels=10, out_channels=8), "no multiple of the 4"),
        (LayerShape(name="up", kind="transposed", in_channels=8, out_channels=8), "transposed"),
    ],
)
def test_layers_that_stay_dense_say_why(shape: LayerShape, reason: str) -> None:
    assert reason in refusal(shape, TWO_FOUR)
    assert refusal(shape, DENSE) == ""


def test_a_network_is_checked_layer_by_layer_and_the_culprit_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 1))
    with pytest.raises(PatternMismatch, match="'1'"):
        verify_network(network, {"0": "dense", "1": "2:4"})
    with pytest.raises(PatternMismatch, match="'missing'"):
        verify_network(network, {"missing": "2:4"})


def test_infinite_weights_keep_to_no_pattern() -> None:
    with pytest.raises(PatternMismatch, match="finite"):
        verify(torch.tensor([[float("nan"), 0, 0, 0]]), TWO_FOUR)


def test_a_weight_that_forward_reads_elsewhere_takes_no_pattern() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.second(self.first(x)), self.first.weight.t())

    network = Tied().eval()
    graph = trace(network, torch.zeros(1, 8))
    assert unfit(network, graph, "first") == "forward reads its weight elsewhere, too"
    assert unfit(network, graph, "second") == ""
