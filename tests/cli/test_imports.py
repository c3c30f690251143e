"""What imports load: help and configuration come without torch, and Gymnasium knows the environment all the same."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torch_pruning", "scipy", "ray", "stable_baselines3", "gymnasium", "onnxruntime", "matplotlib"}


def loaded(program: str) -> set[str]:
    """Top-level modules that a program of its own has loaded when it ends."""
    told = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def command(*arguments: str) -> str:
    """A program that runs the command line, and goes on when it has exited."""
    return (
        f"import sys\nsys.argv = {['amc', *arguments]}\nfrom amc.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code"
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["search", "--help"], ["compare", "--help"], ["profile", "--help"], ["config"]],
    ids=" ".join,
)
def test_help_and_keys_load_neither_torch_nor_numpy(arguments: list[str]) -> None:
    assert not loaded(command(*arguments)) & {*HEAVY, "numpy"}


@pytest.mark.parametrize(
    "program",
    [
        "import amc",
        "from amc.config.search import load_config\n"
        "load_config(None, {'task': 'digits', 'choose': 'mixed', 'patterns': ['2:4'], 'learning': 'light',"
        " 'constraint': {'macs': 0.5, 'sparsity': '2:4@multiple-of-4'}})",
    ],
    ids=["amc", "a configuration"],
)
def test_a_configuration_is_read_without_torch(program: str) -> None:
    assert not loaded(program) & HEAVY


@pytest.mark.parametrize(
    "imports", ["amc, gymnasium", pytest.param("gymnasium, amc", marks=pytest.mark.slow), "gymnasium"]
)
def test_gymnasium_finds_the_environment_whoever_is_imported_first(imports: str) -> None:
    made = 'gymnasium.make("amc:amc/ChannelPruning-v0", task="nonsense")'
    program = f"import {imports}\ntry:\n    {made}\nexcept ValueError as error:\n    assert 'nonsense' in str(error)"
    assert "torch" in loaded(program)


def test_waiting_for_gymnasium_ends_when_it_has_come() -> None:
    program = "import sys\nbefore = len(sys.meta_path)\nimport amc\nassert len(sys.meta_path) == before + 1\n"
    loaded(
        f"{program}import gymnasium\nassert 'amc/ChannelPruning-v0' in gymnasium.registry\n"
        "assert not [finder for finder in sys.meta_path if type(finder).__module__ == 'amc']"
    )
