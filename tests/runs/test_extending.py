"""The examples of docs/extending.md: complete, short, and searched with."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import amc
from tests.tasks.small import make_task

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def run(blocks: list[str], scope: dict[str, Any]) -> dict[str, Any]:
    """What some blocks define."""
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), scope)
    return scope


def searching(block: str) -> bool:
    return "amc.search(" in block or "amc.resume(" in block


@pytest.mark.slow
def test_every_block_runs_in_the_order_of_the_page(
    untimed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    run(BLOCKS, {})


def test_what_the_page_defines_keeps_its_laws_and_searches_together(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    defined = run([block for block in BLOCKS if not searching(block)], {})
    settings = defined["QUICK"] | {"budgets": {"energy": 0.6, "macs": 0.5}}
    objects = {"searcher": defined["HillClimbing"], "importance": defined["producer_norm"], "repair": defined["Scaled"]}
    found = amc.search(make_task(), costs=[defined["Energy"]()], **objects, **settings)
    costs = {name: found.reports[name].costs for name in ("dense", "found")}
    assert costs["found"]["energy"] <= 0.6 * costs["dense"]["energy"]
    assert found.record["failures"] == 0


def test_no_example_is_longer_than_25_lines() -> None:
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for block in BLOCKS
        for node in ast.parse(block).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    assert {"HillClimbing", "Energy", "producer_norm", "Scaled", "accuracy_per_mac", "top3"} <= lengths.keys()
    assert max(lengths.values()) <= 25, lengths
