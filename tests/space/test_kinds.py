"""A kind of decision is one file and one line: it can be configured, searched, written and read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from amc.cli.commands import run_search
from amc.config.keys import keys_of
from amc.config.search import SearchConfig, load_config
from envs.space.kinds import KINDS, finder_named

HALVES = '''
from dataclasses import dataclass

from envs.space.finders import Found, Wanted
from envs.space.sites import Choice, WidthSite


@dataclass(frozen=True, kw_only=True)
class HalfSite(WidthSite):
    """Half of a unit's channels, or all."""


def halves(wanted: Wanted) -> Found:
    sites = []
    for unit in wanted.anatomy.units:
        kept = (unit.channels // 2, unit.channels)
        choices = tuple(Choice(count, count / unit.channels, f"{count} of {unit.channels}") for count in kept)
        sites.append(HalfSite(name=unit.name, channels=unit.channels, choices=choices))
    return Found(sites, ())
'''


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the line."""
    (tmp_path / "kind_of_halves.py").write_text(HALVES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(KINDS, "halves", "kind_of_halves:halves")


def test_every_kind_has_a_finder() -> None:
    assert all(callable(finder_named(name)) for name in KINDS)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"choose must be one of channels, .*, but got 'halfs'"):
        load_config(None, {"task": "digits", "choose": "halfs"})


def test_a_new_kind_is_configured_and_searched(
    halves: None, bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    chosen = {key.name: key.type for key in keys_of(SearchConfig)}["choose"]
    assert "halves" in chosen
    config = load_config(
        None,
        {
            "task": "tests.tasks.small:make_task",
            "choose": "halves",
            "agent": "random",
            "episodes": 3,
            "compression": {"images": 64, "quick_images": 64, "positions": 8},
        },
    )
    run_search(config, tmp_path / "run", Console(file=io.StringIO()))
    lines = (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    ratios = {action for line in lines for action in json.loads(line)["actions"]}
    assert len(lines) == 3
    assert ratios <= {0.5, 1.0}
