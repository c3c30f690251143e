"""A rule for an operator is one line: what it multiplies, and what kind of operator it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from envs.network.counting import FORMULAS, counting
from envs.network.kinds import FUNCTION_KINDS, function_kind


@torch.library.custom_op("operator_rules::gram", mutates_args=())
def gram(rows: Tensor) -> Tensor:
    """The products of all pairs of rows."""
    return rows @ rows.T


def gram_flops(rows: torch.Size, *, out_shape: object = None, **rest: object) -> int:
    return 2 * rows[0] ** 2 * rows[1]


@pytest.fixture
def call() -> Callable[[], tuple[int, list[str]]]:
    """Runs the operator on 3 rows of 5; what is counted, and what is not."""

    def counted() -> tuple[int, list[str]]:
        with counting() as counter:
            gram(torch.ones(3, 5))
        return counter.take(), list(counter.uncounted)

    return counted


def test_an_operator_without_a_rule_is_named(call: Callable[[], tuple[int, list[str]]]) -> None:
    assert call() == (0, ["operator_rules.gram"])


def test_an_operator_with_a_rule_is_counted(
    call: Callable[[], tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMULAS, torch.ops.operator_rules.gram, gram_flops)
    assert call() == (3 * 3 * 5, [])


def test_a_function_is_of_the_kind_that_its_line_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert function_kind(torch.hypot, 2, same_shape=False) == "other"
    monkeypatch.setitem(FUNCTION_KINDS, torch.hypot, "add")
    assert function_kind(torch.hypot, 2, same_shape=False) == "add"
