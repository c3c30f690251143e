"""Malformed files by mutation: a few of every quick kind, the same ones in each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.config.search import recipe_config
from experiments.faults.documents import FINDINGS, Originals, campaign
from experiments.faults.mutations import CODE


def test_a_recipe_may_not_choose_code_and_says_what_to_type(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'task = "{CODE}"\n')
    with pytest.raises(ValueError, match=f"add --task {CODE}"):
        recipe_config(recipe, {})
    assert recipe_config(recipe, {"task": CODE}).task == CODE


def test_malformed_profiles_and_rules_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "ended").mkdir()
    kinds = ("profile", "measured", "rules")
    tally = campaign(Originals(tmp_path), 45, 0, kinds)
    assert not tally.findings
    assert sum(count for (_, end), count in tally.counts.items() if end == "refused") > 20
    assert not any(tally.counts[kind, end] for kind in kinds for end in FINDINGS)
