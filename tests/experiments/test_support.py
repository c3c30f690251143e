"""Networks of timm and Hugging Face: what is found once is found again, in a new process too."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from experiments.bench.support import CASES, judge

LIBRARIES = {"timm": "timm", "Hugging": "transformers"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_network_that_is_searched_is_reloaded_and_exported(name: str, tmp_path: Path) -> None:
    try:
        import_module(LIBRARIES[name.partition(" ")[0]])
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs its library: {error}")
    said = judge(name, tmp_path / "run")
    assert said["search"] is not None
    if said["search"] == "":
        assert (said["reload"], said["onnx"]) == ("", "")
