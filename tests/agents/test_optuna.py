"""Optuna's samplers: what is missing without the library, and that they use what they are told."""

from __future__ import annotations

import sys

import pytest

from agents.names import AGENTS
from amc.testing.searcher import made, rewards
from envs.lookup import find


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_sampler_without_its_library_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install -c constraints\.txt -e '\.\[optuna\]'"):
        made(find("agent", name, AGENTS))


def test_estimators_find_better_policies_than_their_starts() -> None:
    pytest.importorskip("optuna")
    told = rewards(made(find("agent", "tpe", AGENTS)), rounds=15)
    assert max(told[2:]) > max(told[:2])
